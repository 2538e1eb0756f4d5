"""The one PGD of the project, its starts, and the state a model is in while it is attacked.

FGSM, RS-FGSM, PGD, the KL attack of TRADES, early-stopped and per-sample budgets are all
`linf_pgd` with another objective, start, eps, alpha or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from aal_bench.aal.gradients import clip, full_precision, surfacing_sign

Objective = Callable[[Tensor], Tensor]
"""x' (B,C,H,W) -> the sum over the batch of what is to be maximised, a scalar."""


def linf_pgd(
    objective: Objective,
    x: Tensor,
    start: Tensor,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int | Tensor,
    active: Callable[[int, Tensor], Tensor] | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Maximise `objective` over |x' - x| <= eps and x' in [0, 1] by signed gradient steps.

    x' <- clip(x + clip(x' + alpha sign(g) - x, -eps, eps), 0, 1). One forward and one backward
    pass to the input per step; no synchronisation with the host inside the loop. eps = 0 returns
    x exactly. A NaN or infinite gradient makes its pixel NaN, so it cannot pass for robustness.

    Args:
        objective: a sum, not a mean, so that a sample's gradient does not depend on the batch.
        x: clean images (B,C,H,W) in [0, 1].
        start: first iterate; returned as it is where a sample takes no step.
        eps: budget, >= 0; a float, or a tensor that broadcasts to x: (B,1,1,1) per sample,
            (B,1,H,W) per pixel.
        alpha: step size, likewise.
        steps: iterations, or a LongTensor (B,): a sample that reached its count keeps its iterate
            while the others go on.
        active: called as ``active(step, x_adv)`` after the objective was evaluated at x_adv (so
            it may use what the objective saw there); a bool mask (B,) of the samples that step.
        gradient: of the objective at `start`, if known: the first step then costs no pass, and
            `objective` is not called in it.

    Returns:
        x' (B,C,H,W) without graph.
    """
    x, x_adv = x.detach(), start.detach()
    counts = steps if isinstance(steps, Tensor) else None
    total = int(steps.max()) if isinstance(steps, Tensor) else steps
    for step in range(total):
        known = gradient if step == 0 else None
        g = input_gradient(objective, x_adv) if known is None else known.detach()
        moved = x_adv + alpha * surfacing_sign(g)
        moved = (x + clip(moved - x, eps)).clamp(0, 1)
        moving = _moving(step, x_adv, counts, active)
        x_adv = moved if moving is None else torch.where(moving[:, None, None, None], moved, x_adv)
    return x_adv


def input_gradient(objective: Objective, x: Tensor) -> Tensor:
    """Gradient of `objective` at `x` (B,C,H,W), at least float32; no other gradient is computed."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = objective(x)
    return full_precision(torch.autograd.grad(value, x)[0])


def _moving(
    step: int,
    x_adv: Tensor,
    counts: Tensor | None,
    active: Callable[[int, Tensor], Tensor] | None,
) -> Tensor | None:
    due = None if counts is None else step < counts
    if active is None:
        return due
    willing = active(step, x_adv)
    return willing if due is None else due & willing


def uniform_start(
    x: Tensor, eps: float | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return x + U(-eps, eps) per pixel, clipped to the box; eps as in `linf_pgd`."""
    return (x + eps * torch.empty_like(x).uniform_(-1, 1, generator=generator)).clamp(0, 1)


def gaussian_start(
    x: Tensor, std: float = 0.001, generator: torch.Generator | None = None
) -> Tensor:
    """Return x + std N(0, 1) per pixel, clipped to the box: the start of TRADES, MART and AGAIN."""
    return (x + std * torch.empty_like(x).normal_(generator=generator)).clamp(0, 1)


@contextmanager
def attacking(
    model: nn.Module, bn: Literal["eval", "train"] = "eval", weight_graph: bool = False
) -> Iterator[None]:
    """The state of `model` while adversarial images are made, undone on exit and on errors.

    Every module is in `bn` mode; gradients are enabled whatever the caller disabled; the weights
    require none, so no pass computes theirs and ``.grad`` stays as it is. In ``train`` mode the
    attack's passes use batch statistics AND move the running ones, as the official code of the
    methods that craft so does. On exit every module's own training flag (a batch norm frozen
    inside a training model included) and every parameter's own ``requires_grad`` come back.

    Args:
        model: the network.
        bn: mode of all its modules.
        weight_graph: keep the parameters' ``requires_grad``, for a mask that is not detached (A10).

    Raises:
        ValueError: `bn` is neither mode.
    """
    if bn not in {"eval", "train"}:
        raise ValueError(f"bn = {bn!r}: the attack's batch-norm mode is 'eval' or 'train'")
    modes = [(module, module.training) for module in model.modules()]
    needs = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        model.train(bn == "train")
        if not weight_graph:
            for weight, _ in needs:
                weight.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, needed in needs:
            weight.requires_grad_(needed)
