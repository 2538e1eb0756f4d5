"""Passes through a model, counted per sample: what an attack really spent."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn


class Counted(nn.Module):
    """A model that counts, for each image of the watched batch, its forwards and backwards.

    An attack drops fooled images from its batch, and the sets that remain are nested; so the size of
    a forward identifies its set, which is found once per size by matching rows to the originals.
    Nothing is synchronised in between.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._x: Tensor | None = None

    def watch(self, x: Tensor) -> None:
        """Count from zero for the batch `x` (B, 3, H, W)."""
        self._x = x
        self._rows: dict[int, Tensor] = {}
        self._forwards: Counter[int] = Counter()
        self._backwards: Counter[int] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if self._x is not None:
            size = len(x)
            if size not in self._rows:
                self._rows[size] = _positions(x, self._x)
            self._forwards[size] += 1
            if logits.requires_grad:
                logits.register_hook(lambda _: self._backwards.update((size,)))
        return logits

    def counts(self) -> tuple[Tensor, Tensor]:
        """Forwards and backwards of each watched image, two int64 tensors (B,) on the CPU."""
        assert self._x is not None
        return self._spread(self._forwards), self._spread(self._backwards)

    def _spread(self, passes: Counter[int]) -> Tensor:
        assert self._x is not None
        total = torch.zeros(len(self._x), dtype=torch.int64)
        for size, times in passes.items():
            total[self._rows[size]] += times
        return total


def _positions(part: Tensor, whole: Tensor) -> Tensor:
    """Positions in `whole` of the rows of `part`, a subset in order, each slightly perturbed."""
    if len(part) == len(whole):
        return torch.arange(len(whole))
    distance = torch.cdist(part.detach().flatten(1).float(), whole.flatten(1).float())
    nearest = distance.argmin(1)
    if (nearest.diff() > 0).all():
        return nearest.cpu()
    return _in_order(distance.cpu())


def _in_order(distance: Tensor) -> Tensor:
    """The increasing assignment of least total distance, for batches that hold twins."""
    rows, columns = distance.shape
    best = torch.full((rows + 1, columns + 1), torch.inf, dtype=torch.float64)
    best[0] = 0
    for row in range(rows):
        taken = best[row, :-1] + distance[row].double()
        best[row + 1, 1:] = taken.cummin(0).values
    positions, column = [], columns
    for row in range(rows, 0, -1):
        taken = best[row - 1, :column] + distance[row - 1, :column].double()
        column = int(taken.argmin())
        positions.append(column)
    return torch.tensor(positions[::-1])
