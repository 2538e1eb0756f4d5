"""Checks 27, 28 and 31 on a detector: budget, control, and what a mean precision cannot say."""

from __future__ import annotations

from aal_bench.audit.checks.claims import rounded
from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.outcome import Outcome, not_applicable
from aal_bench.audit.significance import judge_share
from aal_bench.evidence import NORM_DECIMALS
from aal_bench.threat import TOLERANCE, format_fraction

DOUBLED = 2.0
"""Factor by which PGD must at least raise the loss of a detector without defence."""


def budget(bank: DetectorBank) -> Outcome:
    """27: eps is what it is called; the audit's images and the evidence's distances keep to it."""
    subject, threat = bank.subject, bank.subject.threat
    faults: list[str] = []
    grey = rounded(threat.eps)
    if grey is not None:
        faults.append(
            f"The task's eps is {format_fraction(threat.eps)}, a rounded {grey}/255, so the number"
            " compares with no other."
        )
    excess = 0.0
    run, one_step = bank.pgd(), bank.fgsm()
    for made in (one_step, run.best, run.last):
        for x_adv, x in zip(made, bank.x, strict=True):
            found = threat.violation(x_adv.cpu(), x.cpu())
            excess = max(excess, found.norm, found.box)
    # Not ">": what is no number must fail too.
    if not excess <= TOLERANCE:
        faults.append(f"The audit's own images leave the ball or the box by {excess:.1e}.")
    rounding = 0.5 * 10**-NORM_DECIMALS
    for claim in subject.claims:
        largest = float(claim.norm.max(initial=0.0))
        beyond = largest - claim.eps - rounding
        excess = max(excess, beyond)
        if not beyond <= TOLERANCE:
            faults.append(
                f"By the evidence {claim.stage} moved pixels by up to 255 x {largest:.5f} ="
                f" {255 * largest:.3f} grey levels, allowed are {255 * claim.eps:g}."
            )
    told = f"eps is {format_fraction(threat.eps)}, and the audit's images keep to it and to the box"
    if subject.claims:
        told += f"; so do the distances of {len(subject.claims)} claimed stages"
    return Outcome(
        "fail" if faults else "pass",
        " ".join(faults) or f"{told}.",
        value=round(excess, 8),
        threshold=TOLERANCE,
        measured={"excess": excess, "eps": subject.eps},
    )


def undefended_control(bank: DetectorBank) -> Outcome:
    """28: the audit's PGD at least doubles the loss of a detector that was trained without attack.

    Its steps are those of the sweep.
    """
    subject, limit = bank.subject, bank.thresholds.undefended
    if subject.undefended is None:
        return not_applicable(
            "No undefended detector was given: name one of the same task that was trained without"
            " attack (--undefended)."
        )
    steps = bank.budget.detector_sweep_steps
    clean, run = bank.once(
        "undefended control",
        lambda: (
            bank.ascend(0.0, 0.0, 0, subject.undefended).loss[0],
            bank.ascend(subject.eps, subject.step, steps, subject.undefended),
        ),
    )
    left, n = int((~(run.highest >= DOUBLED * clean)).sum()), len(clean)
    return Outcome(
        judge_share(left, n, limit),
        f"PGD-{steps} raises an undefended detector's mean loss from {float(clean.mean()):.3g} to"
        f" {float(run.highest.mean()):.3g}, and on {left} of {n} images to less than {DOUBLED:g}"
        " times its value.",
        value=round(left / n, 4),
        threshold=limit,
        measured={"clean": float(clean.mean()), "attacked": float(run.highest.mean())},
    )


def per_image_worst_case(_: DetectorBank) -> Outcome:
    """31: there is nothing to combine."""
    return not_applicable(
        "A mean average precision ranks the detections of all images together: no image stands or"
        " falls by itself, so attacks are reported one by one and no worst case for each image"
        " exists."
    )
