"""Checks 24, 27 and 31: what is claimed, against what others reach, the threat and itself."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from aal_bench.audit.bank import Bank, NoGradient
from aal_bench.audit.outcome import Outcome, gravest, not_applicable, percent, share
from aal_bench.audit.significance import ALPHA, Judged, judge_difference
from aal_bench.audit.subject import Subject
from aal_bench.evidence import NORM_DECIMALS
from aal_bench.leaderboard import robustbench
from aal_bench.leaderboard.robustbench import Row
from aal_bench.threat import TOLERANCE, Violation, format_fraction, parse_fraction

COMMON = ("cifar10", Fraction(8, 255))
"""Data set and eps of the rule with fixed numbers: it was drawn from RobustBench's rows there."""
GENERATED = (
    *(
        "Bartoldson2024Adversarial",
        "Chen2024Data",
        "Cui2023Decoupled_WRN-28-10",
        "Gowal2021Improving",
    ),
    *("Pang2022Robustness", "Peng2023Robust", "Rade2021Helper", "Rebuffi2021Fixing"),
    *("Sehwag2021Proxy", "Wang2023Better", "Xu2023Exploring"),
)
"""Beginnings of entries that trained on generated images, which RobustBench flags as no extra data:
a network that did without has no part in their numbers."""
DECIMALS = 3
"""Digits behind the point with which an eps can be a rounded k/255: 0.3 is no 77/255."""


class _Stated(NamedTuple):
    """Clean and robust accuracy, where they come from, and how many images they are of."""

    clean: float
    robust: float
    source: str
    n: int | None


def plausibility(bank: Bank) -> Outcome:
    """24: some published network without extra data is as accurate and as robust."""
    subject, limits = bank.subject, bank.thresholds
    if subject.dataset is None:
        return not_applicable("RobustBench has no rows of this data set to compare with.")
    published = _published(subject)
    if not published:
        return not_applicable(
            f"RobustBench has no row of {subject.dataset} under {subject.threat} without extra"
            " data to compare with."
        )
    stated = _stated(bank)
    chance = 1 / subject.classes + limits.chance_margin
    if stated.robust <= chance:
        return _no_robustness(stated, chance)

    def beyond(clean: float, robust: float) -> str | None:
        at_least = (limits.implausible_clean, limits.implausible_robust)
        known = (subject.dataset, subject.threat.eps) == COMMON
        if known and clean >= at_least[0] and robust >= at_least[1]:
            return (
                f"beyond {percent(at_least[0])} and {percent(at_least[1])}, which no network"
                " without extra or generated data has reached"
            )
        if any(row.clean >= clean and _standing(row) >= robust for row in published):
            return None
        return f"beyond each of RobustBench's {len(published)} rows without extra data"

    found = beyond(stated.clean, stated.robust)
    surely = beyond(_at_least(stated.clean, stated.n), _at_least(stated.robust, stated.n))
    said = f"{percent(stated.clean)} clean and {percent(stated.robust)} robust, {stated.source},"
    nearest = max((_standing(r) for r in published if r.clean >= stated.clean), default=0.0)
    return Outcome(
        "pass" if found is None else "fail" if surely else "not decided",
        f"{said} are {found or 'within what published networks reach'}"
        + ("." if surely or not found else ", but on too few images to be sure."),
        value=round(stated.robust, 4),
        threshold=round(nearest, 4),
        measured={"clean": stated.clean, "robust": stated.robust, "rows": len(published)},
    )


def _no_robustness(stated: _Stated, chance: float) -> Outcome:
    return Outcome(
        "pass",
        f"{percent(stated.robust)} robust, {stated.source}, are no more than guessing: there is no"
        " robustness to be implausible.",
        value=round(stated.robust, 4),
        threshold=round(chance, 4),
        measured={"clean": stated.clean, "robust": stated.robust},
    )


def _published(subject: Subject) -> list[Row]:
    """RobustBench's rows of the same question that count: no extra or generated data, no doubt."""
    assert subject.dataset is not None
    return [
        row
        for row in robustbench.rows(subject.dataset, subject.threat.norm)
        if row.eps
        and parse_fraction(row.eps) == subject.threat.eps
        and not row.additional_data
        and not row.entry.startswith(GENERATED)
        and not row.unreliable
    ]


