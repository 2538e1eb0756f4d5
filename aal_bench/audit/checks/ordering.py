"""Check 23: do the attacks come in the order in which they come on ungated networks?

A warning only: honest networks can break it. It asks for checks 8, 9 and 26, which decide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aal_bench.audit.bank import Bank
from aal_bench.audit.outcome import Outcome, Verdict, gravest, percent, share
from aal_bench.audit.significance import Judged, judge_difference
from aal_bench.registry import AUTOATTACK


class Pair(NamedTuple):
    """Two attacks on the same n images, of which the first should leave little more."""

    names: tuple[str, str]
    above: Tensor
    """(n,) correct after the weaker attack."""
    below: Tensor
    """(n,) correct after the stronger one."""
    limit: float

    @property
    def gap(self) -> float:
        """Accuracy under the first less that under the second."""
        return share(self.above) - share(self.below)

    @property
    def verdict(self) -> Judged:
        """Of the paired test."""
        against = int((self.above & ~self.below).sum())
        spoken = int((self.below & ~self.above).sum())
        return judge_difference(against, spoken, len(self.above), self.limit)

    @property
    def told(self) -> str:
        """``PGD leaves 40.0 % and AutoAttack 38.0 %``."""
        names = self.names
        return (
            f"{names[0]} leaves {percent(share(self.above))} and {names[1]}"
            f" {percent(share(self.below))}"
        )


def attack_ordering(bank: Bank) -> Outcome:
    """23: the margin loss is no weaker than cross-entropy, and neither far weaker than AutoAttack.

    AutoAttack is the claimed one. Without a claim the audit's own attacks, APGD-T among them, stand
    for it where the budget has APGD-T.
    """
    steps, limits, right = bank.budget.steps, bank.thresholds, bank.correct()
    margin = right & bank.pgd(loss="margin").at(steps)
    ce = right & bank.pgd().at(steps)
    name = f"PGD-{steps} on the margin"
    first = Pair((name, f"PGD-{steps} on cross-entropy"), margin, ce, limits.margin_gap)
    pairs = [first]
    strongest = _strongest(bank)
    if strongest is not None:
        called, stands = strongest
        twenty = right & bank.pgd().at(20)
        pairs += [
            Pair((name, called), margin, stands, limits.margin_autoattack),
            Pair(("PGD-20", called), twenty, stands, limits.pgd_autoattack),
        ]
    pairs += _claimed(bank)
    left_out = "" if len(pairs) > 1 else " There is no AutoAttack to compare with."
    verdicts: list[Verdict] = [pair.verdict for pair in pairs]
    broken = [pair for pair in pairs if pair.verdict == "fail"]
    # The broken comparison that is furthest beyond its limit is the one to state.
    worst = max(broken or [first], key=lambda pair: pair.gap - pair.limit)
    told = broken or pairs
    return Outcome(
        gravest(*verdicts),
        f"{'; '.join(pair.told for pair in told)}.{left_out}",
        value=round(worst.gap, 4),
        threshold=worst.limit,
        measured={" - ".join(pair.names): round(pair.gap, 6) for pair in pairs},
    )


def _strongest(bank: Bank) -> tuple[str, Tensor] | None:
    """What stands for AutoAttack on the audited images, and (N,) what it leaves."""
    claimed = {claim.stage: claim.ok for claim in bank.subject.claims.stages}
    if set(AUTOATTACK) <= set(claimed):
        stands = np.logical_and.reduce([claimed[name] for name in AUTOATTACK])
        return "the claimed AutoAttack", bank.correct() & torch.from_numpy(stands)
    if bank.budget.apgd_targets and bank.subject.classes >= 4:
        return "all white-box attacks of the audit", bank.survivors()
    return None


def _claimed(bank: Bank) -> list[Pair]:
    """C&W and PGD-20 as claimed against AutoAttack as claimed, on the whole test set."""
    evidence, limits = bank.subject.claims.evidence, bank.thresholds
    if evidence is None or not set(AUTOATTACK) <= set(evidence.stages):
        return []
    stands = torch.from_numpy(evidence.robust(AUTOATTACK))
    pairs = []
    for stage in evidence.stages:
        limit = limits.pgd_autoattack if stage == "pgd-20" else limits.margin_autoattack
        if stage == "pgd-20" or stage.startswith("cw-inf-"):
            left = torch.from_numpy(evidence.robust([stage]))
            pairs.append(Pair((f"claimed {stage}", "claimed AutoAttack"), left, stands, limit))
    return pairs
