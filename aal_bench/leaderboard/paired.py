"""Which of two rows is better, judged on the same images: McNemar's exact test. No torch.

Every row of a board attacks the same test images, so that two rows are compared image by image:
images on which both stand, or both fall, say nothing about which is better (McNemar 1947). With
10,000 images one accuracy near 50 % has a standard error of half a point; the paired test finds
smaller differences, and calls the rest what it is: a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.record import Result
from aal_bench.registry import AUTOATTACK

ALPHA = 0.05
"""Two rows are tied unless the test gives a p below this."""
RULE = (
    "Rows are tied unless McNemar's exact two-sided test on the same images gives p < 0.05, for"
    " every seed of one against every seed of the other."
)
"""The rule for a reader, one sentence."""

Bools = NDArray[np.bool_]


class Pair(NamedTuple):
    """Two rows' verdicts on the same images, counted where they differ."""

    only_a: int
    """Images on which A stands and B falls."""
    only_b: int
    """Images on which B stands and A falls."""
    p: float
    """Of McNemar's exact two-sided test, in [0, 1]."""

    @property
    def winner(self) -> Literal["A", "B", "tie"]:
        """The significantly better one."""
        if self.p >= ALPHA:
            return "tie"
        return "A" if self.only_a > self.only_b else "B"


def mcnemar(only_a: int, only_b: int) -> float:
    """The p-value of McNemar's exact two-sided test from the two discordant counts.

    Were both equally good, each image on which they differ would be a fair coin: p is twice the
    chance of at most as many heads as the rarer side has, and at most 1 (``scipy.stats.binomtest``,
    which takes a second to import, gives the same).
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def pair(a: Bools, b: Bools) -> Pair:
    """Test two rows' verdicts (n,), true = stands, in the same order of images."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return Pair(only_a, only_b, mcnemar(only_a, only_b))


def beats(a: Sequence[Bools], b: Sequence[Bools]) -> bool:
    """Whether every seed of `a` is significantly better than every seed of `b`."""
    return all(pair(one, other).winner == "A" for one, other in product(a, b))


def ranked_stages(result: Result, evidence: Evidence) -> tuple[str, ...] | None:
    """The stages whose AND is the number that ranks a row; None: it has no such number.

    AutoAttack's four; where the row has an ``external`` value, its own adaptive attacks, a
    challenge or a fresh attack felled images beyond them, and everything counts.
    """
    if result.external is not None:
        return evidence.stages
    return AUTOATTACK if set(AUTOATTACK) <= set(evidence.stages) else None


def stands(evidence: Evidence, stages: Sequence[str] = ()) -> Bools:
    """Verdicts (n,) under all of `stages` and without attack, in the order of `images`.

    Raises:
        UserError: a row of one of the stages is missing.
    """
    return evidence.robust(stages)[_order(evidence)]


def images(evidence: Evidence) -> NDArray[Any]:
    """Positions and labels (n, 2) of the evaluated images, in ascending order of position.

    Of few-shot evidence (n, 3): episode by episode, and its number last.
    """
    order = _order(evidence)
    columns = [evidence.index, evidence.label]
    columns += [] if evidence.episode is None else [evidence.episode]
    return np.stack([column[order] for column in columns], axis=1)


def _order(evidence: Evidence) -> NDArray[np.intp]:
    if evidence.episode is None:
        return np.argsort(evidence.index)
    return np.lexsort((evidence.index, evidence.episode))


def same_images(a: NDArray[Any], b: NDArray[Any], names: tuple[object, object]) -> None:
    """Refuse to pair evidence of different images; `a` and `b` are what `images` gives.

    Raises:
        UserError: positions or labels differ.
    """
    if not np.array_equal(a, b):
        raise UserError(
            f"{names[0]} and {names[1]}: their evidence is of different images or labels, although"
            " their task_hash is equal: one of them does not hold (aal-bench verify)"
        )
