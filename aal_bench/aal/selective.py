"""The selective attack: Eqs. 1-3 and the one clean backward pass that gives the mask its place.

A training step is: clean forward with ``gate.reading()``, `associative_mask` (one backward),
`selective_fgsm` or `selective_pgd`, and the training pass in `second_attention`. The mask needs
the label: at test time the model is run plainly.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from aal_bench.aal.attention import SpatialGate
from aal_bench.aal.backtracking import Associated, associative_attention
from aal_bench.aal.controls import controlled
from aal_bench.aal.gradients import full_precision, surfacing_sign
from aal_bench.aal.kernels import kernel, pool, upsample
from aal_bench.aal.options import Selective, Sign

TWO = 2 / 255
"""The step that the text gives for FGSM (A13)."""


class Association(NamedTuple):
    """What one clean pass says about a batch; the last three are 0-dim means for the log."""

    M: Tensor
    """Clean mask, (B,1,h,w)."""
    Ma: Tensor
    """Associative mask, Eq. 14, (B,1,h,w); (B,1,H,W) with pooling = image."""
    K: Tensor
    """up(k(M^a)) or the control in its place, (B,1,H,W) in [0, 1]."""
    g: Tensor
    """Input gradient of the loss at the clean image, (B,C,H,W)."""
    delta: Tensor
    """First perturbation of Eq. 1, (B,C,H,W), without the mask."""
    descended: Tensor
    """mean |M^ - M|."""
    backtracked: Tensor
    """mean |M^a - M^|."""
    budget: Tensor
    """mean K: the share of eps that is spent."""


def perturbation(g: Tensor, step: float | Tensor, sign: Sign = "ascent") -> Tensor:
    """Eq. 1: step * sign(g), or its negative as printed (A1); NaN where `g` is not finite."""
    direction = surfacing_sign(g)
    return step * (direction if sign == "ascent" else -direction)


def select(K: Tensor, delta: Tensor) -> Tensor:
    """Eq. 2: eta = k(M^a) o delta, the mask broadcast over the channels."""
    return K * delta


def attacked(x: Tensor, eta: Tensor) -> Tensor:
    """Eq. 3: x' = clip(x + eta, 0, 1)."""
    return (x + eta).clamp(0, 1)


def fgsm_step(eps: float | Tensor, options: Selective) -> float | Tensor:
    """A13: the first (only) step of FGSM: eps, or 2/255 where that is less."""
    if options.fgsm_step == "eps":
        return eps
    return eps.clamp_max(TWO) if isinstance(eps, Tensor) else min(eps, TWO)


def associative_mask(
    loss: Tensor,
    x: Tensor,
    mask: Tensor,
    options: Selective,
    xi1: float | Tensor,
    step: float | Tensor,
    generator: torch.Generator | None = None,
) -> Association:
    """Eqs. 1 and 12-14 from ONE backward pass of `loss` through the input and the gate.

    Args:
        loss: sum over the batch of the per-sample losses, so that gradients are per sample (A7).
        x: the clean input (B,C,H,W) that requires grad and went through the network.
        mask: the gate's reading M (B,1,h,w) of that forward, with its graph.
        options: the switches.
        xi1: step of Eq. 12, ``options.descent_step(lr)`` (A16).
        step: of the first perturbation: `fgsm_step` for FGSM, alpha for PGD (A5). A float or
            broadcastable to `x`.
        generator: of the random controls.

    Returns:
        Tensors without graph, unless ``detach_mask`` is false: then `loss`'s graph is kept, and
        M, Ma and K carry it (to the weights too, if they required grad in that forward). An
        eval-mode batch norm is differentiated with the running statistics of the moment of the
        backward pass, which the training pass has moved by then: exact with craft_bn = train only.

    Raises:
        ValueError: control = no_gate, which has no mask.
    """
    g, g_mask = torch.autograd.grad(loss, (x, mask), retain_graph=not options.detach_mask)
    if options.reduction == "mean":
        g, g_mask = g / len(x), g_mask / len(x)
    g, g_mask, mask = full_precision(g), full_precision(g_mask), full_precision(mask)
    if options.detach_mask:
        mask = mask.detach()
    delta = perturbation(g, step, options.sign)
    found = associative_attention(mask, g_mask, g, delta, options, xi1)
    K = image_mask(found, g, options, generator)
    return Association(mask, found.Ma, K, g, delta, *_log(mask, found, K))


def image_mask(
    found: Associated, like: Tensor, options: Selective, generator: torch.Generator | None = None
) -> Tensor:
    """K = up(k(M^a)) at `like`'s resolution, clamped to [0, 1], or its control; (B,1,H,W)."""
    K = upsample(kernel(found.Ma, options.kernel), (like.shape[-2], like.shape[-1])).clamp(0, 1)
    return controlled(K, options.control, generator)


def selective_fgsm(x: Tensor, association: Association) -> Tensor:
    """Eqs. 2-3 on the clean gradient: x' = clip(x + K o delta); costs no further pass.

    Differentiable in K, so that ``detach_mask = false`` takes effect.
    """
    return attacked(x.detach(), select(association.K, association.delta))


def second_attention(
    gate: SpatialGate, association: Association, options: Selective
) -> AbstractContextManager[None]:
    """A11: the context of the training pass: the gate recomputed, or M^a or M injected as constant.

    The injected masks know the clean image or the label; a gain from them is a leak until shown
    otherwise.
    """
    if options.second_att == "recompute":
        return nullcontext()
    injected = association.Ma if options.second_att == "inject_Ma" else association.M
    size = association.M.shape[-2:]
    return gate.pinned(pool(injected.detach(), (size[0], size[1]), "mean"))


def _log(mask: Tensor, found: Associated, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mask, Mhat, Ma = mask.detach(), found.Mhat.detach(), found.Ma.detach()
    mask = upsample(mask, (Mhat.shape[-2], Mhat.shape[-1]))
    return (Mhat - mask).abs().mean(), (Ma - Mhat).abs().mean(), K.detach().mean()