def _standing(row: Row) -> float:
    return row.robust if row.external is None else min(row.robust, row.external)


def _stated(bank: Bank) -> _Stated:
    claims = bank.subject.claims
    if claims.clean is not None and claims.robust is not None:
        n = None if claims.evidence is None else len(claims.evidence)
        return _Stated(claims.clean, claims.robust, "as claimed", n)
    n = bank.subject.size
    return _Stated(
        share(bank.correct()),
        share(bank.survivors()),
        f"as the audit measures it on {n} images (AutoAttack may leave less)",
        n,
    )


def _at_least(value: float, n: int | None) -> float:
    """Exact one-sided lower confidence bound of a share of n images; itself where n is None."""
    if n is None:
        return value
    interval = binomtest(round(value * n), n).proportion_ci(1 - 2 * ALPHA, method="exact")
    return float(interval.low)


# ---- 27 ------------------------------------------------------------------------------------------


def budget(bank: Bank) -> Outcome:
    """27: eps is what it is called, and every adversarial lies in the ball and in the box.

    Looked at: the audit's own FGSM and PGD images; the run's stored adversarials, all for the box
    and those of audited images for the ball; the distances that its evidence states.
    """
    subject = bank.subject
    faults: list[str] = []
    near = rounded(subject.threat.eps)
    if near is not None:
        eps = format_fraction(subject.threat.eps)
        faults.append(f"eps is {eps}, a rounded {near}/255, so the number compares with no other")
    measured: dict[str, float] = {"eps": subject.eps}
    looked: list[str] = []
    for name, found in (
        ("the audit's own adversarials", _own(bank)),
        ("the stored adversarials", _stored(bank)),
        ("the distances in the evidence", _noted(subject)),
    ):
        if found is None:
            continue
        looked.append(name)
        measured[f"{name}: beyond eps"] = found.norm
        measured[f"{name}: beyond the box"] = found.box
        # Not ">": what is no number must fail too.
        if not found.norm <= TOLERANCE:
            faults.append(f"{name} go beyond eps by up to {found.norm:.2g}")
        if not found.box <= TOLERANCE:
            faults.append(f"{name} leave the range of pixels by up to {found.box:.2g}")
    excess = [value for name, value in measured.items() if "beyond" in name]
    good = f"eps is {format_fraction(subject.threat.eps)}"
    good += f", and within it and the box lie {', '.join(looked)}" if looked else ""
    told = "; ".join(faults) or good
    return Outcome(
        "fail" if faults else "pass",
        f"{told[0].upper()}{told[1:]}.",
        value=max(excess, default=0.0),
        threshold=TOLERANCE,
        measured=measured,
    )


def rounded(eps: Fraction) -> int | None:
    """The k whose k/255 `eps` is, rounded to the decimals that `eps` has; None: of none.

    It takes three decimals at least. Fractions with a power of two below the line (1/8) are meant.
    """
    grey, decimals = round(eps * 255), _decimals(eps)
    meant = eps.denominator & (eps.denominator - 1) == 0
    if grey < 1 or meant or eps == Fraction(grey, 255) or decimals is None or decimals < DECIMALS:
        return None
    return grey if round(Fraction(grey, 255), decimals) == eps else None


def _decimals(number: Fraction) -> int | None:
    """Digits behind the point; None: they never end."""
    twos = fives = 0
    rest = number.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None


def _own(bank: Bank) -> Violation | None:
    try:
        made = [bank.fgsm()]
        for run in bank.starts():
            made += [run.x_adv, run.first]
    except NoGradient:
        return None
    return _worst([bank.subject.threat.violation(each, bank.x) for each in made])


def _stored(bank: Bank) -> Violation | None:
    claims = bank.subject.claims
    if claims.adversarials is None:
        return None
    with np.load(claims.adversarials, allow_pickle=False) as arrays:
        index, x_adv = arrays["index"], torch.from_numpy(arrays["x"])
    none = Violation(0.0, 0.0)
    if not len(index):
        return none
    box = bank.subject.threat.violation(x_adv, x_adv).box
    # An episode shows a test image as a query of its own, so a position names no one image there.
    if bank.subject.family != "classification":
        return none._replace(box=box)
    rows = np.concatenate([part.rows for part in bank.subject.parts])
    positions = rows if claims.evidence is None else claims.evidence.index[rows]
    _, mine, theirs = np.intersect1d(positions, index, return_indices=True)
    ball = bank.subject.threat.violation(x_adv[theirs], bank.x[mine]).norm
    return Violation(ball, box)


