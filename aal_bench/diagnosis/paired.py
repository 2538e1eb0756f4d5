"""What two networks or two attacks do to the same images: exact bounds, no normal theory. No torch.

A difference that is not significant is no proof of equality: "no" needs a bound, not a silence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from aal_bench.audit.significance import ALPHA, paired
from aal_bench.diagnosis.record import Answer, Compared

Flags = NDArray[np.bool_]
"""(N,) verdicts, one for each image."""


class Difference(NamedTuple):
    """Share of images that the first leaves right, less that of the second."""

    gained: int
    """Images that only the first leaves right."""
    lost: int
    """Images that only the second does."""
    n: int
    """All images."""

    @classmethod
    def of(cls, first: Flags, second: Flags) -> Difference:
        """From two columns of verdicts on the same images."""
        return cls(int((first & ~second).sum()), int((second & ~first).sum()), len(first))

    @property
    def value(self) -> float:
        """In [-1, 1]."""
        return (self.gained - self.lost) / self.n

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound, each at `ALPHA`.

        The difference is (2 p - 1) q: q the share of images on which the two differ, p how many of
        those fall the first's way. Clopper and Pearson's bounds of both share the error.
        """
        differ = self.gained + self.lost
        p_low, p_high = clopper_pearson(self.gained, differ, ALPHA / 2)
        q_low, q_high = clopper_pearson(differ, self.n, ALPHA / 2)
        low, high = 2 * p_low - 1, 2 * p_high - 1
        return low * (q_high if low < 0 else q_low), high * (q_high if high > 0 else q_low)

    def larger(self, question: str, margin: float = 0.0, excluded: float | None = None) -> Compared:
        """Whether the first exceeds the second by more than `margin`.

        Args:
            question: what ``yes`` means.
            margin: a difference that is none, a share.
            excluded: the smallest difference that would matter, where the images cannot exclude
                `margin` itself; ``no`` is said below it.
        """
        low, high = self.bounds
        answer: Answer = "not decided"
        if self.value > margin and paired(self.gained, self.lost):
            answer = "yes"
        elif high <= (margin if excluded is None else excluded):
            answer = "no"
        return Compared(
            question=question,
            difference=round(self.value, 6),
            bounds=(round(low, 6), round(high, 6)),
            answer=answer,
        )


def clopper_pearson(k: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact lower and upper bound of a share k / n, each at `alpha`; (0, 1) of nothing."""
    low = 0.0 if k == 0 else float(beta.ppf(alpha, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - alpha, k + 1, n - k))
    return low, high


def above(question: str, k: int, n: int, than: float) -> Compared:
    """Whether a share k / n is above `than`: ``yes`` and ``no`` are both significant."""
    low, high = clopper_pearson(k, n, ALPHA)
    return Compared(
        question=question,
        difference=round((k / n if n else than) - than, 6),
        bounds=(round(low - than, 6), round(high - than, 6)),
        answer="yes" if low > than else "no" if high < than else "not decided",
    )
