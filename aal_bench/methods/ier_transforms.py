"""The sixteen transforms of IER: four crops of an image, each turned by four quarter turns.

The crops are the whole image, a wide strip, a tall strip and a square, the short sides two thirds
of the image's, each resized bilinearly to the image's size: a change of aspect ratio or of scale.
They are the official code's (nayeemrizve/invariance-equivariance, dataset/mini_imagenet.py and
cifar.py: 56 of 84 px, 22 of 32 px), and so is their order: transform 4 c + r turns crop c by r
quarter turns counter-clockwise, and 0 is the identity. Places are drawn for each image and crop;
here the last possible place counts too, which the official code never draws.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TRANSFORMS = 16


def short_side(size: int) -> int:
    """Two thirds of `size` pixels, rounded up."""
    return -(-2 * size // 3)


def draw_places(count: int, size: int, device: torch.device) -> Tensor:
    """Where the crops of `count` square images begin, by torch's global generator of `device`.

    Returns:
        int64 (4, count): top of the wide crop, left of the tall one, top and left of the square.
    """
    return torch.randint(size - short_side(size) + 1, (4, count), device=device)


def sixteen_transforms(x: Tensor, places: Tensor) -> Tensor:
    """All transforms of a batch, transform by transform; differentiable in `x`.

    Args:
        x: square images (B, 3, H, H).
        places: int64 (4, B) of `draw_places`.

    Returns:
        (16 B, 3, H, H) in channels_last; rows k B to (k + 1) B are transform k of the batch.
    """
    size = x.shape[-1]
    short, start = short_side(size), torch.zeros_like(places[0])
    crops = [
        x,
        _resized_crop(x, places[0], start, short, size),
        _resized_crop(x, start, places[1], size, short),
        _resized_crop(x, places[2], places[3], short, short),
    ]
    turned = [crop.rot90(turns, (2, 3)) for crop in crops for turns in range(4)]
    return torch.cat(turned).contiguous(memory_format=torch.channels_last)


def _resized_crop(x: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Crop image b at (top[b], left[b]) and resize it to what it was."""
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    channels, size = x.shape[1], x.shape[-1]
    strip = x.gather(2, rows[:, None, :, None].expand(-1, channels, -1, size))
    crop = strip.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
    return functional.interpolate(crop, (size, size), mode="bilinear", align_corners=False)
