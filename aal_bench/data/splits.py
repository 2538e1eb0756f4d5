"""A split of labelled images, cut into batches that can be resumed anywhere.

Batch number b of a pass depends on the order, the batch size, the seed and b, never on the batches
before it: ``batches(..., start=b)`` continues a pass exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from aal_bench.data.augment import Crops, augment_with_crops


class Images(NamedTuple):
    """One batch, all on the device that was asked for."""

    x: Tensor
    """float32 (B, 3, H, W) in [0, 1], contiguous."""
    y: Tensor
    """int64 (B,)."""
    idx: Tensor
    """int64 (B,): positions in the split whose ``batches`` was called."""
    aug: Crops | None = None
    """The crops that made x, where cropping (and mirroring) is all that was done."""


class Split(Protocol):
    """Labelled images of one size."""

    labels: Tensor
    """int64 (N,), on the CPU."""
    origin: Tensor
    """int64 (N,), on the CPU: positions in the split as it was read, before any subset."""

    def __len__(self) -> int: ...

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        augment: str,
        pad: int,
        seed: int,
        device: torch.device | str,
        start: int = 0,
    ) -> Iterator[Images]:
        """Yield the images at positions `order`, batch by batch; the last may be smaller.

        Args:
            order: int64, positions in this split, on the CPU.
            batch_size: images per batch.
            augment: one of ``config.Train.augment``; ``none`` for evaluation.
            pad: zero padding of ``shift`` and ``crop-flip``, in pixels.
            seed: of the augmentation; another one for every epoch.
            device: where the batches are wanted.
            start: number of the first batch to yield.
        """
        ...

    def subset(self, idx: Tensor) -> Split:
        """Return the split of positions `idx` (int64), in that order, without copying images."""
        ...

    def pixels(self, idx: Tensor) -> Tensor:
        """Return the unaugmented images at positions `idx`: uint8 (n, 3, H, W), on the CPU."""
        ...


def cut(order: Tensor, batch_size: int, start: int) -> Iterator[tuple[int, slice]]:
    """Yield number and slice of the batches of a pass, from batch number `start` on."""
    for number in range(start, -(-len(order) // batch_size)):
        yield number, slice(number * batch_size, (number + 1) * batch_size)


class _Store:
    """The pixels that a split and its subsets share, with one copy per device."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self._copies: dict[torch.device, Tensor] = {images.device: images}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self.images.to(device)
        return self._copies[device]


class InMemory:
    """A split small enough to live on the device as uint8; augmented there, a batch at a time.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"need uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.shape != (len(images),):
            raise ValueError(f"{len(images)} images, but labels of shape {tuple(labels.shape)}")
        self._store = _Store(images.contiguous())
        self.labels = labels.to(torch.int64)
        self.origin = torch.arange(len(images))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        augment: str,
        pad: int,
        seed: int,
        device: torch.device | str,
        start: int = 0,
    ) -> Iterator[Images]:
        """Yield batches as `Split.batches` says, without a wait for the device in between."""
        device = torch.device(device)
        images = self._store.on(device)
        # The whole pass's positions go over at once: later batches need no copy from the host.
        rows, y, idx = (part.to(device) for part in (self.origin[order], self.labels[order], order))
        for number, part in cut(order, batch_size, start):
            x, crops = augment_with_crops(images[rows[part]], augment, pad, seed, number)
            yield Images(x, y[part], idx[part], crops)

    def subset(self, idx: Tensor) -> InMemory:
        """Return the split of positions `idx`; it shares the pixels."""
        part = object.__new__(InMemory)
        part._store = self._store
        part.labels, part.origin = self.labels[idx], self.origin[idx]
        return part

    def pixels(self, idx: Tensor) -> Tensor:
        """Return uint8 (n, 3, H, W) at positions `idx`, on the CPU."""
        return self._store.images[self.origin[idx]].cpu()
