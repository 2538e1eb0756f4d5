"""The kernels k(M) of Eq. 2, their slopes, and the way between mask and image resolution (A8)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from aal_bench.aal.options import Kernel


def kernel(mask: Tensor, name: Kernel) -> Tensor:
    """k(M) of Eq. 2: share of eps per pixel; any shape, [0, 1] -> [0, 1]."""
    if name == "m":
        return mask
    squared = mask * mask
    return squared if name == "m2" else 1 - squared


def slope(mask: Tensor, name: Kernel) -> Tensor:
    """dk/dM at `mask`: 1, 2M or -2M. Its sign is why the exact coupling flips for 1 - M*M (A4)."""
    if name == "m":
        return torch.ones_like(mask)
    return 2 * mask if name == "m2" else -2 * mask


def upsample(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """`mask` (B,1,h,w) bilinearly at `size` = (H,W); itself where nothing changes."""
    if mask.shape[-2:] == size:
        return mask
    return F.interpolate(mask, size=size, mode="bilinear", align_corners=False)


def repeat(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """`mask` (B,1,h,w) by nearest neighbour at `size` = (H,W): each entry covers its own cell."""
    return mask if mask.shape[-2:] == size else F.interpolate(mask, size=size, mode="nearest")


def pool(field: Tensor, size: tuple[int, int], how: str = "sum") -> Tensor:
    """`field` (B,C,H,W) per cell of a mask of `size` = (h,w).

    ``sum`` is the adjoint of `repeat`: what a mask entry's gradient is when it acts on all pixels
    of its cell, also where H is no multiple of h. ``mean`` divides by the cell's pixel count.
    """
    total = _adjoint(field, size, "nearest")
    return total if how == "sum" else total / _adjoint(torch.ones_like(field), size, "nearest")


def upsample_adjoint(field: Tensor, size: tuple[int, int]) -> Tensor:
    """Adjoint of `upsample`: d<field, upsample(M)>/dM for M of `size`; (B,C,H,W) -> (B,C,h,w)."""
    return _adjoint(field, size, "bilinear")


def _adjoint(field: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if field.shape[-2:] == size:
        return field
    with torch.enable_grad():
        origin = field.new_zeros(*field.shape[:2], *size).requires_grad_()
        resized = F.interpolate(origin, size=field.shape[-2:], mode=mode)
    return torch.autograd.grad(resized, origin, field)[0]
