"""Eqs. 5-14: from the clean mask M to the associative mask M^a. Everything is per image.

Shapes: mask, g_mask, M^a (B,1,h,w); g = dG/d(delta) and the perturbation (B,C,H,W). The paper
writes single-channel square matrices; here the channels are summed and H x W is brought to h x w
as A8 says. No function here differentiates the network: g and g_mask come from one backward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aal_bench.aal.gradients import per_image_maxabs
from aal_bench.aal.kernels import pool, repeat, slope, upsample, upsample_adjoint
from aal_bench.aal.options import Gamma, Kernel, Pooling, Ratio, Selective, Trigger

GUARD = 1e-5
"""In the denominator of the change ratio, as in CoGD's own code (A5)."""


def total_step(
    mask: Tensor, g_mask: Tensor, g_through: Tensor, xi1: float | Tensor, xi2: float
) -> Tensor:
    """Eq. 5: M - xi1 dG/dM - xi2 dG(delta)/dM, the latter (B,1,h,w): one trace per mask entry."""
    return mask - xi1 * g_mask - xi2 * g_through


def decoupled_gradient(g: Tensor, mask: Tensor) -> Tensor:
    """Eq. 6 elementwise and without the transpose (A3): G^ = g / M, mask of g's resolution."""
    return g / mask


def coupling_integrand(g: Tensor, ratio: Tensor) -> Tensor:
    """Eq. 7 before its sum: M o G^ o d(delta)/dM = g o ratio, in which M cancels (A3)."""
    return g * ratio


def row_coupling(cells: Tensor, mask: Tensor) -> Tensor:
    """Eqs. 8-11 as stacked in Eq. 13: gamma_m = sum_n <G^, d(delta)/dM>_mn, times the row M_m.

    Args:
        cells: the integrand of Eq. 7 per mask cell, (B,1,h,w).
        mask: M (B,1,h,w).
    """
    return decoupled_gradient(cells, mask).sum(-1, keepdim=True) * mask


def transposed_row_coupling(g: Tensor, ratio: Tensor, mask: Tensor) -> Tensor:
    """`row_coupling` with Eq. 6's transpose kept: G^ = g^T / M; square maps (B,C,h,h) only."""
    inner = decoupled_gradient(g.mT, mask) * ratio
    return inner.sum((1, -1)).unsqueeze(1).unsqueeze(-1) * mask


def matrix_coupling(g: Tensor, ratio: Tensor, mask: Tensor) -> Tensor:
    """Eq. 6 with '/M' as the matrix inverse: G^ = M^-1 g^T, gamma = sum_c G^_c o ratio_c.

    The pseudo-inverse stands in: a gate at its own initialisation is constant, of rank one.
    """
    inverse = torch.linalg.pinv(mask)
    return ((inverse @ g.mT) * ratio).sum(1, keepdim=True) * mask


def exact_coupling(g: Tensor, delta: Tensor, mask: Tensor, kernel: Kernel) -> Tensor:
    """A4: d/dM G(x + up(k(M)) o delta) = k'(M) o up^T(sum_c delta_c g_c), exact to first order."""
    cells = upsample_adjoint((delta * g).sum(1, keepdim=True), _size(mask))
    return slope(mask, kernel) * cells


def change_ratio(change: Tensor, mask_change: Tensor, how: Ratio) -> Tensor:
    """A5: d(delta)/dM approximated by the change of delta over the change of M.

    Args:
        change: of the perturbation, (B,C,H,W).
        mask_change: of the mask at the same resolution, (B,1,H,W).
        how: ``signed_clip1`` in [-1, 1], ``abs_clip1`` its modulus, ``one``, or ``raw``: unclipped
            and unguarded but for an exactly unchanged mask, over which nothing can be divided.

    Returns:
        (B,C,H,W).
    """
    if how == "one":
        return torch.ones_like(change)
    if how == "raw":
        return change / mask_change.masked_fill(mask_change == 0, torch.finfo(change.dtype).tiny)
    guard = torch.where(mask_change < 0, -GUARD, GUARD).to(mask_change.dtype)
    ratio = (change / (mask_change + guard)).clamp(-1, 1)
    return ratio.abs() if how == "abs_clip1" else ratio


class Change(NamedTuple):
    """What Eq. 13 couples: gradient, perturbation, and how both moved."""

    g: Tensor
    """dG/d(delta), (B,C,H,W)."""
    delta: Tensor
    """The perturbation, (B,C,H,W)."""
    delta_change: Tensor
    """Its change; equal to `delta` when the clean image is where it comes from."""
    mask_change: Tensor
    """Change of M, (B,1,h,w)."""


