"""Passes through a model, counted per sample: what an attack really spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aal_bench.errors import UserError


class Counted(nn.Module):
    """A model that counts, for each image of the watched batch, its forwards and backwards.

    An attack drops fooled images from its batch, and the sets that remain are nested; so the size
    of a forward identifies its set, which is found once per size by matching rows to the originals.
    Identical images whose random starts differ may swap their counts; the sum is right. Nothing is
    synchronised with the device in between.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # torchattacks leaves the model in the mode that this wrapper reports, and a new module
        # reports train: the verdict would use the batch's statistics.
        self.training = model.training
        self._x: Tensor | None = None

    def watch(self, x: Tensor) -> None:
        """Count from zero for the batch `x` (B, C, H, W)."""
        self._x = x
        self._rows = {len(x): torch.arange(len(x))}
        self._forwards: Counter[int] = Counter()
        self._backwards: Counter[int] = Counter()
        self._sound = torch.ones((), dtype=torch.bool, device=x.device)
        self._earlier = torch.zeros(2, len(x), dtype=torch.int64)

    @contextmanager
    def among(self, rows: Tensor) -> Iterator[None]:
        """Watch only `rows` (ascending) of the batch, for an attack that begins anew on them.

        Its sets are no part of those of the attack before it, though they may be of the same sizes.
        """
        assert self._x is not None
        whole = self._x, self._rows, self._forwards, self._backwards, self._earlier
        sound = self._sound
        self.watch(self._x[rows])
        try:
            yield
        finally:
            spent = torch.stack(self.counts())
            self._x, self._rows, self._forwards, self._backwards, self._earlier = whole
            self._earlier.index_add_(1, rows.cpu(), spent)
            self._sound = self._sound & sound

    def rows(self, size: int) -> Tensor:
        """Positions in the watched batch of the images of the forwards of that `size`."""
        return self._rows[size]

    def forward(self, x: Tensor) -> Tensor:
        attacked = self._x is not None and x.requires_grad
        if attacked:
            x = x.view_as(x)  # a hook on the attack's own tensor would outlive this forward
            given, many = _finite(x), len(x)
            # Where the gradient arrives, not where it starts: that may be a head beside the logits.
            x.register_hook(lambda gradient: self._arrived(given, gradient, many))
        logits = self.model(x)
        if not isinstance(logits, Tensor):
            raise UserError(f"the model returns {type(logits).__name__}, not a tensor of logits")
        if self._x is not None:
            size = len(x)
            self._note(_finite(x), logits)
            if size not in self._rows:
                self._rows[size] = self._locate(x.detach(), self._x)
            self._forwards[size] += 1
            if logits.requires_grad and not attacked:
                logits.register_hook(lambda _: self._backwards.update((size,)))
        return logits

    def sound(self) -> bool:
        """Whether every finite image so far had finite logits and a finite gradient.

        Signed-gradient attacks read NaN as "no step": such a model would survive them all.
        """
        return bool(self._sound)

    def _arrived(self, given: Tensor, gradient: Tensor, size: int) -> None:
        self._backwards.update((size,))
        self._note(given, gradient)

    def _note(self, given: Tensor, found: Tensor) -> None:
        # An attack may lose an image on its own (FAB does where the gradient is zero); the model is
        # at fault only where what it was given was finite.
        self._sound = self._sound & (~given | _finite(found)).all()

    def counts(self) -> tuple[Tensor, Tensor]:
        """Forwards and backwards of each watched image, two int64 tensors (B,) on the CPU."""
        return (
            self._earlier[0] + self._spread(self._forwards),
            self._earlier[1] + self._spread(self._backwards),
        )

    def _locate(self, part: Tensor, whole: Tensor) -> Tensor:
        """Positions in `whole` of the rows of `part`, each slightly perturbed."""
        if len(part) > len(whole):  # an attack that sends copies: no order, nothing nested
            return _distance(part, whole).argmin(1).cpu()
        held = self._rows[min(size for size in self._rows if size > len(part))]
        distance = _distance(part, whole[held.to(whole.device)])
        nearest = distance.argmin(1).cpu()
        if not bool((nearest.diff() > 0).all()):
            nearest = _in_order(distance.cpu())
        return held[nearest]

    def _spread(self, passes: Counter[int]) -> Tensor:
        assert self._x is not None
        total = torch.zeros(len(self._x), dtype=torch.int64)
        for size, times in passes.items():
            total.index_add_(0, self._rows[size], torch.full((size,), times))
        return total


def _finite(values: Tensor) -> Tensor:
    """Which samples of (B, ...) are finite throughout, (B,)."""
    return torch.isfinite(values.detach()).flatten(1).all(1)


def _distance(part: Tensor, whole: Tensor) -> Tensor:
    return torch.cdist(part.flatten(1).float(), whole.flatten(1).float())


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