def _noted(subject: Subject) -> Violation | None:
    evidence = subject.claims.evidence
    if evidence is None or not evidence.stages:
        return None
    largest = max(float(evidence.column(stage, "norm").max()) for stage in evidence.stages)
    # The table keeps so many decimals.
    return Violation(max(0.0, largest - subject.eps - 0.5 * 10**-NORM_DECIMALS), 0.0)


def _worst(found: list[Violation]) -> Violation:
    tensors: Tensor = torch.tensor(found, dtype=torch.float64)
    norm, box = tensors.amax(0).tolist()  # a NaN stays one
    return Violation(norm, box)


# ---- 31 ------------------------------------------------------------------------------------------


def per_image_worst_case(bank: Bank) -> Outcome:
    """31: what is called robust is the share of images that survive every attack.

    Not the least of the attacks' accuracies, which lets each image choose its mildest attack. And
    what the claimed attacks leave together is not clearly more than the audit's own leave.
    """
    claims, limit = bank.subject.claims, bank.thresholds.reporting_gap
    if claims.robust is None or not (claims.stages or claims.evidence is not None):
        return not_applicable("Nothing is claimed, so there is no number that could be too high.")
    if claims.evidence is not None:
        stands, of = claims.evidence.robust(), "the test set"
        verdict = None
    else:
        stands = np.logical_and.reduce([claim.ok for claim in claims.stages])
        stands &= bank.correct().numpy()
        of = "the audited images"
        verdict = _claim_holds(claims.robust, int(stands.sum()), len(stands), limit)
    n, left = len(stands), float(stands.mean())
    if verdict is None:
        verdict = judge_difference(round(claims.robust * n) - int(stands.sum()), 0, n, limit)
    own = _against_own(bank)
    least = min(claims.per_stage.values(), default=None)
    told = ""
    if verdict == "fail" and least is not None and abs(least - claims.robust) < limit / 2:
        told = " The claim is the least of the attacks' accuracies instead."
    found = Outcome(
        verdict,
        f"Claimed are {percent(claims.robust)}; of {of}, {percent(left)} survive every claimed"
        f" attack.{told}",
        value=round(claims.robust - left, 4),
        threshold=limit,
        measured={"claimed": claims.robust, "and": left}
        | ({} if least is None else {"least": least}),
    )
    if own is None:
        return found
    lead = own if gravest(found.verdict, own.verdict) != found.verdict else found
    return lead._replace(
        sentence=f"{found.sentence} {own.sentence}", measured={**found.measured, **own.measured}
    )


def _against_own(bank: Bank) -> Outcome | None:
    """What the claimed attacks leave of the audited images, beside what the audit's own leave."""
    claims, n, limit = bank.subject.claims, bank.subject.size, bank.thresholds.masked_gap
    if not claims.stages:
        return None
    try:
        own = bank.survivors()
    except NoGradient:
        return None
    stands = torch.from_numpy(np.logical_and.reduce([claim.ok for claim in claims.stages]))
    stands &= bank.correct()
    against, spoken = int((stands & ~own).sum()), int((own & ~stands).sum())
    return Outcome(
        judge_difference(against, spoken, n, limit),
        f"Of the audited images the claimed attacks leave {percent(share(stands))}, the audit's own"
        f" {percent(share(own))}.",
        value=round((against - spoken) / n, 4),
        threshold=limit,
        measured={"claimed attacks": share(stands), "own attacks": share(own)},
    )


def _claim_holds(claimed: float, count: int, n: int, limit: float) -> Judged:
    """Whether `count` of a sample of `n` images is too few for the claimed share of all."""
    if count / n >= claimed - limit:
        return "pass"
    low = binomtest(count, n, claimed - limit, alternative="less").pvalue <= ALPHA
    return "fail" if low else "pass"
