"""Checks 1 to 4 and 17: does the iterated attack do what an iterated attack must?"""

from __future__ import annotations

import torch

from aal_bench.audit.bank import Bank
from aal_bench.audit.outcome import Outcome, Verdict, gravest, not_applicable, percent, share
from aal_bench.audit.significance import judge_difference, judge_share


def iterative_beats_one_step(bank: Bank) -> Outcome:
    """1: PGD-10 leaves no more than FGSM, and what FGSM breaks the longest PGD breaks."""
    limits, n = bank.thresholds, bank.subject.size
    right, one_step, ten = bank.correct(), bank.fgsm_correct(), bank.pgd().at(10)
    fgsm, pgd = right & one_step, right & ten
    longest = right.clone()
    for start in bank.starts():
        longest &= start.stands
    against, spoken = int((pgd & ~fgsm).sum()), int((fgsm & ~pgd).sum())
    missed = int((longest & ~fgsm).sum())
    gap = (against - spoken) / n
    verdicts = (
        judge_difference(against, spoken, n, limits.iterative_gap),
        judge_share(missed, n, limits.fgsm_only),
    )
    return Outcome(
        gravest(*verdicts),
        f"PGD-10 leaves {percent(share(pgd))} of images and FGSM {percent(share(fgsm))};"
        f" {missed} of {n} images fall to FGSM and survive PGD-{bank.budget.steps} x"
        f" {bank.budget.restarts}.",
        value=round(gap, 4),
        threshold=limits.iterative_gap,
        measured={
            "fgsm": share(fgsm),
            "pgd-10": share(pgd),
            "longest": share(longest),
            "fgsm-only": round(missed / n, 6),
        },
    )


def convergence(bank: Bank) -> Outcome:
    """2: further steps break no further images, and the loss has stopped rising."""
    limits, n = bank.thresholds, bank.subject.size
    right, run = bank.correct(), bank.pgd()
    steps = bank.budget.steps
    early, late = right & run.at(20), right & run.at(steps)
    against, spoken = int((early & ~late).sum()), int((late & ~early).sum())
    verdicts: list[Verdict] = [judge_difference(against, spoken, n, limits.steps_gap)]
    measured = {"pgd-20": share(early), f"pgd-{steps}": share(late)}
    told = f"PGD-20 leaves {percent(share(early))}, PGD-{steps} {percent(share(late))}"
    if bank.budget.long_steps:
        longer = bank.long_pgd()
        half, whole = right & longer.at(100), right & longer.at(bank.budget.long_steps)
        lost, won = int((half & ~whole).sum()), int((whole & ~half).sum())
        verdicts.append(judge_difference(lost, won, n, limits.long_steps_gap))
        measured[f"pgd-{bank.budget.long_steps}"] = share(whole)
        told += f", PGD-{bank.budget.long_steps} {percent(share(whole))}"
    losses = run.loss[:, right].double()
    mean = losses.mean(1) if losses.shape[1] else torch.zeros(steps + 1)
    before = float(mean[steps - steps // 10])
    rise = (float(mean[steps]) - before) / before if before > 0 else 0.0
    rising = rise > limits.still_rising
    measured["rise"] = round(rise, 5)
    if rising:
        verdicts.append("fail")
    return Outcome(
        gravest(*verdicts),
        f"{told}; over the last {steps // 10} steps the mean loss rises by {percent(rise)}.",
        value=round((against - spoken) / n, 4),
        threshold=limits.steps_gap,
        measured=measured,
    )


def restarts(bank: Bank) -> Outcome:
    """3: further random starts break no further images."""
    limits, n = bank.thresholds, bank.subject.size
    right, starts = bank.correct(), bank.starts()
    one = right & starts[0].at(bank.budget.steps)
    all_ = one.clone()
    for start in starts[1:]:
        all_ &= start.at(bank.budget.steps)
    lost = int((one & ~all_).sum())
    return Outcome(
        judge_share(lost, n, limits.restarts_gap),
        f"One start leaves {percent(share(one))}, {len(starts)} starts {percent(share(all_))}.",
        value=round(lost / n, 4),
        threshold=limits.restarts_gap,
        measured={"one": share(one), "all": share(all_), "starts": len(starts)},
    )


def finished_optimisation(bank: Bank) -> Outcome:
    """4: where PGD failed it had come to rest: its loss no longer rose (indicator of Pintor)."""
    limits, run = bank.thresholds, bank.pgd()
    failed = bank.correct() & run.stands
    n = int(failed.sum())
    if n == 0:
        return not_applicable("No attack failed: there is none that could be unfinished.")
    best = run.loss[:, failed].double().cummax(0).values
    low, high = best[0], best[-1]
    rescaled = (best - low) / (high - low).clamp_min(1e-12)
    moving = (rescaled[-1] - rescaled[-11]) > limits.unfinished_rise
    count = int(moving.sum())
    return Outcome(
        judge_share(count, n, limits.unfinished_share),
        f"Of {n} failed attacks {count} still raise their loss in the last 10 steps.",
        value=round(count / n, 4),
        threshold=limits.unfinished_share,
        measured={"failed": n, "unfinished": count},
    )


def silent_success(bank: Bank) -> Outcome:
    """17: what fooled the model on the way still fools it when the point is asked again.

    The audit returns the first fooling iterate. PGD as the field's tables have it returns the last
    one: how many images that loses is stated, and they count as fallen here.
    """
    right, run, n = bank.correct(), bank.pgd(), bank.subject.size
    fooled = right & ~run.stands
    again = bank.once("pgd first again", lambda: bank.predictions(run.first)) != bank.y
    thrown = int((fooled & ~again).sum())
    last, best = right & run.at(bank.budget.steps), right & run.stands
    return Outcome(
        "fail" if thrown else "pass",
        f"{thrown} of {int(fooled.sum())} successes no longer fool the model when asked again;"
        f" {int((last & ~best).sum())} of {n} images are fooled by an iterate of"
        f" PGD-{bank.budget.steps} but not by its last, and count as fallen here.",
        value=thrown,
        threshold=0,
        measured={"last": share(last), "best": share(best)},
    )
