"""McNemar's exact test against the binomial sum written out, and what is a tie."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.leaderboard import paired


def two_sided(k: int, n: int) -> Fraction:
    """Of n fair coins: twice the chance of as few heads as k or n - k, at most 1."""
    tail = sum(comb(n, i) for i in range(min(k, n - k) + 1))
    return min(Fraction(1), Fraction(2 * tail, 2**n))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_p_is_the_binomial_sum(only_a, only_b):
    expected = two_sided(only_a, only_a + only_b)
    assert paired.mcnemar(only_a, only_b) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 1), (3, 9), (2400, 2600), (4000, 4400)])
def test_p_is_that_of_scipys_binomial_test(only_a, only_b):
    expected = binomtest(only_a, only_a + only_b).pvalue
    assert paired.mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_rows_that_differ_nowhere_are_equal():
    assert paired.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(
    ("only_a", "only_b", "p", "winner"),
    [
        (5, 0, 2 / 32, "tie"),  # five of five coins: one in sixteen
        (6, 0, 2 / 64, "A"),
        (0, 6, 2 / 64, "B"),
        (12, 3, 2 * (1 + 15 + 105 + 455) / 2**15, "A"),
        (50, 50, 1.0, "tie"),
    ],
)
def test_who_is_better(only_a, only_b, p, winner):
    both = np.ones(7, bool)
    a = np.concatenate([both, np.ones(only_a, bool), np.zeros(only_b, bool)])
    b = np.concatenate([both, np.zeros(only_a, bool), np.ones(only_b, bool)])
    pair = paired.pair(a, b)
    assert (pair.only_a, pair.only_b, pair.winner) == (only_a, only_b, winner)
    assert pair.p == pytest.approx(p)


def test_one_weak_seed_keeps_a_configuration_from_beating_another():
    strong, weak, other = np.ones(20, bool), np.arange(20) < 13, np.arange(20) < 10
    assert paired.beats([strong], [other])
    assert not paired.beats([weak], [other]), "three of three coins are no proof"
    assert not paired.beats([strong, weak], [other])
    assert not paired.beats([strong], [other, strong])


def test_verdicts_are_in_the_order_of_the_images_whatever_the_order_of_the_rows():
    evidence = Evidence([7, 3, 5], [0, 1, 2])
    evidence.record("clean", [0, 1, 2], pred=[0, 1, 9])
    evidence.record("pgd-10", [0, 1], pred=[9, 1])
    evidence.skip("pgd-10", [2])
    assert paired.stands(evidence).tolist() == [True, False, True]  # images 3, 5, 7
    assert paired.stands(evidence, ["pgd-10"]).tolist() == [True, False, False]
    assert paired.images(evidence).tolist() == [[3, 1], [5, 2], [7, 0]]


def test_evidence_of_other_images_is_never_paired():
    a, b = (paired.images(Evidence(index, [0, 1])) for index in ([0, 1], [0, 2]))
    paired.same_images(a, a, ("a", "b"))
    with pytest.raises(UserError, match=r"one and other: .* different images or labels"):
        paired.same_images(a, b, ("one", "other"))


def test_an_external_value_counts_every_stage_and_any_other_only_autoattack(make_result):
    made = make_result()
    assert paired.ranked_stages(made.result, made.evidence) == paired.AUTOATTACK
    lowered = made.result.model_copy(update={"external": "10.00"})
    assert paired.ranked_stages(lowered, made.evidence) == made.evidence.stages
    fast = make_result(protocol="fast")
    assert paired.ranked_stages(fast.result, fast.evidence) is None
