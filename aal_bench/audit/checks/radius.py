"""Checks 5 to 7: what happens as the budget grows."""

from __future__ import annotations

import torch
from torch import Tensor

from aal_bench.audit.bank import Bank, Loss
from aal_bench.audit.branch import Branch
from aal_bench.audit.outcome import Outcome, Verdict, gravest, percent, share
from aal_bench.audit.significance import judge_difference, judge_share
from aal_bench.audit.table import EPS_SWEEP

LARGE, GREY = 64 / 255, 128 / 255
"""The large eps of natural images; the eps at which every image can be made grey."""
FURTHER: tuple[tuple[Loss, int], ...] = (("margin", 0), ("margin", 1), ("ce", 1), ("dlr", 2))
"""Losses and starts that follow on what PGD on cross-entropy leaves at a large eps."""


def monotone_in_eps(bank: Bank) -> Outcome:
    """5: PGD with a larger eps, started anew, never leaves significantly more."""
    limits, n = bank.thresholds, bank.subject.size
    sweep = sorted({0.0, bank.subject.eps, *(k / 255 for k in EPS_SWEEP)})
    stand = [standing_at(bank, eps) for eps in sweep]
    verdicts: list[Verdict] = []
    worst, where = -1.0, (sweep[0], sweep[1])
    for number in range(1, len(sweep)):
        smaller, larger = stand[number - 1], stand[number]
        against, spoken = int((larger & ~smaller).sum()), int((smaller & ~larger).sum())
        verdicts.append(judge_difference(against, spoken, n, limits.monotone))
        if (against - spoken) / n > worst:
            worst, where = (against - spoken) / n, (sweep[number - 1], sweep[number])
    low, high = (share(stand[sweep.index(eps)]) for eps in where)
    return Outcome(
        gravest(*verdicts),
        f"From eps {_eps(where[0])} to {_eps(where[1])}, where PGD-{bank.budget.sweep_steps}"
        f" takes least, accuracy goes from {percent(low)} to {percent(high)}; over the sweep"
        f" from {percent(share(stand[0]))} to {percent(share(stand[-1]))}.",
        value=round(worst, 4),
        threshold=limits.monotone,
        measured={f"eps {_eps(eps)}": share(each) for eps, each in zip(sweep, stand, strict=True)},
    )


def large_eps_chance(bank: Bank) -> Outcome:
    """6: at the task's large eps the model does no better than guessing, at 128/255 it falls."""
    limits, n = bank.thresholds, bank.subject.size
    chance = 1 / bank.subject.classes + limits.chance_margin
    eps = large_eps(bank)
    large, grey = _hammered(bank, eps), _hammered(bank, GREY)
    return Outcome(
        gravest(
            judge_share(int(large.sum()), n, chance),
            judge_share(int(grey.sum()), n, limits.grey_accuracy),
        ),
        f"At eps {_eps(eps)} attacks leave {percent(share(large))} (guessing:"
        f" {percent(1 / bank.subject.classes)}), at 128/255 {percent(share(grey))}.",
        value=share(large),
        threshold=round(chance, 4),
        measured={"eps": round(eps, 6), "large": share(large), "128/255": share(grey)},
    )


def unbounded_attack(bank: Bank) -> Outcome:
    """7: with the whole box to move in, an attack fools the model on every image."""
    standing = int(_hammered(bank, 1.0).sum())
    n = int(bank.correct().sum())
    return Outcome(
        "fail" if standing else "pass",
        f"With eps = 1, so that any image may become any other, attacks on {n} correct images leave"
        f" {standing} standing.",
        value=standing,
        threshold=0,
    )


def large_eps(bank: Bank) -> float:
    """The eps of check 6: 64/255, or more where the task's classes lie further apart.

    Half the Linf distance to the nearest audited image of another class is where one point is
    within eps of both. Strokes in black and white, as of `digits`, are nearly 1 apart, and a good
    model may well stand at 64/255; natural images are closer. The median over the images, at most
    128/255.
    """
    return bank.once("large eps", lambda: _large_eps(bank.x.flatten(1), bank.y))


def _large_eps(x: Tensor, y: Tensor) -> float:
    nearest = []
    for own, label in zip(x.split(64), y.split(64), strict=True):
        apart = torch.cdist(own, x, p=torch.inf)
        nearest.append(apart.masked_fill(label[:, None] == y, torch.inf).amin(1))
    half = float(torch.cat(nearest).median()) / 2
    return max(LARGE, min(GREY, half))


def standing_at(bank: Bank, eps: float) -> Tensor:
    """(N,) correct at every iterate of the sweep's PGD; at the task's eps PGD's beginning is it."""
    right, steps = bank.correct(), bank.budget.sweep_steps
    if eps == 0:
        return right
    if eps == bank.subject.eps and bank.subject.step >= eps / 10:
        return right & bank.pgd().correct[: steps + 1].all(0)
    return right & bank.pgd_at(eps, steps).stands


def _hammered(bank: Bank, eps: float) -> Tensor:
    """(N,) correct after PGD at a large eps: cross-entropy, then other losses on what is left.

    A model that has gradients falls to one of them; where they are masked none helps.
    """
    return bank.once(f"hammered {_eps(eps)}", lambda: _hammer(bank, eps))


def _hammer(bank: Bank, eps: float) -> Tensor:
    steps = bank.budget.large_steps
    left = bank.correct() & bank.pgd_at(eps, steps).stands
    for loss, restart in FURTHER:
        if not bool(left.any()):
            break
        left = left.clone()
        left[left.clone()] = (
            Branch(bank, left).run_pgd(eps, bank.step_at(eps), steps, loss, restart).stands
        )
    return left


def _eps(eps: float) -> str:
    return f"{255 * eps:g}/255"
