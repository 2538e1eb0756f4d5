"""Student's t over episodes: the interval of a mean, and the p of a paired difference.

Both start from whole counts, so that sums are exact and every machine says the same. scipy only.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf, sqrt
from typing import Any, NamedTuple

from numpy.typing import NDArray

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean over independent episodes."""

    value: float
    n: int
    """Episodes."""
    sd: float | None
    """Sample standard deviation over them (n - 1 in the divisor); None for one episode."""

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite for one episode."""
        return inf if self.sd is None else self.sd / sqrt(self.n)

    def interval(self, least: float, most: float) -> tuple[float, float]:
        """The two-sided 95 % interval, value +- t(.975, n - 1) sd / sqrt(n), within [least, most].

        One episode says nothing of the spread: its interval is [least, most].
        """
        if self.sd is None:
            return least, most
        half = quantile(self.n - 1) * self.error
        return max(least, self.value - half), min(most, self.value + half)

    @property
    def p(self) -> float:
        """Of the two-sided t-test that the mean is 0, in [0, 1]."""
        if not self.value or self.sd is None:
            return 1.0
        if not self.sd:
            return 0.0
        from scipy.special import stdtr

        return float(2 * stdtr(self.n - 1, -abs(self.value) / self.error))


def mean(counts: NDArray[Any], unit: int) -> Mean:
    """Mean and spread of ``counts / unit``.

    Args:
        counts: whole numbers (n,), n >= 1: correct queries of each episode, or differences of two.
        unit: queries of an episode.

    Raises:
        ValueError: no episodes.
    """
    n, whole = len(counts), [int(count) for count in counts]
    if not n:
        raise ValueError("no episodes: there is nothing to average")
    total, squares = sum(whole), sum(count * count for count in whole)
    value = total / (n * unit)
    if n == 1:
        return Mean(value, n, None)
    variance = Fraction(n * squares - total * total, n * (n - 1) * unit * unit)
    return Mean(value, n, sqrt(variance))


def quantile(freedom: int) -> float:
    """t(.975, freedom): half the width of a 95 % interval, in standard errors."""
    # scipy.stats.t.ppf is this function, and takes a second to import.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
