"""Checks 28 and 29: does the audit's attack break what must break?

Carlini et al. 2019, arXiv 1902.06705.
"""

from __future__ import annotations

from torch import Tensor, nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.radius import large_eps
from aal_bench.audit.control import InPlace, beside, undefended
from aal_bench.audit.episode_control import standing_in
from aal_bench.audit.outcome import Outcome, Verdict, not_applicable, percent, share
from aal_bench.audit.significance import exceeds, judge_difference, judge_share


def undefended_control(bank: Bank) -> Outcome:
    """28: the audit's PGD leaves next to nothing to a network that was trained without attack."""
    if bank.subject.family != "classification" and bank.subject.undefended is None:
        return not_applicable(
            "Each episode has a classifier of its own, so no one network can be the control: give"
            " an undefended one."
        )
    control = undefended(bank)
    if control is None:
        return not_applicable(
            "There is neither an undefended network nor a training image to make one from."
        )
    right, stands = bank.once("undefended control", lambda: _attacked(bank, control))
    n, total, limit = int(right.sum()), bank.subject.size, bank.thresholds.undefended
    left = int(stands.sum())
    told = f"The undefended control classifies {n} of {total} images correctly"
    measured = {"clean": share(right), "left": left / n if n else 0.0}
    chance = 1 / bank.subject.classes
    if not exceeds(n, total, min(2 * chance, (1 + chance) / 2)):
        return Outcome(
            "not decided",
            f"{told}, too near to guessing for an attack on it to show anything.",
            measured=measured,
        )
    told += f"; the audit's PGD leaves {left} of these"
    verdict: Verdict = judge_share(left, n, limit)
    if verdict == "fail":
        eps = large_eps(bank)
        far = int(
            bank.once("undefended control far", lambda: _attacked_at(bank, control, eps)).sum()
        )
        told += f", and {far} where eps and step grow to {255 * eps:g}/255 together"
        measured |= {"left at the large eps": far / n}
        if judge_share(far, n, limit) != "fail":
            verdict = "not decided"
            told += ": on this task classes lie so far apart that even an undefended network stands"
    return Outcome(
        verdict, f"{told}.", value=round(left / n, 4), threshold=limit, measured=measured
    )


def _attacked_at(bank: Bank, control: nn.Module, eps: float) -> Tensor:
    """(N,) correct after PGD at `eps`, of the control; the step grows in proportion.

    So an attack whose step is wrong stays wrong.
    """
    other = beside(bank, lambda model: standing_in(control, model))
    step = bank.subject.step * eps / bank.subject.eps
    stands = other.correct() & other.run_pgd(eps, step, bank.budget.steps, keep=False).stands
    bank.charge(other.spent)
    return stands


def _attacked(bank: Bank, control: nn.Module) -> tuple[Tensor, Tensor]:
    """(N,) correct without attack, and (N,) after the bank's PGD, of the control."""
    other = beside(bank, lambda model: standing_in(control, model))
    right = other.correct()
    stands = right.clone()
    for restart in range(bank.budget.restarts):
        if not stands.any():
            break
        stands &= other.pgd(restart).stands
    bank.charge(other.spent)
    return right, stands


def known_broken_control(bank: Bank) -> Outcome:
    """29: the audit's attacks are not fooled by logits so large that cross-entropy has no slope."""
    limits, n = bank.thresholds, bank.subject.size
    # Like with like: cross-entropy has no part in what is left of the copy.
    own = bank.correct() & bank.pgd(loss="margin").stands & bank.pgd(loss="dlr").stands
    ce, both = bank.once("saturated control", lambda: _saturated(bank))
    against, spoken = int((both & ~own).sum()), int((own & ~both).sum())
    return Outcome(
        judge_difference(against, spoken, n, limits.saturated_gap),
        f"With the logits times {limits.saturation:g} PGD on cross-entropy alone leaves"
        f" {percent(share(ce))}; together with the margin and the scale-free loss it leaves"
        f" {percent(share(both))}; these two leave {percent(share(own))} with the logits as they"
        " are.",
        value=round((against - spoken) / n, 4),
        threshold=limits.saturated_gap,
        measured={"cross-entropy": share(ce), "all": share(both), "own": share(own)},
    )


def _saturated(bank: Bank) -> tuple[Tensor, Tensor]:
    """Of the saturated copy, (N,) standing under cross-entropy alone, and under all losses."""
    factor = bank.thresholds.saturation
    other = beside(bank, lambda model: InPlace(model, lambda model, x: factor * model(x).float()))
    ce = other.correct() & other.pgd().stands
    every = ce & other.pgd(loss="margin").stands & other.pgd(loss="dlr").stands
    bank.charge(other.spent)
    return ce, every
