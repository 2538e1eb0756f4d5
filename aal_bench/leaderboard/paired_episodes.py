"""Which of two few-shot rows is better, judged on the same episodes: the paired t-test. No torch.

Every row of a board answers the same episodes. Episodes differ far more in how hard they are than
methods do, and that part cancels in the differences, episode by episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from aal_bench.leaderboard.paired import ALPHA
from aal_bench.student import mean

RULE = (
    "Rows are tied unless the paired two-sided t-test on the accuracies of the same episodes gives"
    " p < 0.05, for every seed of one against every seed of the other."
)
"""The rule for a reader, one sentence."""


class EpisodePair(NamedTuple):
    """Two rows' accuracies of the same episodes, compared."""

    difference: float
    """Mean of A - B over the episodes, in [-1, 1]."""
    ci95: tuple[float, float]
    """Student's t interval of that mean, within [-1, 1]."""
    p: float
    """Of the paired two-sided t-test, in [0, 1]."""

    @property
    def winner(self) -> Literal["A", "B", "tie"]:
        """The significantly better one."""
        if self.p >= ALPHA:
            return "tie"
        return "A" if self.difference > 0 else "B"


def pair(a: NDArray[Any], b: NDArray[Any], queries: int) -> EpisodePair:
    """Test two rows' numbers of correct queries (E,), of `queries` in each episode."""
    found = mean(a - b, queries)
    return EpisodePair(found.value, found.interval(-1.0, 1.0), found.p)


def beats(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> bool:
    """Whether every seed of `a` is significantly better than every seed of `b`."""
    return all(pair(one, other, 1).winner == "A" for one, other in product(a, b))
