"""T2-T5: attacks on networks with a spatial gate, which an attack can avoid, divert or hide from.

The gates are those of associative adversarial learning (arXiv 2112.13989) and of CBAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aal_bench.aal.kernels import kernel as kernelled
from aal_bench.aal.kernels import upsample
from aal_bench.aal.options import Kernel
from aal_bench.attacks.adaptive.budget import Budget, Setting
from aal_bench.attacks.adaptive.declared import gates
from aal_bench.attacks.adaptive.losses import LOSSES, cross_entropy
from aal_bench.attacks.adaptive.plain import Run, final
from aal_bench.attacks.adaptive.search import Seen, errs, first_fooling
from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start


def masks_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """M (B,1,h,w) of every gate at x (B,C,H,W), without graph; one forward."""
    with torch.no_grad(), _reading(model) as readings:
        model(x)
    return [reading.M.detach() for reading in readings]


def held(setting: Setting, budget: Budget, loss: str, value: float | None) -> Run:
    """T2: max CE or margin of the network whose gate stands still; judged on the one whose moves.

    The gate is held at its clean mask M(x) without graph, or at `value`: no gradient is lost in it,
    and none misleads through it. One forward more than PGD, for M(x).
    """

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        masks = masks_of(model, x) if value is None else []

        def objective(z: Tensor, rows: Tensor) -> Seen:
            with ExitStack() as stack:
                for place, gate in enumerate(gates(model)):
                    fixed = masks[place][rows] if value is None else value
                    stack.enter_context(gate.pinned(fixed))
                return Seen(LOSSES[loss](model(z), y[rows]))

        return first_fooling(partial(errs, model), objective, x, y, setting, budget)

    return run


def diverted(setting: Setting, budget: Budget, weight: float, toward: bool = False) -> Run:
    """T3: max CE(f(x'), y) + lambda ||M(x') - M(x)||^2; or - lambda ||M(x') - M(x_j)||^2.

    With `toward`, x_j is the next image of the batch (of a single image, its own mask mirrored).
    The norm is the sum over the mask's pixels and over the gates. One forward more than PGD.
    """

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        masks = masks_of(model, x)
        goals = [_another(mask) for mask in masks] if toward else masks
        sign = -1 if toward else 1

        def objective(z: Tensor, rows: Tensor) -> Seen:
            with _reading(model) as readings:
                logits = model(z)
            moved = sum(
                (reading.M - goal[rows]).square().sum()
                for reading, goal in zip(readings, goals, strict=True)
            )
            return Seen(cross_entropy(logits, y[rows]) + sign * weight * moved, logits)

        return first_fooling(partial(errs, model), objective, x, y, setting, budget)

    return run


def partly(setting: Setting, budget: Budget, where: Literal["background", "foreground"]) -> Run:
    """T4: max CE with eps on the pixels whose mask is below, or not below, the image's median.

    Kernels rise or fall with M, so the two halves are those of every k(M): it need not be known.
    The mask is the first gate's at x, at image resolution. One forward more than PGD.
    """

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        mask = upsample(masks_of(model, x)[0], (x.shape[2], x.shape[3]))
        behind = mask < mask.flatten(1).median(1).values[:, None, None, None]
        chosen = behind if where == "background" else ~behind
        eps = chosen.to(x.dtype) * float(setting.eps)
        return first_fooling(
            partial(errs, model), final(model, y, "ce"), x, y, setting, budget, eps
        )

    return run


def masked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    setting: Setting,
    kind: Literal["fgsm", "pgd"] = "fgsm",
    kernel: Kernel = "m2",
    steps: int = 10,
) -> Tensor:
    """T5: the attack that is masked by the network's own gate; a diagnostic, never robustness.

    max CE over |x' - x| <= eps k(M(x)): what survives it was attacked with a part of eps, which the
    network chose itself. It has no place in a worst case, since every x' of it lies in a smaller
    ball than the claim's.

    Args:
        model: a network with a gate; the first one masks.
        x: images (B,C,H,W) in [0, 1].
        y: labels (B,).
        setting: eps and, for ``pgd``, the task's step, which is masked too.
        kind: one step of eps from x, or `steps` from a uniform start.
        kernel: k.
        steps: of ``pgd``.

    Returns:
        x' (B,C,H,W), the last iterate.
    """
    with attacking(model):
        x = x.detach()
        size = (x.shape[2], x.shape[3])
        K = upsample(kernelled(masks_of(model, x)[0], kernel), size).to(x.dtype)
        eps = float(setting.eps) * K
        alpha = eps if kind == "fgsm" else float(setting.step) * K
        start = x if kind == "fgsm" else uniform_start(x, eps)
        return linf_pgd(
            lambda z: cross_entropy(model(z), y),
            x,
            start,
            eps,
            alpha,
            1 if kind == "fgsm" else steps,
        )


@contextmanager
def _reading(model: nn.Module) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(gate.reading()) for gate in gates(model)]


def _another(mask: Tensor) -> Tensor:
    return mask.roll(1, 0) if len(mask) > 1 else mask.flip(-1)
