"""What replaces the mask, or the attack, at an equal budget: the claim is judged against these.

Each mask takes K (B,1,H,W) in [0, 1] and gives K' of the same shape and range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aal_bench.aal.options import Control


def const_mask_matched_mean(K: Tensor) -> Tensor:
    """One value per image: its own mean budget without any place."""
    return K.mean((1, 2, 3), keepdim=True).expand_as(K)


def full_mask_eps_scaled(K: Tensor) -> Tensor:
    """One value for the whole batch: the unmasked attack at eps times the mean budget.

    The only control that looks across the batch, as one eps for all images is its point.
    """
    return K.mean().expand_as(K)


def shuffled_mask(K: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each image's own values at random places: the distribution without the place."""
    flat = K.flatten(1)
    order = torch.rand(flat.shape, generator=generator, device=K.device).argsort(1)
    return flat.gather(1, order).view_as(K)


def random_mask(K: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise, drawn towards 0 or 1 until each image's mean is that of K."""
    mean = K.mean((1, 2, 3), keepdim=True)
    noise = torch.empty_like(K).uniform_(generator=generator)
    centre = noise.mean((1, 2, 3), keepdim=True)
    below, above = noise * (mean / centre), 1 - (1 - noise) * ((1 - mean) / (1 - centre))
    return torch.where(mean <= centre, below, above)


def gaussian_noise(x: Tensor, x_adv: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return x + noise N(0, 1), scaled per image to ||x' - x||_2: an attack's size, no aim.

    The noise is scaled before it is clipped to [0, 1], which takes some of its norm; its Linf norm
    is larger than eps.
    """
    noise = torch.empty_like(x).normal_(generator=generator)
    wanted, own = ((v.flatten(1).norm(dim=1)) for v in (x_adv - x, noise))
    return (x + noise * (wanted / own)[:, None, None, None]).clamp(0, 1)


def controlled(K: Tensor, control: Control, generator: torch.Generator | None = None) -> Tensor:
    """K as the option `control` replaces it; ``none`` leaves it, and so does ``gaussian_noise``.

    Raises:
        ValueError: ``no_gate`` or ``no_attack``, which have no mask to replace.
    """
    if control in {"none", "gaussian_noise"}:
        return K
    if control == "const_mask_matched_mean":
        return const_mask_matched_mean(K)
    if control == "full_mask_eps_scaled":
        return full_mask_eps_scaled(K)
    if control == "shuffled_mask":
        return shuffled_mask(K, generator)
    if control == "random_mask":
        return random_mask(K, generator)
    raise ValueError(f"control = '{control}' has no mask: no gate, or no attack")
