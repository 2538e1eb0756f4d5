"""Checks 25 and 26: was an attack masked, and does a gate hide the gradient?

For attention gates (arXiv 2112.13989) and class gates (CAS, arXiv 2103.08307; AGAIN, Yin et al.
2023), and for any evaluation whose attack is weaker than one step.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aal_bench.attacks.adaptive.declared import every_logits, heads
from aal_bench.audit.adaptive import gated, masked_correct, openings, tried
from aal_bench.audit.bank import Bank
from aal_bench.audit.outcome import (
    Outcome,
    Severity,
    Verdict,
    gravest,
    not_applicable,
    percent,
    share,
)
from aal_bench.audit.significance import judge_difference, judge_share
from aal_bench.audit.subject import Part
from aal_bench.registry import ADAPTIVE

NO_GRADIENT = ("clean", "square", "fab-t", "bf16-square", "bf16-fab-t")
"""Stages that are no gradient ascent within the ball: one step may well beat them on an image."""


def mask_honesty(bank: Bank) -> Outcome:
    """25: claimed attacks are no weaker than the audit's own, and the gate masks nothing.

    The second part warns only: the claim that passes the first is about the full budget.
    """
    parts = [_claims(bank)] if _attacks(bank) else []
    parts += [_masks(bank)] if gated(bank.subject) else []
    if not parts:
        return not_applicable("There is neither a claimed attack nor a gate that could mask one.")
    verdicts: list[Verdict] = [part.verdict for part in parts]
    if len(parts) == 1 or parts[0].verdict == "fail":
        lead = parts[0]
    else:
        lead = min(parts, key=lambda part: ("fail", "not decided", "pass").index(part.verdict))
    return lead._replace(
        verdict=gravest(*verdicts),
        sentence=" ".join(part.sentence for part in parts),
        measured={name: value for part in parts for name, value in part.measured.items()},
    )


def _attacks(bank: Bank) -> list[str]:
    return [c.stage for c in bank.subject.claims.stages if c.stage not in NO_GRADIENT]


class _Against(NamedTuple):
    """A claimed stage beside an attack of the audit that it ought to be no weaker than."""

    stage: str
    other: str
    """``fgsm``, or the audit's own ``pgd-10``."""
    gap: float
    """Share of all images that the stage leaves and the other does not, less those the other way
    round."""
    verdict: Verdict

    @property
    def told(self) -> str:
        """What a failure says."""
        weaker = f"The claimed {self.stage} leaves {percent(self.gap)} of all images more than"
        if self.other == "fgsm":
            return f"{weaker} one step of the full eps, so the attack was masked."
        return f"{weaker} {self.other}: it is weaker than its name says, or was masked."


def _claims(bank: Bank) -> Outcome:
    """Claimed stages against FGSM and PGD of the audit, where the stage attacked."""
    limit, n, right = bank.thresholds.masked_gap, bank.subject.size, bank.correct()
    found: list[_Against] = []
    for claim in bank.subject.claims.stages:
        if claim.stage in NO_GRADIENT:
            continue
        seen, ok = right & torch.from_numpy(claim.attacked), torch.from_numpy(claim.ok)
        for name, stands in _yardsticks(bank, claim.stage):
            against, spoken = int((seen & ok & ~stands).sum()), int((seen & ~ok & stands).sum())
            verdict: Verdict = judge_difference(against, spoken, n, limit)
            found.append(_Against(claim.stage, name, round((against - spoken) / n, 6), verdict))
    failed = [each for each in found if each.verdict == "fail"]
    worst = max(failed or found, key=lambda each: each.gap)
    told = "No claimed attack did significantly less than one step of the full eps, or than the"
    told += " audit's PGD of as many steps."
    if failed:
        stages = dict.fromkeys(each.stage for each in failed)
        gravest_of = [max((f for f in failed if f.stage == s), key=lambda f: f.gap) for s in stages]
        told = " ".join(each.told for each in gravest_of)
    verdicts: list[Verdict] = [each.verdict for each in found]
    return Outcome(
        gravest(*verdicts),
        told,
        value=round(worst.gap, 4),
        threshold=limit,
        measured={f"{each.stage} above {each.other}": each.gap for each in found},
    )