def coupling(
    mask: Tensor,
    change: Change,
    gamma: Gamma = "elementwise",
    ratio: Ratio = "signed_clip1",
    kernel: Kernel = "m2",
    pooling: Pooling = "sum",
) -> Tensor:
    """Gamma o M of Eq. 13 in the reading `gamma` (A2-A4), (B,1,h,w).

    ``elementwise`` is exact where delta_ij depends on M_ij only.

    Raises:
        ValueError: ``row_T`` and ``matrix`` transpose the image, which must be square.
    """
    if gamma == "none":
        return torch.zeros_like(mask)
    size, how = _size(mask), "mean" if pooling == "mean" else "sum"
    g, delta, moved = change.g, change.delta, change.delta_change
    if gamma == "exact_mask":
        return exact_coupling(g, delta, mask, kernel)
    r = change_ratio(moved, repeat(change.mask_change, _size(g)), ratio)
    if gamma in {"elementwise", "row"}:
        cells = pool(coupling_integrand(g, r).sum(1, keepdim=True), size, how)
        return cells if gamma == "elementwise" else row_coupling(cells, mask)
    if mask.shape[-1] != mask.shape[-2]:
        raise ValueError(f"gamma = '{gamma}' transposes the mask: it needs square images")
    form = transposed_row_coupling if gamma == "row_T" else matrix_coupling
    return form(pool(g, size, how), pool(r, size, "mean"), mask)


def descend(mask: Tensor, g_mask: Tensor, xi1: float | Tensor) -> Tensor:
    """Eq. 12: M^ = M - xi1 dG/dM."""
    return mask - xi1 * g_mask


def backtrack(descended: Tensor, coupled: Tensor, xi2: float) -> Tensor:
    """Eq. 13: P = M^ - xi2 gamma o M, with `coupled` = gamma o M."""
    return descended - xi2 * coupled


def severity(
    g: Tensor, size: tuple[int, int], trigger: Trigger = "top_frac", how: str = "sum"
) -> Tensor:
    """How severely each mask cell is perturbed: sum_c |g_c|, or signed (A9); (B,1,h,w)."""
    per_pixel = g if trigger == "signed" else g.abs()
    return pool(per_pixel.sum(1, keepdim=True), size, how)


def triggered(severe: Tensor, trigger: Trigger, zeta: float) -> Tensor:
    """R(dG/d(delta)) > zeta of Eq. 14 (A9): a bool mask like `severe` (B,1,h,w), per image.

    ``top_frac`` and ``signed`` take the round(zeta h w) most severe cells; cells that tie with the
    last of them are in, so that the choice depends on values alone.
    """
    flat = severe.flatten(1)
    cells = flat.shape[1]
    if trigger == "all":
        return torch.ones_like(severe, dtype=torch.bool)
    if trigger == "value_gt":
        return severe > zeta
    if trigger == "rank_gt":
        rank = flat.argsort(stable=True).argsort(stable=True) + 1
        return (rank > zeta * cells).view_as(severe)
    if trigger == "minmax_gt":
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        return (flat - low > zeta * (high - low)).view_as(severe)
    count = round(zeta * cells)
    if count == 0:
        return torch.zeros_like(severe, dtype=torch.bool)
    return (flat >= flat.topk(count, dim=1).values[:, -1:]).view_as(severe)


def associate(
    trigger: Tensor, backtracked: Tensor, descended: Tensor, clamp: tuple[float, float] = (0, 1)
) -> Tensor:
    """Eq. 14: M^a = P where triggered, else M^, clamped (A12)."""
    return torch.where(trigger, backtracked, descended).clamp(*clamp)


class Associated(NamedTuple):
    """The descended and the associative mask, of one resolution."""

    Mhat: Tensor
    """Eq. 12, (B,1,h,w), or (B,1,H,W) with pooling = image."""
    Ma: Tensor
    """Eq. 14, same shape."""


def associative_attention(
    mask: Tensor,
    g_mask: Tensor,
    g: Tensor,
    delta: Tensor,
    options: Selective,
    xi1: float | Tensor,
    before: tuple[Tensor, Tensor] | None = None,
) -> Associated:
    """Eqs. 12-14 in order, under `options`.

    The result carries the graph of `mask` (through M itself; both steps are constants to it).

    Args:
        mask: M (B,1,h,w).
        g_mask: dG/dM (B,1,h,w).
        g: dG/d(delta) (B,C,H,W).
        delta: the perturbation (B,C,H,W).
        options: the switches.
        xi1: step of Eq. 12.
        before: the previous iterate's (delta, M) for A5's refresh; None: zero, and M^ against M.
    """
    severe_g = g
    if options.grad_norm == "maxabs":
        g, g_mask = per_image_maxabs(g), per_image_maxabs(g_mask)
    Mhat = descend(mask, g_mask, xi1)
    moved = delta if before is None else delta - before[0]
    mask_change = (Mhat if before is None else mask).detach()
    mask_change = mask_change - (mask.detach() if before is None else before[1])
    if options.pooling == "image":
        mask, Mhat, mask_change = (upsample(value, _size(g)) for value in (mask, Mhat, mask_change))
    coupled = coupling(
        mask.detach(),
        Change(g, delta, moved, mask_change),
        options.gamma,
        options.ratio,
        options.kernel,
        options.pooling,
    )
    how = "mean" if options.pooling == "mean" else "sum"
    severe = severity(severe_g, _size(mask), options.trigger, how)
    trigger = triggered(severe, options.trigger, options.zeta)
    return Associated(
        Mhat, associate(trigger, backtrack(Mhat, coupled, options.xi2), Mhat, options.clamp_mask)
    )


def _size(field: Tensor) -> tuple[int, int]:
    return field.shape[-2], field.shape[-1]
