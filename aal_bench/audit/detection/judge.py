"""How losses of the same images are compared: image by image, by how many differ and which way."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from aal_bench.audit.outcome import Verdict
from aal_bench.audit.significance import paired


class Compared(NamedTuple):
    """On how many images one loss is above the other by more than a tolerated share of it."""

    below: int
    """The first is lower, or no number."""
    above: int
    n: int

    @property
    def judged(self) -> Verdict:
        """Fails where the first is lower on significantly more images than it is higher."""
        if not paired(self.n, 0):  # not even all of them would be significant
            return "not decided"
        return "fail" if paired(self.below, self.above) else "pass"


def compared(first: Tensor, second: Tensor, tolerated: float) -> Compared:
    """Compare two losses (N,) image by image; what is no number counts as low."""
    below = ~(first >= second * (1 - tolerated))
    above = first > second * (1 + tolerated)
    return Compared(int(below.sum()), int(above.sum()), len(first))


def few(n: int) -> str:
    """What a sentence adds where so few images decide nothing."""
    return "" if paired(n, 0) else f" {n} images are too few to decide: 7 at least are needed."
