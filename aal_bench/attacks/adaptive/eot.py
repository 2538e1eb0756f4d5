"""Expectation over transformation (EOT): attacks on networks whose forward draws numbers.

Athalye et al. 2018, arXiv 1707.07397 and 1802.00420. One draw's gradient points where that draw is
weak; the mean over draws where the network is. A verdict is the majority of as many draws; the
attacks that are not made for such networks stop at the first draw that errs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aal_bench.attacks.adaptive.search import Objective, Seen
from aal_bench.attacks.linf import input_gradient

TOLERANCE = 1e-4
"""Relative L2 change of an image's logits; what differs by less is arithmetic, not chance."""


@torch.no_grad()
def is_random(model: nn.Module, x: Tensor, times: int = 3) -> bool:
    """Whether `model`, as it is, gives other logits for the same images x (B,C,H,W).

    Torch's generator goes on from call to call, as it does for whoever calls the network.
    """
    first = model(x)
    scale = first.norm(dim=1).clamp_min(1e-12)
    return any(
        bool(((model(x) - first).norm(dim=1) > TOLERANCE * scale).any()) for _ in range(times - 1)
    )


def averaged(objective: Objective, samples: int) -> Objective:
    """The objective's mean over `samples` draws; (d/dx') is the mean of their gradients.

    One draw's graph is held at a time, so memory does not grow with `samples`. What is returned as
    loss is <x', mean gradient>, which has that gradient; it says nothing of single draws' logits.
    """

    def mean(x: Tensor, rows: Tensor) -> Seen:
        point = x.detach()
        total = sum(
            (input_gradient(lambda z: objective(z, rows).loss, point) for _ in range(samples)),
            start=torch.zeros_like(point),
        )
        return Seen((x * (total / samples)).sum())

    return mean


@torch.no_grad()
def majority_errs(model: nn.Module, x: Tensor, y: Tensor, samples: int) -> Tensor:
    """Where more than half of `samples` draws err on x (B,C,H,W), (B,) bool.

    Not "any draw": a network that errs once in twenty would have no accuracy left at all, attacked
    or not.
    """
    wrong = sum(
        ((model(x).argmax(1) != y).int() for _ in range(samples)), start=torch.zeros_like(y)
    )
    return 2 * wrong > samples