def _yardsticks(bank: Bank, stage: str) -> list[tuple[str, Tensor]]:
    """(name, (N,) correct after it): attacks than which the claimed `stage` is no weaker.

    Of an iterated stage PGD of as many steps, as far as the audit goes, on the same loss. Its last
    iterate, which is what a plain PGD returns; any iterate would break more than an honest claim.
    """
    found = [("fgsm", bank.fgsm_correct())]
    named = re.fullmatch(r"(pgd|cw-inf)-(\d+)", stage)
    if named is not None:
        steps = min(int(named[2]), bank.budget.steps)
        run = bank.pgd(loss="ce" if named[1] == "pgd" else "margin")
        found.append((f"the audit's {named[1]}-{steps}", run.at(steps)))
    elif "apgd" in stage or stage == ADAPTIVE:
        steps = bank.budget.steps
        found.append((f"the audit's pgd-{steps}", bank.pgd().at(steps)))
    return found


def _masks(bank: Bank) -> Outcome:
    """FGSM masked by the network's own gate against FGSM at full eps, and how open the gate is."""
    limits, n = bank.thresholds, bank.subject.size
    masked, full = masked_correct(bank, "fgsm"), bank.correct() & bank.fgsm_correct()
    against, spoken = int((masked & ~full).sum()), int((full & ~masked).sum())
    verdict: Verdict = judge_difference(against, spoken, n, limits.masked_gap)
    opening = float(openings(bank).double().mean())
    told = f"FGSM masked by the gate leaves {percent(share(masked))}, at full eps"
    told += f" {percent(share(full))}"
    if verdict == "fail":
        told += ": only the full-eps number may be called robustness"
    told += f"; the mask lets {percent(opening)} of eps through on average"
    if opening < limits.closed_mask:
        verdict = "fail"
        told += ", which is a closed mask"
    return Outcome(
        verdict,
        f"{told}.",
        value=round((against - spoken) / n, 4),
        threshold=limits.masked_gap,
        measured={"masked fgsm": share(masked), "full fgsm": share(full), "mean k": opening},
        severity="warning",
    )


def gate_pinning(bank: Bank) -> Outcome:
    """26: attacks on auxiliary heads, joint losses and soft gates break nothing further.

    It is a warning where the number to be reported stands all the same: the final prediction
    repeats a head's and nothing further breaks, or the images that break have fallen to the run's
    own adaptive stage, and its `external` says so.
    """
    if heads(bank.subject.parts[0].model) is None:
        return not_applicable("The network declares no auxiliary heads.")
    limits, n, right = bank.thresholds, bank.subject.size, bank.correct()
    final, *auxiliary = bank.once("every head", lambda: bank.mapped(_every_head, bank.x)).T
    agreement = max(share(each == final) for each in auxiliary)
    usual = bank.survivors()
    attacks = {name: each for name, each in tried(bank).items() if name.startswith("U")}
    worst = usual.clone()
    for each in attacks.values():
        worst &= each
    broken = int((usual & ~worst).sum())
    verdict: Verdict = judge_share(broken, n, limits.blackbox_gap)
    told = (
        f"The final prediction is an auxiliary head's on {percent(agreement)} of images; attacks on"
        f" the final logits leave {percent(share(usual))}, attacks on the heads too"
        f" {percent(share(worst))}"
    )
    severity: Severity | None = None
    if verdict == "fail" and _counted_already(bank, usual & ~worst):
        severity = "warning"
        told += "; in the run's own claim they have fallen to its adaptive attacks"
    if verdict != "fail" and agreement > limits.pinned:
        verdict, severity = "fail", "warning"
        told += ": they were compulsory, have been made, and the number stands"
    least = {
        f"head {number + 1}": share(_all_of(right, attacks, f"-head-{number + 1}"))
        for number in range(len(auxiliary))
    }
    return Outcome(
        verdict,
        f"{told}.",
        value=share(worst),
        threshold=share(usual),
        measured={"agreement": agreement, "usual": share(usual), "worst": share(worst), **least},
        severity=severity,
    )


def _counted_already(bank: Bank, broken: Tensor) -> bool:
    """Whether the claim has the adaptive stage, and counts the `broken` (N,) images as fallen."""
    claims = bank.subject.claims.stages
    if ADAPTIVE not in {claim.stage for claim in claims}:
        return False
    stands = torch.from_numpy(np.logical_and.reduce([claim.ok for claim in claims]))
    missed, limits = int((broken & stands).sum()), bank.thresholds
    return judge_share(missed, bank.subject.size, limits.blackbox_gap) != "fail"


def _every_head(part: Part, x: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([each.argmax(1) for each in every_logits(part.model, x)], 1)


def _all_of(right: Tensor, attacks: dict[str, Tensor], ending: str) -> Tensor:
    """(N,) correct after every attack on one head."""
    stands = right.clone()
    for name, each in attacks.items():
        if name.endswith(ending):
            stands &= each
    return stands
