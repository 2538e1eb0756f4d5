"""U1-U5: attacks on networks with auxiliary heads, whose final logits may hide behind a gate.

A class gate W[argmax a] is constant piece by piece, so the final logits' gradient says nothing of
the auxiliary logits a that choose it. (CAS, arXiv 2103.08307; AGAIN, Yin et al. 2023.)
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aal_bench.attacks.adaptive.budget import Budget, Setting
from aal_bench.attacks.adaptive.declared import every_logits, heads
from aal_bench.attacks.adaptive.losses import LOSSES, cross_entropy
from aal_bench.attacks.adaptive.plain import Run
from aal_bench.attacks.adaptive.search import (
    Seen,
    Surrogate,
    apgd,
    errs,
    first_fooling,
    others,
)


def one_head(setting: Setting, budget: Budget, head: int, loss: str) -> Run:
    """U1: PGD on max CE(a_l(x'), y), or the margin, of auxiliary head l alone."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def objective(z: Tensor, rows: Tensor) -> Seen:
            final, *auxiliary = every_logits(model, z)
            return Seen(LOSSES[loss](auxiliary[head], y[rows]), final)

        return first_fooling(partial(errs, model), objective, x, y, setting, budget)

    return run


def auto_pgd_on_head(setting: Setting, budget: Budget, head: int, loss: str) -> Run:
    """U1: APGD-CE or APGD-T on auxiliary head l alone; every iterate is judged by the final one."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def look(z: Tensor) -> tuple[Tensor, Tensor | None]:
            final, *auxiliary = every_logits(model, z)
            return auxiliary[head], final

        return apgd(Surrogate(partial(errs, model), look), x, y, setting, budget, loss)

    return run


class HeadAlone(nn.Module):
    """x -> a_l(x), the logits of auxiliary head l, for attacks that take a network."""

    def __init__(self, model: nn.Module, head: int) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return every_logits(self.model, x)[1 + self.head]


def fab_on_head(setting: Setting, budget: Budget, head: int) -> Run:
    """U1: FAB-T on auxiliary head l: the least change that crosses its boundary."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack.fab_pt import FABAttack_PT

        attack: Any = FABAttack_PT(
            HeadAlone(model, head),
            n_restarts=1,
            n_iter=budget.fab_steps,
            eps=float(setting.eps),
            seed=setting.seed,
            norm="Linf",
            verbose=False,
            device=x.device,
        )
        attack.targeted = True
        attack.n_target_classes = budget.classes(setting)
        return attack.perturb(x, y)

    return run


def joint(setting: Setting, budget: Budget, beta: float, loss: str) -> Run:
    """U2: max L(f(x'), y) + beta mean_l L(a_l(x'), y), L = CE or DLR."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def objective(z: Tensor, rows: Tensor) -> Seen:
            final, *auxiliary = every_logits(model, z)
            apart = [LOSSES[loss](each, y[rows]) for each in auxiliary]
            return Seen(LOSSES[loss](final, y[rows]) + beta * _mean(apart), final)

        return first_fooling(partial(errs, model), objective, x, y, setting, budget)

    return run


def softened(
    setting: Setting, budget: Budget, loss: str, gating: Literal["soft", "straight"]
) -> Run:
    """U3: max CE or margin of f with the gate softmax(a) W; or backwards only (BPDA).

    ``straight`` is Athalye et al.'s backward pass differentiable approximation, arXiv 1802.00420:
    what goes forward is the plain network.
    """

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def objective(z: Tensor, rows: Tensor) -> Seen:
            with _declared(model).gating(gating):
                logits = model(z)
            return Seen(LOSSES[loss](logits, y[rows]))

        return first_fooling(partial(errs, model), objective, x, y, setting, budget)

    return run


def class_pinned(setting: Setting, budget: Budget) -> Run:
    """U4: for each other class t, min CE(f_t(x'), t) + mean_l CE(a_l(x'), t), gates at W[t] in f_t.

    With the gate pinned the network is differentiable throughout; where the attack succeeds, the
    auxiliary heads choose that very gate. An image's classes are taken in the order of its clean
    logits, ``budget.targets`` of them.
    """

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        judge = partial(errs, model)
        with torch.no_grad():
            classes = others(model(x), y)
        found = x.detach().clone()
        rows = torch.arange(len(x), device=x.device)
        for rank in range(budget.classes(setting)):
            if not len(rows):
                break
            target = classes[rows, rank]
            found[rows] = first_fooling(
                judge, _toward(model, target), x[rows], y[rows], setting, budget
            )
            rows = rows[~judge(found[rows], y[rows])]
        return found

    return run


def _toward(model: nn.Module, target: Tensor) -> Any:
    def objective(z: Tensor, rows: Tensor) -> Seen:
        aim = target[rows]
        with _declared(model).pinned(aim):
            final, *auxiliary = every_logits(model, z)
        return Seen(-cross_entropy(final, aim) - _mean([cross_entropy(a, aim) for a in auxiliary]))

    return objective


def true_pinned(setting: Setting, budget: Budget, loss: str) -> Run:
    """U5: max CE or margin of f with its gates at W[y], as in training."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def objective(z: Tensor, rows: Tensor) -> Seen:
            with _declared(model).pinned(y[rows]):
                return Seen(LOSSES[loss](model(z), y[rows]))

        return first_fooling(partial(errs, model), objective, x, y, setting, budget)

    return run


def _declared(model: nn.Module) -> Any:
    return heads(model)


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()
