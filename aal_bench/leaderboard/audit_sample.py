"""Level 3: which survivors are attacked again, how many may fall, and what a sample misses.

A new seed honestly fells one survivor or another, so the rule is not zero but a one-sided binomial
test against a tolerated share. The seed is drawn from the entry and a string that nobody knew when
the entry was made: nobody can choose the images on which he will be asked. No torch.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from aal_bench.errors import UserError

TOLERATED = 0.002
"""Share of images whose verdict may change with the seed or the machine."""
SIGNIFICANCE = 0.01
"""The rule fires when so many flips, or more, had less than this probability."""
SIZE = 500
"""Survivors attacked again by default, and the fewest (or all) of which level 3 is recorded: about
a tenth of a full CIFAR-10 evaluation."""
LIES = (Fraction(1, 200), Fraction(1, 100), Fraction(1, 50), Fraction(1, 20))
"""Shares of false survivors for which the chance of missing them is printed."""


def seed_of(run_hash: str | None, public: str) -> int:
    """The seed of a re-attack, 0 <= seed < 2**64: first 8 bytes of sha256(run_hash, public string).

    The run_hash is over what may change a number: neither a recorded verification nor a corrected
    venue changes it, so anybody can recompute the seed that an entry records.

    Args:
        run_hash: the entry's, 64 hexadecimal digits.
        public: known only after the submission, such as the hash of a later commit.

    Raises:
        UserError: the entry has no run_hash, or the string is empty or not one line of text.
    """
    if run_hash is None:
        raise UserError("the entry has no run_hash, from which level 3 draws its seed")
    if not public.strip() or not public.isprintable():
        raise UserError(
            "--public-string: give one line that was not known at the submission, such as the hash"
            " of a later commit"
        )
    return int.from_bytes(hashlib.sha256((run_hash + public).encode()).digest()[:8], "big")


def sample(standing: int, size: int | None, seed: int) -> NDArray[np.int64]:
    """Choose survivors without replacement, ascending positions 0..standing-1.

    The smallest of one 64-bit key for each: of PCG64's raw stream, which numpy keeps stable
    (NEP 19), as it does not promise of ``Generator.choice``.

    Args:
        standing: survivors that the entry claims.
        size: how many to choose; None, or more than there are: all of them.
        seed: from `seed_of`.
    """
    if size is None or size >= standing:
        return np.arange(standing, dtype=np.int64)
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(standing)
    return np.sort(np.argsort(keys, kind="stable")[:size]).astype(np.int64)


def p_value(flips: int, images: int) -> float:
    """P[Bin(images, 0.002) >= flips]: how likely so many flips, or more, are by accident."""
    return float(binom.sf(flips - 1, images, TOLERATED))


def enough(attacked: int, standing: int) -> bool:
    """Whether so many of the claimed survivors were attacked as a record of level 3 needs."""
    return attacked >= min(SIZE, standing)


def explained(flips: int, images: int) -> bool:
    """Whether accident explains the flips: the rule does not fire."""
    return p_value(flips, images) >= SIGNIFICANCE


def critical(images: int) -> int:
    """The fewest flips among `images` at which the rule fires."""
    flips = 1
    while explained(flips, images):
        flips += 1
    return flips


def missing(standing: int, attacked: int, false: int) -> float:
    """Probability that the rule does not fire although `false` of the survivors really fall.

    Exact: the sample without replacement holds a hypergeometric number of them. Images that fall
    are taken to fall under every seed.

    Args:
        standing: survivors that the entry claims.
        attacked: how many are attacked again.
        false: how many of `standing` fall.
    """
    return float(hypergeom.cdf(critical(attacked) - 1, standing, false, attacked))


def misses(standing: int, attacked: int) -> str:
    """One line: the chance of missing a lie of each size in `LIES`, rounded up to whole images."""
    lies = " / ".join(f"{float(100 * share):g} %" for share in LIES)
    passes = (missing(standing, attacked, ceil(share * standing)) for share in LIES)
    chances = " / ".join(map(_percent, passes))
    return (
        f"fires from {critical(attacked)} of {attacked:,} on; a lie of {lies} of the {standing:,}"
        f" survivors passes with probability {chances}"
    )


def _percent(probability: float) -> str:
    if 0 < probability < 0.005:
        return "below 1 %"
    if 0.995 <= probability < 1:
        return "above 99 %"
    return f"{100 * probability:.0f} %"
