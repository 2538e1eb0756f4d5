"""Checks 13 and 16 on a detector: is its answer a function of the one image?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.outcome import Outcome
from aal_bench.detection.objective import Targets

PASSES = 5


def deterministic(bank: DetectorBank) -> Outcome:
    """13: five passes agree, and so do batches of one: class scores and box offsets of every prior.

    Boxes and losses are computed from these by rules that draw nothing.
    """
    limits, first = bank.thresholds, bank.outputs()
    spread = max(_distance(bank.answers(bank.x), first) for _ in range(PASSES - 1))
    mixed = _distance(_alone(bank), first)
    varies = not spread <= limits.logits_distance
    depends = not mixed <= limits.batch_distance
    n = bank.subject.size
    if varies:
        told = (
            f"The same {n} images get other scores and boxes in another pass (normalised outputs up"
            f" to {spread:.1e} apart): the detector is random, and only attacks that average over"
            " its randomness (EOT) say something of it."
        )
    elif depends:
        told = (
            f"Scores and boxes depend on the other images of the batch: alone in it, {n} images get"
            f" outputs that are up to {mixed:.1e} apart from those in company."
        )
    else:
        told = (
            f"Five passes over {n} images agree, alone and in batches (normalised outputs within"
            f" {max(spread, mixed):.1e})."
        )
    return Outcome(
        "fail" if varies or depends else "pass",
        told,
        value=mixed if depends and not varies else spread,
        threshold=limits.batch_distance if depends and not varies else limits.logits_distance,
        measured={"passes": spread, "batches": mixed},
    )


def no_label_at_test(bank: DetectorBank) -> Outcome:
    """16: no module stays in training mode, and the place in the batch decides nothing.

    The detector is asked without its annotations, so that these cannot have a say.
    """
    model = bank.subject.model.eval()
    stuck = [name or "the detector" for name, part in model.named_modules() if part.training]
    mixed = _distance(_backwards(bank), bank.outputs())
    moves = not mixed <= bank.thresholds.batch_distance
    if stuck:
        told = (
            f"{len(stuck)} modules stay in training mode when evaluation is asked for, first"
            f" {stuck[0]}: batch statistics or random units are in every answer."
        )
    elif moves:
        told = (
            f"Scores and boxes change with an image's place in its batch (normalised outputs by"
            f" {mixed:.1e})."
        )
    else:
        told = (
            "Every module is in evaluation mode, and scores and boxes are the same without"
            " annotations and in any order of the images."
        )
    return Outcome(
        "fail" if stuck or moves else "pass",
        told,
        value=len(stuck),
        threshold=0,
        measured={"training": len(stuck), "order": mixed},
    )


def _alone(bank: DetectorBank) -> list[Tensor]:
    """The outputs of every image as the only one of its batch."""
    found = []
    for x, targets in bank.subject.batches:
        alone = [bank.answer(x[i : i + 1], _some(targets, [i])) for i in range(len(x))]
        found.append(torch.cat(alone))
    return found


def _backwards(bank: DetectorBank) -> list[Tensor]:
    """The outputs of batches in reversed order, put back into the first one."""
    found = []
    for x, targets in bank.subject.batches:
        order = list(reversed(range(len(x))))
        found.append(bank.answer(x[order], _some(targets, order))[order])
    return found


def _some(targets: Targets, rows: list[int]) -> Targets:
    inside = None if targets.inside is None else targets.inside[rows]
    return Targets([targets.samples[row] for row in rows], inside)


def _distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest L2 distance of an image's outputs, which are scaled to length 1."""
    return max(
        float((normalize(one, dim=1) - normalize(other, dim=1)).norm(dim=1).max())
        for one, other in zip(first, second, strict=True)
    )
