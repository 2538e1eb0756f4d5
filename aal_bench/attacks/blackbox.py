"""Square (Andriushchenko et al. 2020, arXiv 1912.00049) with any number of queries.

The stage `square` is AutoAttack's and fixed at its 5,000; an audit asks with fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def square(model: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int) -> Tensor:
    """Search the ball for a point that fools `model`, by random squares; logits alone are used.

    Args:
        model: in eval mode.
        x: images (B,3,H,W) in [0, 1], all correct.
        y: labels (B,).
        eps: Linf budget.
        queries: for each image.
        seed: of all draws; torch's own stream goes on as if nothing had been drawn.

    Returns:
        x' (B,3,H,W): what was found, or x where nothing was.
    """
    from pyautoattack.square import SquareAttack

    attack = SquareAttack(
        model,
        norm="Linf",
        n_queries=queries,
        eps=eps,
        n_restarts=1,
        seed=seed,
        device=x.device,
    )
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.no_grad():
        return attack.perturb(x.clone(), y.clone())
