"""The audit of survivors: its seed, its sample, its rule, against closed forms and simulation."""

import hashlib
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from aal_bench.errors import UserError
from aal_bench.leaderboard import audit_sample
from aal_bench.leaderboard.audit_sample import critical, missing, p_value, sample, seed_of

# ---- the seed -----------------------------------------------------------------------------------


def test_the_seed_is_the_first_eight_bytes_of_the_hash_of_run_hash_and_string():
    run_hash = "0a" * 32
    digest = hashlib.sha256(run_hash.encode("ascii") + "commit é4f".encode()).hexdigest()
    assert seed_of(run_hash, "commit é4f") == int(digest[:16], 16)
    assert seed_of(run_hash, "another") != seed_of(run_hash, "commit é4f")
    assert seed_of("0b" * 32, "another") != seed_of(run_hash, "another")


def test_an_entry_without_a_run_hash_has_no_seed():
    with pytest.raises(UserError, match="the entry has no run_hash"):
        seed_of(None, "commit")


@pytest.mark.parametrize("public", ["", "  ", "two\nlines", "\x1b[2J", "half \udc80"])
def test_a_public_string_is_one_line_of_text(public):
    with pytest.raises(UserError, match="--public-string: give one line"):
        seed_of("0a" * 32, public)


# ---- the sample ---------------------------------------------------------------------------------


def test_a_sample_is_distinct_ascending_and_its_seeds():
    chosen = sample(1000, 50, seed=7)
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < 1000
    np.testing.assert_array_equal(chosen, sample(1000, 50, seed=7))
    assert set(chosen) != set(sample(1000, 50, seed=8))


def test_the_sample_of_a_seed_never_changes():
    """It must be repeatable for years: positions written down, seeds up to 64 bits."""
    assert sample(20, 5, seed=0).tolist() == [2, 3, 11, 13, 15]
    assert sample(20, 5, seed=2**64 - 1).tolist() == [2, 4, 5, 7, 11]


@pytest.mark.parametrize("size", [None, 12, 500])
def test_fewer_survivors_than_asked_for_are_all_taken(size):
    assert sample(12, size, seed=3).tolist() == list(range(12))
    assert sample(0, size, seed=3).tolist() == []


def test_every_survivor_is_as_likely_as_any_other():
    """5 of 20, 4,000 times: counts are binomial with mean 1,000 and deviation 27."""
    counts = np.bincount(np.concatenate([sample(20, 5, seed) for seed in range(4000)]))
    assert abs(counts - 1000).max() < 4 * (4000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    ("attacked", "standing", "enough"),
    [(500, 5400, True), (499, 5400, False), (79, 79, True), (78, 79, False), (0, 0, True)],
)
def test_level_three_needs_five_hundred_survivors_or_all(attacked, standing, enough):
    assert audit_sample.enough(attacked, standing) is enough


# ---- the rule -----------------------------------------------------------------------------------


def tail(flips: int, images: int) -> Fraction:
    """P[Bin(images, 1/500) >= flips] in exact fractions."""
    share = Fraction(1, 500)
    below = (comb(images, k) * share**k * (1 - share) ** (images - k) for k in range(flips))
    return 1 - sum(below, Fraction(0))


@pytest.mark.parametrize(("flips", "images"), [(0, 0), (0, 9), (1, 5), (1, 6), (4, 500), (5, 500)])
def test_the_p_value_is_the_binomial_tail(flips, images):
    assert p_value(flips, images) == pytest.approx(float(tail(flips, images)), rel=1e-9)
    assert audit_sample.explained(flips, images) == (tail(flips, images) >= Fraction(1, 100))


@pytest.mark.parametrize("images", [1, 5, 6, 60, 75, 76, 500, 1000])
def test_the_rule_fires_at_the_first_count_that_accident_makes_unlikely(images):
    fires = critical(images)
    assert tail(fires, images) < Fraction(1, 100) <= tail(fires - 1, images)


def test_an_honest_entry_rarely_breaks():
    """Verdicts that flip with the tolerated 0.2 %: fewer than 1 in 100 audits fire."""
    flips = np.random.default_rng(0).binomial(500, 0.002, 200_000)
    assert 0.001 < (flips >= critical(500)).mean() < 0.01


# ---- what it misses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("standing", "attacked", "false"), [(79, 5, 1), (79, 79, 4), (700, 500, 14), (30, 20, 30)]
)
def test_the_chance_of_missing_is_counted_exactly(standing, attacked, false):
    """Of all samples, those that hold fewer of the false than the rule needs."""
    ways = sum(
        comb(false, k) * comb(standing - false, attacked - k)
        for k in range(min(critical(attacked), attacked + 1))
    )
    exact = ways / comb(standing, attacked)
    assert missing(standing, attacked, false) == pytest.approx(exact, rel=1e-9, abs=1e-15)


def test_the_chance_of_missing_is_what_audits_of_a_liar_show():
    """60 of 3,000 survivors are false; 400 samples of 500, drawn as an audit draws them."""
    missed = [(sample(3000, 500, seed) < 60).sum() < critical(500) for seed in range(400)]
    chance = missing(3000, 500, 60)
    assert 0.01 < chance < 0.1
    assert abs(np.mean(missed) - chance) < 4 * (chance * (1 - chance) / 400) ** 0.5


def test_attacking_every_survivor_misses_only_what_the_rule_tolerates():
    assert missing(1000, 1000, critical(1000)) == 0
    assert missing(1000, 1000, critical(1000) - 1) == 1


def test_the_line_that_is_printed():
    told = audit_sample.misses(5400, 500)
    assert told == (
        "fires from 5 of 500 on; a lie of 0.5 % / 1 % / 2 % / 5 % of the 5,400 survivors passes"
        " with probability 90 % / 43 % / 2 % / below 1 %"
    )
    # Never less than one image: 75 / 79 pass it, two and four of them fewer.
    assert "probability 95 % / 95 % / 90 % / 81 %" in audit_sample.misses(79, 4)
