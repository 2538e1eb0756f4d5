"""Colour jitter of a whole batch at once: torchvision's ``ColorJitter(0.4, 0.4, 0.4)``.

Each image has its own three factors and its own order of the three adjustments. Only elementwise
products and sums are used, so that an image's result does not depend on the batch it is in, nor on
the number of threads.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)
STRENGTH = 0.4
"""The factors lie in [1 - STRENGTH, 1 + STRENGTH]."""
ORDERS = torch.tensor(list(permutations((BRIGHTNESS, CONTRAST, SATURATION))))
"""int64 (6, 3): the orders in which the adjustments can follow each other."""
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in torchvision's grey."""
AT_ONCE = 2**18
"""Pixels adjusted together on the CPU: the intermediate results of more leave its cache."""


def draw_jitter(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw factors, float32 (B, 3) in [0.6, 1.4], and orders, int64 (B, 3) rows of ORDERS."""
    factors = torch.empty(count, 3).uniform_(1 - STRENGTH, 1 + STRENGTH, generator=generator)
    return factors, ORDERS[torch.randint(len(ORDERS), (count,), generator=generator)]


def color_jitter_(images: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
    """Adjust brightness, contrast and saturation of each image, in place.

    As ``torchvision.transforms.v2.functional.adjust_*`` on float images: every adjustment blends
    the image with black, with the mean of its grey or with its grey, and clamps to [0, 1].

    Args:
        images: float32 (B, 3, H, W) in [0, 1]; overwritten.
        factors: float32 (B, 3): of brightness, contrast, saturation; 1 changes nothing.
        orders: int64 (B, 3): row b is the order of the adjustments of image b.

    Returns:
        `images`.
    """
    height, width = images.shape[-2:]
    on_cpu = images.device.type == "cpu"
    size = max(1, AT_ONCE // (height * width) if on_cpu else len(images))
    for x, own, order in zip(
        images.split(size), factors.split(size), orders.split(size), strict=True
    ):
        for kind in order.split(1, dim=1):
            _adjust_(x, own.gather(1, kind)[:, :, None], kind[:, :, None])
    return images


def _adjust_(x: Tensor, factor: Tensor, kind: Tensor) -> None:
    """Do one adjustment of each image; `factor` and `kind`: (B, 1, 1)."""
    grey = x[:, 0] * GREY[0]
    grey += x[:, 1] * GREY[1]
    grey += x[:, 2] * GREY[2]
    mean = _mean(grey.flatten(1))[:, :, None]
    rest = 1 - factor
    grey.mul_(rest * (kind == SATURATION)).add_(mean * rest * (kind == CONTRAST))
    x.mul_(factor[:, None]).add_(grey[:, None]).clamp_(0, 1)


def _mean(values: Tensor) -> Tensor:
    """Mean over columns, (B, N) -> (B, 1), by adding halves; Tensor.mean's order can vary."""
    total = values
    while (columns := total.shape[1]) > 1:
        half = columns // 2
        added = total[:, :half] + total[:, columns - half :]
        if columns % 2:
            added[:, 0] += total[:, half]
        total = added
    return total / values.shape[1]
