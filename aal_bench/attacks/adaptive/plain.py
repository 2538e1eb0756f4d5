"""T1, T6 and T7: full-budget attacks on the final logits, through whatever gate there is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from aal_bench.attacks.adaptive.budget import Budget, Setting
from aal_bench.attacks.adaptive.eot import averaged, majority_errs
from aal_bench.attacks.adaptive.losses import LOSSES
from aal_bench.attacks.adaptive.search import (
    Objective,
    Seen,
    Surrogate,
    apgd,
    errs,
    first_fooling,
)

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, x (B,C,H,W), labels (B,)) -> x' within the ball and the box."""


def final(model: nn.Module, y: Tensor, loss: str) -> Objective:
    """The loss of the final logits, its gradient through every part of the network."""

    def objective(x: Tensor, rows: Tensor) -> Seen:
        logits = model(x)
        return Seen(LOSSES[loss](logits, y[rows]), logits)

    return objective


def pgd(setting: Setting, budget: Budget, loss: str) -> Run:
    """T1: PGD on the final logits, full eps on every pixel."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return first_fooling(partial(errs, model), final(model, y, loss), x, y, setting, budget)

    return run


def auto_pgd(setting: Setting, budget: Budget, loss: str, samples: int = 1) -> Run:
    """T6: APGD on the final logits; with `samples` draws for every gradient, T7."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def look(z: Tensor) -> tuple[Tensor, Tensor | None]:
            logits = model(z)
            return logits, logits if samples == 1 else None

        judge = partial(majority_errs, model, samples=samples)
        return apgd(Surrogate(judge, look), x, y, setting, budget, loss, samples)

    return run


def square(setting: Setting, budget: Budget) -> Run:
    """T6: Square, queries only (arXiv 1912.00049).

    Its seed is not that of AutoAttack's Square, which need not be repeated.
    """

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack.square import SquareAttack

        attack: Any = SquareAttack(
            model,
            p_init=0.8,
            n_queries=budget.queries,
            eps=float(setting.eps),
            norm="Linf",
            n_restarts=1,
            seed=setting.seed + 1,
            verbose=False,
            device=x.device,
            resc_schedule=False,
        )
        return attack.perturb(x, y)

    return run


def expected(setting: Setting, budget: Budget, loss: str) -> Run:
    """T7: PGD whose gradient is the mean over ``budget.samples`` draws."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        judge = partial(majority_errs, model, samples=budget.samples)
        objective = averaged(final(model, y, loss), budget.samples)
        return first_fooling(judge, objective, x, y, setting, budget)

    return run
