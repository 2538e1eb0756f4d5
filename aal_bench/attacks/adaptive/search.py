"""PGD and APGD that keep the first iterate by which the plain network errs.

The loss of an adaptive attack is seldom the verdict: a gate is pinned, a head is auxiliary. What
counts is the network as it is evaluated, so it is looked at on the way and not only at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.attacks.adaptive.budget import Budget, Setting
from aal_bench.attacks.linf import linf_pgd, uniform_start


class Seen(NamedTuple):
    """What one pass of an objective gives."""

    loss: Tensor
    """A sum over the images, to be maximised."""
    logits: Tensor | None = None
    """Of the plain network at x', (B,K), where the pass went through it."""


Objective = Callable[[Tensor, Tensor], Seen]
"""(x' (b,C,H,W), rows (b,) of the batch that they are) -> what is seen there."""


Judge = Callable[[Tensor, Tensor], Tensor]
"""(x' (b,C,H,W), labels (b,)) -> where the plain network errs, (b,) bool."""


@torch.no_grad()
def errs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Where the plain network errs on x (B,C,H,W), (B,) bool."""
    return model(x).argmax(1) != y


def first_fooling(
    judge: Judge,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    setting: Setting,
    budget: Budget,
    eps: Tensor | float | None = None,
) -> Tensor:
    """PGD by `budget`, from uniform starts; images (B,C,H,W) at the first iterate that fools.

    One forward and one backward a step, one forward more every ``budget.check`` steps where the
    objective does not pass through the plain network, and one at the end. What stands is attacked
    again from another start, ``budget.restarts`` times in all.

    Args:
        judge: `errs` of the plain network in eval mode; one forward each time.
        objective: what is maximised.
        x: clean images.
        y: labels.
        setting: eps and step.
        budget: steps and restarts.
        eps: another budget than the setting's, a number or per image and pixel, (B,1,H,W).

    Returns:
        x': of an image that stands, the last iterate of the last start.
    """
    radius = torch.as_tensor(float(setting.eps) if eps is None else eps, dtype=x.dtype)
    radius = radius.to(x.device).expand(len(x), 1, *x.shape[2:])
    found = x.detach().clone()
    rows = torch.arange(len(x), device=x.device)
    for _ in range(budget.restarts):
        if not len(rows):
            break
        found[rows] = uniform_start(x[rows], radius[rows])
        rows = _climb(judge, objective, x, y, found, rows, radius, setting, budget)
    return found


def _climb(
    judge: Judge,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    found: Tensor,
    rows: Tensor,
    radius: Tensor,
    setting: Setting,
    budget: Budget,
) -> Tensor:
    """Move ``found[rows]`` in place; the rows that still stand. Fooled ones leave the batch."""
    for begin in range(0, budget.steps, budget.check):
        steps = min(budget.check, budget.steps - begin)
        last = begin + steps == budget.steps
        watch = _Watch(objective, rows, y[rows])
        found[rows] = linf_pgd(
            watch, x[rows], found[rows], radius[rows], float(setting.alpha), steps, watch.standing
        )
        stand = ~watch.fooled
        if last or not watch.plain:
            stand = ~judge(found[rows], y[rows])
        rows = rows[stand]
        if not len(rows):
            break
    return rows


class _Watch:
    """The objective of `rows`, and which of them have fooled the plain network in its passes."""

    def __init__(self, objective: Objective, rows: Tensor, y: Tensor) -> None:
        self.objective, self.rows, self.y = objective, rows, y
        self.fooled = torch.zeros_like(y, dtype=torch.bool)
        self.plain = True

    def __call__(self, x: Tensor) -> Tensor:
        seen = self.objective(x, self.rows)
        if seen.logits is None:
            self.plain = False
        else:
            self.fooled = self.fooled | (seen.logits.detach().argmax(1) != self.y)
        return seen.loss

    def standing(self, _step: int, _x: Tensor) -> Tensor:
        """Those that step on: an image that fools keeps its iterate."""
        return ~self.fooled


class Surrogate(nn.Module):
    """What pyautoattack attacks in place of the network: the logits that `look` gives at x'.

    The plain network's logits of the same pass, where `look` has them, tell the first iterate that
    fools it. All passes between two calls of `watch` are of the images given there, in their order.

    Args:
        judge: `errs` of the plain network.
        look: x' (b,C,H,W) -> (logits to attack, the plain network's or None).
    """

    def __init__(
        self, judge: Judge, look: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    ) -> None:
        super().__init__()
        self.judge, self.look = judge, look
        self.eval()

    def watch(self, x: Tensor, y: Tensor) -> None:
        """Look for what fools from here on; images (b,C,H,W), labels (b,)."""
        self.found, self.y = x.clone(), y
        self.fooled = torch.zeros_like(y, dtype=torch.bool)
        self.plain = True

    def forward(self, x: Tensor) -> Tensor:
        logits, plain = self.look(x)
        if plain is None:
            self.plain = False
        else:
            new = (plain.detach().argmax(1) != self.y) & ~self.fooled
            self.found = torch.where(new[:, None, None, None], x.detach(), self.found)
            self.fooled = self.fooled | new
        return logits


def apgd(
    surrogate: Surrogate,
    x: Tensor,
    y: Tensor,
    setting: Setting,
    budget: Budget,
    loss: str,
    samples: int = 1,
) -> Tensor:
    """APGD (pyautoattack's) on a surrogate; images (B,C,H,W) that fool the plain network if any do.

    Its own ``perturb`` stops where the surrogate errs; here an image stops where the plain network
    does. A run costs ``apgd_steps`` + 1 forwards and backwards of the surrogate times `samples`;
    targeted, one forward more; and two of the plain network where `look` does not pass through it.

    Args:
        surrogate: what is attacked, and the network that judges.
        x: clean images.
        y: labels.
        setting: eps.
        budget: steps; restarts, or on the targeted loss targets.
        loss: ``ce``, ``dlr`` or ``dlr-targeted``.
        samples: forwards that every gradient is the mean of.

    Returns:
        x': of an image that stands, the point of highest loss of the last run.
    """
    targeted = loss == "dlr-targeted"
    attack = _toolkit(surrogate, x, setting, budget, targeted, samples)
    attack.loss = loss
    found = x.detach().clone()
    rows = torch.arange(len(x), device=x.device)
    for run in range(budget.classes(setting) if targeted else budget.apgd_restarts):
        if not len(rows):
            break
        part, labels = x[rows], y[rows]
        surrogate.watch(part, labels)
        if targeted:
            with torch.no_grad():
                attack.y_target = others(surrogate(part), labels)[:, run]
        strongest, _, _, latest = (each.detach() for each in attack.attack_single_run(part, labels))
        found[rows] = strongest
        if surrogate.plain:
            fooled = surrogate.fooled
            found[rows[fooled]] = surrogate.found[fooled]
        else:
            fooled = surrogate.judge(found[rows], labels)
            also = surrogate.judge(latest, labels) & ~fooled
            found[rows[also]] = latest[also]
            fooled = fooled | also
        rows = rows[~fooled]
    return found


def _toolkit(
    surrogate: Surrogate,
    x: Tensor,
    setting: Setting,
    budget: Budget,
    targeted: bool,
    samples: int,
) -> Any:
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    attack = (APGDAttack_targeted if targeted else APGDAttack)(
        surrogate,
        n_iter=budget.apgd_steps,
        eps=float(setting.eps),
        seed=setting.seed,
        eot_iter=samples,
        device=x.device,
        # It announces every zero gradient: what a pinned gate or a flat head may well have.
        logger=logging.getLogger("auto-attack"),
    )
    attack.init_hyperparam(x)
    return attack


def others(logits: Tensor, y: Tensor) -> Tensor:
    """The classes other than y, (B,K-1), the likeliest first."""
    order = logits.detach().argsort(1, descending=True)
    return order[order != y[:, None]].view(len(y), -1)
