"""Checks 1, 2 and 17 on a detector: does PGD raise the loss as an iterated attack must?"""

from __future__ import annotations

from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.detection.judge import compared, few
from aal_bench.audit.outcome import Outcome, percent
from aal_bench.audit.significance import judge_share


def iterative_beats_one_step(bank: DetectorBank) -> Outcome:
    """1: PGD-10's loss is not below FGSM's, image by image, by more than 0.5 % of it."""
    limit = bank.thresholds.iterative_gap
    steps = min(10, bank.budget.detector_steps)
    one_step, iterated = bank.fgsm_loss(), bank.pgd().loss[steps]
    found = compared(iterated, one_step, limit)
    mean, least = float(iterated.mean()), float(one_step.mean())
    return Outcome(
        found.judged,
        f"The mean loss is {mean:.3g} under PGD-{steps} and {least:.3g} under FGSM; PGD-{steps}'s"
        f" is the lower one on {found.below} of {found.n} images and the higher one on"
        f" {found.above}.{few(found.n)}",
        value=found.below,
        threshold="more images below than above, significantly",
        measured={f"pgd-{steps}": mean, "fgsm": least, "below": found.below, "above": found.above},
    )


def convergence(bank: DetectorBank) -> Outcome:
    """2: over the last tenth of the steps the loss has stopped rising."""
    limit, run, steps = bank.thresholds.still_rising, bank.pgd(), bank.budget.detector_steps
    last = max(1, steps // 10)
    early, late = run.loss[steps - last], run.loss[steps]
    before, after = float(early.mean()), float(late.mean())
    rise = (after - before) / before if before > 0 else 0.0
    # The images must agree: one whose loss leaps is no unfinished attack.
    found = compared(early, late, limit)
    verdict = found.judged if not rise <= limit else "pass"
    return Outcome(
        verdict,
        f"Over the last {last} of {steps} steps the mean loss rises by {percent(rise)}; on"
        f" {found.below} of {found.n} images it rises by over {percent(limit)}."
        + (few(found.n) if verdict == "not decided" else ""),
        value=round(rise, 5),
        threshold=limit,
        measured={f"pgd-{steps - last}": before, f"pgd-{steps}": after},
    )


def silent_success(bank: DetectorBank) -> Outcome:
    """17: the loss that an iterate reached is reached again when the point is asked again.

    The audit keeps the iterate of the highest loss. The protocol's PGD returns the last one, as the
    field's does: on how many images that is lower is stated, and warned of where it is more than a
    tenth of them, since no single image's success is lost by it.
    """
    limits, run, n = bank.thresholds, bank.pgd(), bank.subject.size
    highest = run.highest
    again = bank.once("pgd best again", lambda: bank.losses(run.best))
    lost = int((~(again >= highest * (1 - limits.still_rising))).sum())
    fallen = int((run.loss[-1] < highest * (1 - limits.still_rising)).sum())
    wasted = judge_share(fallen, n, limits.unfinished_share)
    return Outcome(
        "fail" if lost or wasted == "fail" else "pass",
        f"On {lost} of {n} images the highest loss of an iterate is not found again at the same"
        f" point; on {fallen} the last iterate, which the protocol's PGD returns, is over"
        f" {percent(limits.still_rising)} below the best one.",
        value=lost,
        threshold=0,
        measured={
            "best": float(highest.mean()),
            "last": float(run.loss[-1].mean()),
            "again": float(again.mean()),
            "fallen": fallen,
        },
        severity="warning" if wasted == "fail" and not lost else None,
    )
