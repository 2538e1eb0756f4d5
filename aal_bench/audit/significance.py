"""Exact tests behind every rule in percentage points: a difference of a few images is no finding.

A rule fails only if what it measures is beyond its threshold *and* the count of images behind it
is significant at `ALPHA` and at least `LEAST`. scipy only.
"""

from __future__ import annotations

from typing import Literal

from scipy.stats import binomtest

ALPHA = 0.01
"""Level of every test, one-sided."""
LEAST = 3
"""Images that it takes at least, however unlikely they are."""

Judged = Literal["pass", "fail", "not decided"]


def paired(against: int, n_for: int) -> bool:
    """Whether `against` of the images that differ, rather than `n_for`, is more than chance.

    Exact one-sided sign test (McNemar): under the null hypothesis an image on which two attacks
    differ falls either way with probability 1/2.
    """
    total = against + n_for
    if against < LEAST:
        return False
    return bool(binomtest(against, total, 0.5, alternative="greater").pvalue <= ALPHA)


def exceeds(count: int, n: int, tolerated: float) -> bool:
    """Whether `count` of `n` images is more than a tolerated share explains, exactly."""
    if count < LEAST or n == 0:
        return False
    return bool(binomtest(count, n, tolerated, alternative="greater").pvalue <= ALPHA)


def judge_difference(against: int, n_for: int, n: int, limit: float) -> Judged:
    """Judge ``(against - n_for) / n > limit`` on `n` images that both saw.

    Not decided: beyond the limit by too few images to be significant, or too few images at all. A
    difference of one or two images is no finding either way, and passes.

    Args:
        against: images that speak against the model: the stronger attack failed, the weaker not.
        n_for: images the other way round.
        n: all images.
        limit: tolerated difference, a share.
    """
    if not paired(n, 0):  # not even all of them would be significant
        return "not decided"
    if (against - n_for) / n <= limit or against - n_for < LEAST:
        return "pass"
    return "fail" if paired(against, n_for) else "not decided"


def judge_share(count: int, n: int, limit: float) -> Judged:
    """Judge ``count / n > limit``, where nothing but an image against the model is counted."""
    if not exceeds(n, n, limit):
        return "not decided"
    if count / n <= limit or count < LEAST:
        return "pass"
    return "fail" if exceeds(count, n, limit) else "not decided"
