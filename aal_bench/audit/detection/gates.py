"""Check 25 on a detector: does its own gate mask an attack, and is the mask open?"""

from __future__ import annotations

import torch
from torch import Tensor

from aal_bench.aal.kernels import kernel, upsample
from aal_bench.attacks.adaptive.declared import gates
from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.detection.judge import compared, few
from aal_bench.audit.outcome import Outcome, not_applicable, percent


def mask_honesty(bank: DetectorBank) -> Outcome:
    """25: FGSM masked by the gate raises the loss as FGSM at full eps does, and k is not closed.

    The claimed stages attack at full eps (check 27 holds them to it), so that a failure here says
    what a masked evaluation would hide, not that the claimed one is masked: a warning.
    """
    if not gates(bank.subject.model):
        return not_applicable(
            "The detector declares no gate that could mask an attack, and an image's detections are"
            " no verdict on which a claimed attack and one step could differ."
        )
    limits = bank.thresholds
    opened = bank.once("masks", lambda: _masks(bank))
    masked = bank.once("masked fgsm", lambda: bank.losses(_masked(bank, opened)))
    full = bank.fgsm_loss()
    mean = float(torch.cat([each.mean((1, 2, 3)).cpu() for each in opened]).mean())
    found = compared(masked, full, limits.masked_gap)
    closed = not mean >= limits.closed_mask
    told = (
        f"FGSM masked by the gate reaches a mean loss of {float(masked.mean()):.3g}, at full eps"
        f" {float(full.mean()):.3g}; the mask lets {percent(mean)} of eps through on average"
    )
    if found.judged == "fail":
        told += ": only attacks at full eps say something of robustness"
    return Outcome(
        "fail" if closed else found.judged,
        f"{told}.{' The mask is closed.' if closed else ''}{few(found.n)}",
        value=round(mean, 4),
        threshold=limits.closed_mask,
        measured={
            "masked fgsm": float(masked.mean()),
            "full fgsm": float(full.mean()),
            "mean k": mean,
            "weaker": found.below,
        },
        severity="warning",
    )


def _masks(bank: DetectorBank) -> list[Tensor]:
    """k(M(x)) of the first gate at the images' size, (B,1,H,W) batch by batch."""
    found, gate = [], gates(bank.subject.model)[0]
    for x, targets in bank.subject.batches:
        with gate.reading() as reading:
            bank.answer(x, targets)
            mask = reading.M.detach()
        found.append(upsample(kernel(mask, bank.subject.kernel), (x.shape[2], x.shape[3])))
    return found


def _masked(bank: DetectorBank, opened: list[Tensor]) -> list[Tensor]:
    """FGSM's images of the budget eps k(M(x))."""
    return bank.moved(bank.slopes().gradient, [bank.subject.eps * each for each in opened])
