"""Features of a split, extracted once in batches: episodes then only look them up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aal_bench.config import Episodes
from aal_bench.data.copies import augmented_copies
from aal_bench.data.splits import InMemory

BATCH = {"cpu": 64, "cuda": 512}
"""Images per forward pass; on a CPU more do not fit its caches (CNN4, 28 px: 5.5 times slower)."""
MEMORY_FORMAT = "channels_last"
"""Of the images: on a CPU four times as fast as contiguous ones."""


class Features:
    """The features of one split under one network.

    Args:
        model: in eval mode, on `device`.
        split: the images.
        device: of the network.
        advance: told the number of images after every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        split: InMemory,
        device: torch.device,
        advance: Callable[[int], object] = int,
    ) -> None:
        self.model, self.split, self.device, self.advance = model, split, device, advance

    def of(self, positions: Tensor) -> Lookup:
        """Features (n, 1, D) of the images at `positions`, int64 (n,)."""
        parts = []
        for images in self.split.batches(
            positions, self._batch, augment="none", pad=0, seed=0, device=self.device
        ):
            parts.append(self._features(images.x)[:, None])
            self.advance(len(images.x))
        return Lookup(positions, torch.cat(parts), len(self.split))

    def of_copies(self, positions: Tensor, config: Episodes) -> Lookup:
        """Features (n, copies, D) of augmented copies of the images at `positions`, int64 (n,)."""
        if config.augment == "none":
            return self.of(positions)
        parts = []
        for some in positions.split(max(1, self._batch // config.copies)):
            copies = augmented_copies(
                self.split.pixels(some).to(self.device),
                some,
                config.copies,
                config.augment,
                config.pad,
                config.seed,
            )
            features = self._features(copies.flatten(0, 1))
            parts.append(features.unflatten(0, copies.shape[:2]))
            self.advance(len(features))
        return Lookup(positions, torch.cat(parts), len(self.split))

    @property
    def _batch(self) -> int:
        return BATCH.get(self.device.type, 64)

    def _features(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=getattr(torch, MEMORY_FORMAT))
        with torch.no_grad():
            return self.model.features(x)  # pyright: ignore[reportCallIssue]


class Lookup:
    """Features by position in the split."""

    def __init__(self, positions: Tensor, features: Tensor, size: int) -> None:
        self.features = features
        self._row = torch.full((size,), -1)
        self._row[positions] = torch.arange(len(positions))

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Features (*positions.shape, copies, D); IndexError where one was not extracted."""
        rows = self._row[positions]
        if bool((rows < 0).any()):
            raise IndexError("features of an image that was not extracted")
        return self.features[rows]
