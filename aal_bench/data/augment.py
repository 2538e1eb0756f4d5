"""Augmentation of a whole batch at once, on the device of the images.

The random numbers are drawn on the CPU from a generator of the batch's own, so that a batch is the
same on every device and whether or not the batches before it were made: that is what lets a killed
run resume bit-identically.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aal_bench.data.jitter import color_jitter_, draw_jitter

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
"""torchvision.transforms.RandomResizedCrop: range of area and aspect, and attempts at a fit."""


class Crops(NamedTuple):
    """Where each image of a batch was cut out of its zero-padded original."""

    top: Tensor
    """int64 (B,): the crop's first row in the padded image."""
    left: Tensor
    """int64 (B,): its first column."""
    flip: Tensor
    """int64 (B,) in {0, 1}: mirrored left to right after the crop."""
    pad: int
    """Zero pixels on every side of the original."""


def mixed_seed(seed: int, number: int) -> int:
    """Return 64 well-mixed bits of (`seed`, `number`); stable across numpy versions (NEP 19)."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])


def augment_batch(images: Tensor, augment: str, pad: int, seed: int, batch: int) -> Tensor:
    """Turn uint8 images into augmented float32 ones in [0, 1].

    Args:
        images: uint8 (B, 3, H, W).
        augment: one of ``config.Augment``. ``shift``: a random crop of the zero-padded image;
            ``crop-flip``: that, mirrored with probability 1/2; ``jitter-crop-flip``: that, and
            brightness, contrast and saturation each changed by up to 40 % in random order (the
            augmentation of MetaOptNet, RFS and IER); ``resized-crop-flip``: RandomResizedCrop.
        pad: zero pixels on every side before the random crop of the first three.
        seed: the pass's seed.
        batch: number of the batch in the pass; with `seed` it decides every random number.

    Returns:
        float32 (B, 3, H, W), contiguous, on the device of `images`.
    """
    return augment_with_crops(images, augment, pad, seed, batch)[0]


def augment_with_crops(
    images: Tensor, augment: str, pad: int, seed: int, batch: int
) -> tuple[Tensor, Crops | None]:
    """`augment_batch`, and the crops that were made where cropping and mirroring is all of it."""
    if augment == "none":
        return to_unit(images), None
    generator = torch.Generator().manual_seed(mixed_seed(seed, batch))
    if augment == "resized-crop-flip":
        boxes, flip = draw_boxes(len(images), images.shape[-2:], generator)
        return resized_crop(to_unit(images), _send(boxes, images), _send(flip, images)), None
    if augment not in {"shift", "crop-flip", "jitter-crop-flip"}:
        raise ValueError(f"unknown augmentation {augment!r}")
    top, left, flip = draw_crops(len(images), pad, generator)
    if augment == "shift":
        flip = torch.zeros_like(flip)
    drawn = _send(torch.stack([top, left, flip]), images)
    x = to_unit(padded_crop(images, pad, *drawn))
    if augment == "jitter-crop-flip":
        factors, orders = draw_jitter(len(images), generator)
        color_jitter_(x, _send(factors, images), _send(orders, images))
        return x, None
    return x, Crops(drawn[0], drawn[1], drawn[2], pad)


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as contiguous float32 in [0, 1], by the division that ToTensor does."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _send(drawn: Tensor, like: Tensor) -> Tensor:
    """Copy CPU draws to the device without waiting for it (pinned, or the copy would)."""
    if like.device.type == "cuda":
        drawn = drawn.pin_memory()
    return drawn.to(like.device, non_blocking=True)


def draw_crops(count: int, pad: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the top and left of each crop in [0, 2 pad], and flips in {0, 1}: three int64 (B,)."""
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    return top, left, torch.randint(0, 2, (count,), generator=generator)


def padded_crop(images: Tensor, pad: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Zero-pad, crop each image at its own place and mirror it where `flip`, by one gather.

    Args:
        images: (B, 3, H, W) of any dtype.
        pad: zero pixels on every side.
        top: int64 (B,), the crop's first row in the padded image.
        left: int64 (B,), the crop's first column in the padded image.
        flip: (B,), nonzero: mirror left to right after the crop.
    """
    height, width = images.shape[-2:]
    # All crops there are, as a view: whole rows are copied, not single pixels.
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(flip[:, None, None, None] != 0, crops.flip(3), crops)


def draw_boxes(count: int, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the boxes of RandomResizedCrop, with its distribution, and flips.

    Returns:
        float32 (B, 4) of top, left, height, width in whole pixels; int64 (B,) flips in {0, 1}.
    """
    height, width = shape
    area = torch.empty(count, TRIES).uniform_(*AREA, generator=generator) * height * width
    logs = torch.empty(count, TRIES).uniform_(*map(math.log, RATIO), generator=generator)
    boxes = fit_boxes(area, logs.exp(), torch.rand(2, count, generator=generator), shape)
    return boxes, torch.randint(0, 2, (count,), generator=generator)


def fit_boxes(area: Tensor, ratio: Tensor, where: Tensor, shape: torch.Size) -> Tensor:
    """Choose RandomResizedCrop's boxes: the first attempt of each image that fits.

    Args:
        area: float32 (B, TRIES), in pixels.
        ratio: float32 (B, TRIES), width over height.
        where: float32 (2, B) in [0, 1]: the box's place from top and from left.
        shape: height and width of the images.

    Returns:
        float32 (B, 4) of top, left, height, width in whole pixels.
    """
    height, width = shape
    w = (area * ratio).sqrt().round()
    h = (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.any(1)
    # No attempt fitted: torchvision's fallback, which for a square image is the whole image.
    w = torch.where(found, w.gather(1, first)[:, 0], torch.tensor(float(width)))
    h = torch.where(found, h.gather(1, first)[:, 0], torch.tensor(float(height)))
    # The product can round up to the number of places: the largest is one less.
    top = torch.minimum((where[0] * (height - h + 1)).floor(), height - h)
    left = torch.minimum((where[1] * (width - w + 1)).floor(), width - w)
    return torch.stack([top, left, h, w], 1)


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor) -> Tensor:
    """Crop each image to its own box, stretch it bilinearly to the full size, mirror where `flip`.

    The sampling points are kept inside the box, as cropping first would.

    Args:
        images: float32 (B, 3, H, W).
        boxes: float32 (B, 4): top, left, height, width in pixels.
        flip: (B,), nonzero: mirror left to right.
    """
    height, width = images.shape[-2:]
    top, left, h, w = boxes[:, :, None].unbind(1)
    down = torch.arange(height, device=images.device) + 0.5
    across = torch.arange(width, device=images.device) + 0.5
    across = torch.where(flip[:, None] != 0, across.flip(0), across)
    y = top + (down * h / height).clamp(torch.full_like(h, 0.5), h - 0.5)
    x = left + (across * w / width).clamp(torch.full_like(w, 0.5), w - 0.5)
    y, x = 2 * y / height - 1, 2 * x / width - 1
    grid = torch.stack(
        [x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1
    )
    sampled = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return sampled.clamp_(0, 1)
