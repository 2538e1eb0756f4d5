from fractions import Fraction
from math import comb

import pytest

from aal_bench.audit.significance import exceeds, judge_difference, judge_share, paired


def tail(count: int, n: int, p: Fraction) -> Fraction:
    """P(X >= count) of a binomial distribution, in exact arithmetic."""
    return sum(
        (comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count, n + 1)), start=Fraction(0)
    )


@pytest.mark.parametrize("n_for", range(6))
def test_a_paired_difference_is_significant_exactly_where_the_binomial_tail_is_below_one_percent(
    n_for: int,
) -> None:
    for against in range(3, 30):
        probability = tail(against, against + n_for, Fraction(1, 2))
        assert paired(against, n_for) == (probability <= Fraction(1, 100))


@pytest.mark.parametrize("tolerated", [Fraction(1, 500), Fraction(1, 100), Fraction(1, 10)])
def test_a_share_exceeds_what_is_tolerated_exactly_where_the_binomial_tail_is_below_one_percent(
    tolerated: Fraction,
) -> None:
    for count in range(3, 40):
        probability = tail(count, 100, tolerated)
        assert exceeds(count, 100, float(tolerated)) == (probability <= Fraction(1, 100))


def test_two_images_are_never_significant_however_unlikely_they_are() -> None:
    assert tail(2, 100, Fraction(1, 10**6)) < Fraction(1, 10**6)
    assert not exceeds(2, 100, 1e-6)


def test_a_significant_difference_within_the_limit_passes() -> None:
    assert paired(20, 0)
    assert judge_difference(20, 0, 1000, 0.02) == "pass"
    assert judge_difference(21, 0, 1000, 0.02) == "fail"


def test_a_difference_beyond_the_limit_that_chance_hardly_explains_is_not_decided() -> None:
    assert judge_difference(6, 0, 20, 0.005) == "not decided"  # 1/64
    assert judge_difference(4, 0, 100, 0.005) == "not decided"  # 1/16
    assert judge_share(4, 100, 0.01) == "not decided"
    assert judge_share(2, 3, 0.002) == "not decided"  # significant, but of two images


def test_what_chance_explains_easily_is_no_finding_and_passes() -> None:
    assert judge_difference(60, 50, 1000, 0.005) == "pass"  # 1 point, but 60 to 50
    assert judge_difference(3, 0, 100, 0.005) == "pass"  # 1/8
    assert judge_share(2, 100, 0.01) == "pass"


def test_too_few_images_decide_nothing_even_if_all_of_them_speak_against_the_model() -> None:
    assert judge_difference(6, 0, 6, 0.0) == "not decided"  # 1/64
    assert judge_difference(7, 0, 7, 0.0) == "fail"  # 1/128
    assert judge_share(2, 2, 0.001) == "not decided"
    assert judge_share(3, 3, 0.001) == "fail"


def test_no_image_at_all_decides_nothing() -> None:
    assert judge_difference(0, 0, 0, 0.01) == "not decided"
    assert judge_share(0, 0, 0.01) == "not decided"
