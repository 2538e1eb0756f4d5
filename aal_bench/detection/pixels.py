"""The pixel space of a preprocessed batch: where eps is measured and images are attacked.

MMDetection hands the detector (x - mean) / std in float32. An attack there would have another eps
for each channel, and no box. Here x is in [0, 1], in the network's channel order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class PixelSpace:
    """To and from what a ``DetDataPreprocessor`` makes.

    Args:
        preprocessor: the detector's; mean and std are in units of 0..255.
    """

    def __init__(self, preprocessor: Any) -> None:
        self._preprocessor = preprocessor

    @property
    def _statistics(self) -> tuple[Tensor | float, Tensor | float]:
        # Read at use: they are buffers, which move with the detector.
        if not getattr(self._preprocessor, "_enable_normalize", False):
            return 0.0, 1.0
        return self._preprocessor.mean, self._preprocessor.std

    def pixels(self, inputs: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of normalised `inputs`.

        Clamped: photometric augmentation leaves [0, 255], and an image outside the box has no
        eps-ball inside it.
        """
        mean, std = self._statistics
        return ((inputs * std + mean) / 255).clamp(0, 1)

    def inputs(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Normalised network inputs of `x` (B, 3, H, W) in [0, 1]; differentiable.

        Args:
            x: images.
            inside: (B, 1, H, W), False on padded borders; they stay at the padding's value, and
                no gradient reaches them. None: no padding.
        """
        mean, std = self._statistics
        normalised = (x * 255 - mean) / std
        if inside is None:
            return normalised
        return torch.where(inside, normalised, float(self._preprocessor.pad_value))

    def rgb(self, x: Tensor) -> Tensor:
        """`x` (B, 3, H, W) with its channels as red, green, blue.

        Images are read as BGR; ``bgr_to_rgb`` has turned them already.
        """
        converted = getattr(self._preprocessor, "_channel_conversion", False)
        return x if converted else x.flip(1)


def inside_of(samples: Sequence[Any], shape: torch.Size, device: torch.device) -> Tensor | None:
    """Which pixels (B, 1, H, W) of a batch are image and not padding; None: all.

    Args:
        samples: data samples, whose ``img_shape`` is (height, width) before padding.
        shape: (B, 3, H, W) of the batch.
        device: of the result.
    """
    height, width = shape[-2:]
    sizes = [tuple(sample.metainfo["img_shape"][:2]) for sample in samples]
    if all(size == (height, width) for size in sizes):
        return None
    inside = torch.zeros(len(samples), 1, height, width, dtype=torch.bool, device=device)
    for image, (h, w) in zip(inside, sizes, strict=True):
        image[:, :h, :w] = True
    return inside
