"""Exact tests behind every rule in percentage points: a difference of a few images is no finding.

A rule fails only if what it measures is beyond its threshold *and* the count of images behind it
is significant at `ALPHA` and at least `LEAST`. scipy only.
"""

from __future__ import annotations

from typing import Literal

from scipy.stats import binomtest

ALPHA = 0.01
"""Level of every test, one-sided."""
DOUBT = 0.1
"""A figure beyond its threshold that chance explains less often than this is left open."""
LEAST = 3
"""Images that it takes at least, however unlikely they are."""

Judged = Literal["pass", "fail", "not decided"]


def paired(against: int, n_for: int) -> bool:
    """Whether `against` of the images that differ, rather than `n_for`, is more than chance.

    Exact one-sided sign test (McNemar): under the null hypothesis an image on which two attacks
    differ falls either way with probability 1/2.
    """
    return against >= LEAST and _sign_test(against, n_for) <= ALPHA


def exceeds(count: int, n: int, tolerated: float) -> bool:
    """Whether `count` of `n` images is more than a tolerated share explains, exactly."""
    return count >= LEAST and _excess(count, n, tolerated) <= ALPHA


def judge_difference(against: int, n_for: int, n: int, limit: float) -> Judged:
    """Judge ``(against - n_for) / n > limit`` on `n` images that both saw.

    Not decided: too few images for any finding, or beyond the limit by fewer than are significant
    and by more than chance explains one time in ten. What chance explains oftener passes.

    Args:
        against: images that speak against the model: the stronger attack failed, the weaker not.
        n_for: images the other way round.
        n: all images.
        limit: tolerated difference, a share.
    """
    if not paired(n, 0):  # not even all of them would be significant
        return "not decided"
    if (against - n_for) / n <= limit:
        return "pass"
    if paired(against, n_for):
        return "fail"
    return "not decided" if _sign_test(against, n_for) <= DOUBT else "pass"


def judge_share(count: int, n: int, limit: float) -> Judged:
    """Judge ``count / n > limit``, where nothing but an image against the model is counted."""
    if not exceeds(n, n, limit):
        return "not decided"
    if count / n <= limit:
        return "pass"
    if exceeds(count, n, limit):
        return "fail"
    return "not decided" if _excess(count, n, limit) <= DOUBT else "pass"


def _sign_test(against: int, n_for: int) -> float:
    return float(binomtest(against, against + n_for, 0.5, alternative="greater").pvalue)


def _excess(count: int, n: int, tolerated: float) -> float:
    return float(binomtest(count, n, tolerated, alternative="greater").pvalue)
