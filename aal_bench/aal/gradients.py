"""What is done to a gradient before it is used: its sign, its scale. Shapes are kept."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def full_precision(value: Tensor) -> Tensor:
    """`value` in float32 when it is half precision, else unchanged (float64 stays)."""
    return value.float() if value.dtype in HALF else value


def surfacing_sign(g: Tensor) -> Tensor:
    """Sign of `g` in at least float32, and NaN where `g` is NaN or infinite.

    ``torch.sign`` maps NaN to 0 (and inf to 1): a broken gradient would look like a pixel that
    needs no attack, and a broken model would look robust.
    """
    g = full_precision(g)
    return g.sign().masked_fill_(~g.isfinite(), torch.nan)


def clip(value: Tensor, limit: float | Tensor) -> Tensor:
    """`value` clipped to [-limit, limit], a float or a tensor that broadcasts; NaN stays NaN."""
    return value.clamp(-limit, limit)  # pyright: ignore[reportCallIssue, reportArgumentType]


def per_image_maxabs(g: Tensor) -> Tensor:
    """`g` (B,...) divided by each image's largest magnitude; an all-zero image stays zero."""
    largest = g.abs().flatten(1).amax(1).view(-1, *[1] * (g.dim() - 1))
    return g / largest.masked_fill(largest == 0, 1)
