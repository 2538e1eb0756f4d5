"""Few-shot numbers: means over episodes with Student's interval, as scipy.stats says them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aal_bench import student
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.metrics import METRICS, near_chance
from aal_bench.schema import Metrics

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")


def table(*episodes: str, stages: dict[str, tuple[str, ...]] | None = None) -> Evidence:
    """One string for each episode, ``+`` for each query that stands; the same for each stage."""
    size = len(episodes[0])
    made = Evidence(
        np.tile(np.arange(size), len(episodes)),
        np.zeros(size * len(episodes), int),
        np.repeat(np.arange(len(episodes)), size),
    )
    made.record("clean", np.arange(len(made)), pred=_preds(episodes))
    for name, verdicts in (stages or {}).items():
        standing = made.clean_correct()
        rows = np.flatnonzero(standing)
        made.record(name, rows, pred=_preds(verdicts)[rows])
        made.skip(name, np.flatnonzero(~standing))
    return made


def _preds(episodes: tuple[str, ...]) -> np.ndarray:
    return np.array([0 if sign == "+" else 1 for sign in "".join(episodes)])


class TestHandCounted:
    def test_clean_accuracy_is_the_mean_over_episodes(self):
        metrics = METRICS["fewshot"](table("++++", "++--", "+---"), ["clean"])
        # 1, 1/2 and 1/4: mean 7/12, sample variance (25 + 1 + 16) / 144 / 2 = 7/48
        assert metrics["clean"]["value"] == 7 / 12
        assert metrics["clean"]["n"] == 3
        assert metrics["episodes"] == {
            "n": 3,
            "queries": 4,
            "sd": {"clean": pytest.approx((7 / 48) ** 0.5, rel=1e-15)},
        }
        half = 4.302652729911275 * (7 / 144) ** 0.5  # t(.975, 2), from a printed table
        assert metrics["clean"]["ci95"] == [0.0, 1.0], "the interval is wider than all shares"
        assert 7 / 12 + half > 1

    def test_robust_is_the_and_query_by_query_and_then_the_mean(self):
        made = table(
            "++++", "+++-", stages={"pgd-20": ("++--", "+++-"), "apgd-ce": ("+-+-", "++--")}
        )
        metrics = METRICS["fewshot"](made, ["clean", "pgd-20", "apgd-ce"])
        assert metrics["stages"]["pgd-20"]["value"] == 5 / 8
        assert metrics["stages"]["apgd-ce"]["value"] == 4 / 8
        assert metrics["robust"]["value"] == (1 / 4 + 2 / 4) / 2, "not the least of the averages"
        assert metrics["episodes"]["sd"]["robust"] == pytest.approx(1 / 4 / 2**0.5)
        assert "autoattack" not in metrics

    def test_autoattack_is_there_where_its_four_ran(self):
        falls = dict(zip(AUTOATTACK, (("+++-",), ("++++",), ("-+++",), ("++++",)), strict=True))
        made = table("++++", stages=falls)
        metrics = METRICS["fewshot"](made, ["clean", *AUTOATTACK])
        assert metrics["autoattack"]["value"] == 2 / 4
        assert {*metrics["episodes"]["sd"]} == {"clean", "robust", "autoattack", *AUTOATTACK}

    def test_without_attack_nothing_is_called_robust(self):
        metrics = METRICS["fewshot"](table("++", "+-"), ["clean"])
        assert metrics.keys() == {"clean", "stages", "episodes"}
        assert Metrics.model_validate(metrics).robust is None

    def test_one_episode_says_nothing_of_the_spread(self):
        metrics = METRICS["fewshot"](table("++--"), ["clean"])
        assert metrics["clean"] == {"value": 0.5, "n": 1, "ci95": [0.0, 1.0]}
        assert metrics["episodes"]["sd"] == {"clean": None}

    def test_equal_episodes_leave_no_doubt(self):
        metrics = METRICS["fewshot"](table("+++-", "++-+", "-+++"), ["clean"])
        assert metrics["clean"] == {"value": 0.75, "n": 3, "ci95": [0.75, 0.75]}

    def test_a_missing_row_is_an_error(self):
        made = Evidence([0, 1], [0, 0], [0, 1])
        made.record("clean", [0], pred=0)
        with pytest.raises(UserError, match="lacks 1 of 2"):
            METRICS["fewshot"](made, ["clean"])

    def test_no_episodes_have_no_mean(self):
        with pytest.raises(ValueError, match="episodes"):
            METRICS["fewshot"](Evidence([], [], []), ["clean"])


COUNTS = st.lists(st.integers(0, 75), min_size=2, max_size=60)


class TestAgainstScipy:
    @settings(deadline=None)
    @given(COUNTS)
    def test_the_interval_is_scipys(self, counts):
        shares = np.array(counts) / 75
        found = student.mean(np.array(counts), 75)
        assert found.value == pytest.approx(shares.mean(), abs=1e-14)
        assert found.sd == pytest.approx(shares.std(ddof=1), abs=1e-14)
        if len({*counts}) > 1:
            low, high = stats.t.interval(0.95, len(counts) - 1, shares.mean(), stats.sem(shares))
            wanted = (max(0.0, float(low)), min(1.0, float(high)))
            assert found.interval(0, 1) == pytest.approx(wanted, abs=1e-12)

    @pytest.mark.parametrize("n", [2, 3, 10, 600, 2_000, 10_000])
    def test_the_interval_is_that_of_scipys_t_test(self, n):
        hits = np.random.default_rng(n).binomial(75, 0.5, n)
        found = student.mean(hits, 75)
        interval = stats.ttest_1samp(hits / 75, 0.5).confidence_interval(0.95)
        clipped = (max(0.0, interval.low), min(1.0, interval.high))
        assert found.interval(0, 1) == pytest.approx(clipped, abs=1e-12)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=3, max_size=40))
    def test_the_p_of_paired_differences_is_scipys(self, pairs):
        a, b = np.array(pairs).T
        found = student.mean(a - b, 15)
        if len({*(a - b).tolist()}) > 1:
            assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9, abs=1e-300)

    def test_differences_without_spread(self):
        assert student.mean(np.zeros(9, int), 15).p == 1.0
        assert student.mean(np.full(9, 2), 15).p == 0.0
        assert student.mean(np.array([3]), 15).p == 1.0, "one episode proves nothing"

    def test_two_thousand_episodes_of_ten_points_spread(self):
        """The half-width that the literature quotes: 0.44 points."""
        half = student.quantile(1999) * 0.10 / 2000**0.5
        assert half == pytest.approx(0.0044, abs=5e-5)


class TestNearChance:
    def test_of_images_it_is_twice_chance(self):
        assert near_chance("classification", 10, {"value": 0.2, "ci95": [0.1, 0.3]}) == (0.2, 0.2)
        assert near_chance("classification", 10, {"value": 0.21, "ci95": [0.1, 0.3]}) is None

    def test_of_episodes_it_is_an_interval_that_reaches_chance(self):
        assert near_chance("fewshot", 5, {"value": 0.21, "ci95": [0.2, 0.22]}) == (0.2, 0.2)
        assert near_chance("fewshot", 5, {"value": 0.3, "ci95": [0.29, 0.31]}) is None


def test_scipys_statistics_are_not_imported_to_read_metrics():
    code = "import sys, aal_bench.metrics; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
