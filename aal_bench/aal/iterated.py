"""Selective PGD: on delta with the mask fixed, or with the mask renewed at every iterate (A5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from aal_bench.aal.attention import SpatialGate
from aal_bench.aal.backtracking import associative_attention
from aal_bench.aal.gradients import clip, full_precision
from aal_bench.aal.options import Selective
from aal_bench.aal.selective import Association, attacked, image_mask, perturbation, select

Objective = Callable[[Tensor], Tensor]
"""x' -> the loss summed over the batch, a scalar."""


class ProjectedGradient(Protocol):
    """The project's one PGD, passed in: ``attacks.linf.linf_pgd``."""

    def __call__(
        self,
        objective: Objective,
        x: Tensor,
        start: Tensor,
        eps: Tensor,
        alpha: Tensor,
        steps: int,
        *,
        gradient: Tensor | None = None,
    ) -> Tensor: ...


def selective_pgd(
    pgd: ProjectedGradient,
    objective: Objective,
    x: Tensor,
    association: Association,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int,
    options: Selective,
    start: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """PGD on delta with the mask fixed: PGD in the box |eta| <= eps K with step alpha K.

    (sign(K g) = sign(g) for K > 0.) Costs `steps` passes, one less with `gradient`.

    Args:
        pgd: ``attacks.linf.linf_pgd``.
        objective: what is maximised; minimised with sign = descent.
        x: clean images (B,C,H,W).
        association: of the clean pass.
        eps: the unmasked budget.
        alpha: the unmasked step.
        steps: number of iterations.
        options: the switches.
        start: x' to start from, inside the masked box (A14); None: x.
        gradient: of `objective` at the start where it is known, e.g. ``association.g``.

    Returns:
        x' (B,C,H,W), without graph unless ``detach_mask`` is false.
    """
    K = association.K.detach()
    upward = objective
    if options.sign == "descent":
        upward = _negated(objective)
        gradient = None if gradient is None else -gradient
    start = x if start is None else start
    x_adv = pgd(upward, x, start, eps * K, alpha * K, steps, gradient=gradient)
    return x_adv if options.detach_mask else through_mask(x.detach(), x_adv, association.K)


def through_mask(x: Tensor, x_adv: Tensor, K: Tensor) -> Tensor:
    """`x_adv` again, with the graph dx'/dK = delta wherever the image's box does not bind."""
    eta = x_adv - x
    constant = K.detach()
    delta = torch.where(constant > 0, eta / constant.clamp_min(torch.finfo(K.dtype).tiny), 0)
    free = (x_adv > 0) & (x_adv < 1)
    return x_adv + torch.where(free, delta, 0) * (K - constant)


class _Iterate(NamedTuple):
    delta: Tensor
    mask: Tensor
    K: Tensor


def selective_pgd_refreshed(
    objective: Objective,
    gate: SpatialGate,
    x: Tensor,
    association: Association,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int,
    options: Selective,
    xi1: float | Tensor,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A5's alternative: M, the changes of delta and M, M^a and K anew at every iterate.

    Violates "M from clean images"; costs the same `steps` passes with one more gradient output.
    Arguments as in `selective_pgd`; the objective runs the network that holds `gate`.
    """
    x = x.detach()
    K = association.K.detach()
    delta = torch.zeros_like(x)
    if start is not None:
        delta = torch.where(K > 0, (start - x) / K.clamp_min(torch.finfo(K.dtype).tiny), 0)
    now = _Iterate(delta, association.M.detach(), K)
    for _ in range(steps):
        x_adv = attacked(x, select(now.K.detach(), now.delta))
        g, g_mask, mask = _gradients(objective, gate, x_adv, keep_graph=not options.detach_mask)
        delta = clip(now.delta + perturbation(g, alpha, options.sign), eps)
        before = (now.delta, now.mask.detach())
        found = associative_attention(mask, g_mask, g, delta, options, xi1, before)
        now = _Iterate(delta, mask, image_mask(found, x, options, generator))
    return attacked(x, select(now.K, now.delta))


def _gradients(
    objective: Objective, gate: SpatialGate, x_adv: Tensor, keep_graph: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x_adv = x_adv.detach().requires_grad_()
    with torch.enable_grad(), gate.reading() as reading:
        loss = objective(x_adv)
    g, g_mask = torch.autograd.grad(loss, (x_adv, reading.M), retain_graph=keep_graph)
    mask = full_precision(reading.M if keep_graph else reading.M.detach())
    return full_precision(g), full_precision(g_mask), mask


def _negated(objective: Objective) -> Objective:
    return lambda x_adv: -objective(x_adv)
