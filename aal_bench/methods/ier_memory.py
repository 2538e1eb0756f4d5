"""The memory bank of IER: one slowly moving projection for every training image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Memory:
    """Row i is a running mean of what the invariance head gave for training image i.

    Rows begin as random directions. The number of training images is not known beforehand: the
    bank reaches up to the largest position it was shown, which after a few batches of a shuffled
    pass is nearly all.

    Args:
        width: of a projection.
    """

    def __init__(self, width: int) -> None:
        self.rows = torch.empty(0, width)
        """float32 (N, width), not normalised, on the device of the latest batch."""

    def reserve(self, idx: Tensor) -> None:
        """Move to the device of `idx`, and add random rows up to its largest position.

        Drawn by torch's global generator of the device. Waits for the device.
        """
        self.rows = self.rows.to(idx.device)
        missing = int(idx.max()) + 1 - len(self.rows)
        if missing > 0:
            fresh = torch.randn(missing, self.rows.shape[1], device=idx.device)
            self.rows = torch.cat([self.rows, functional.normalize(fresh, dim=1)])

    def draw_negatives(self, idx: Tensor, count: int) -> Tensor:
        """Positions of up to `count` rows, uniform, without repetition and none of them in `idx`.

        Args:
            idx: int64 (B,), each position once.
            count: as many, or all there are.
        """
        keys = torch.rand(len(self.rows), device=idx.device)
        keys[idx] = 2.0  # behind all others
        return keys.argsort()[: min(count, len(keys) - len(idx))]

    def update(self, idx: Tensor, projected: Tensor, momentum: float) -> None:
        """Of the rows at `idx`: row <- momentum * row + (1 - momentum) * projected."""
        self.rows[idx] = self.rows[idx].lerp(projected.to(self.rows), 1 - momentum)


def contrastive_loss(
    projected: Tensor, stored: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """Mean over views and images of -log(e^(s+/T) / (e^(s+/T) + sum_n e^(s_n/T))), s cosines.

    The positive of view 0 is the image's stored row; that of any other view is view 0, to which the
    gradient goes too. The negatives are the same for all views and images.

    Args:
        projected: (V, B, d), of V views of each image.
        stored: (B, d), rows of the memory, without graph.
        negatives: (n, d), likewise; n may be 0.
        temperature: T > 0.
    """
    views, stored, negatives = (
        functional.normalize(part, dim=-1) for part in (projected, stored, negatives)
    )
    positives = torch.cat([stored[None], views[:1].expand(len(views) - 1, -1, -1)])
    like = (views * positives).sum(-1, keepdim=True)
    cosines = torch.cat([like, views @ negatives.T], -1).flatten(0, 1)
    first = torch.zeros(len(cosines), dtype=torch.int64, device=cosines.device)
    return functional.cross_entropy(cosines / temperature, first)
