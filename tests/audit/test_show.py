"""The audit in a terminal: the verdict first, one line for each check, nothing lost."""

import re
from io import StringIO

import pytest
from rich.console import Console

from aal_bench.audit import show, words
from aal_bench.audit.record import Audit
from aal_bench.audit.table import QUICK
from tests.audit.shown import SMALL, WORST, Bright, audited


def page(audit: Audit, width: int = 110) -> str:
    out = StringIO()
    show.show(audit, Console(width=width, file=out, color_system=None, highlight=False))
    return out.getvalue()


def line_of(text: str, number: int) -> str:
    (found,) = [line for line in text.splitlines() if re.match(rf"\S +{number}  ", line)]
    return found


@pytest.fixture(scope="module")
def good() -> Audit:
    return audited(Bright())[0]


@pytest.fixture(scope="module")
def saturated() -> Audit:
    """The same answers with logits so large that cross-entropy has no gradient left."""
    return audited(Bright(1e6))[0]


@pytest.fixture(scope="module")
def few() -> Audit:
    """Nothing decided: the one check that was asked for needs a network to compare with."""
    return audited(Bright(), checks=(20,))[0]


class TestVerdict:
    def test_a_good_model_is_reliable_as_far_as_the_deciding_checks_go(self, good):
        assert not good.unreliable
        assert good.count("pass") == 4
        assert page(good).splitlines()[0].rstrip() == "reliable as far as 4 checks can say"

    def test_a_bad_model_is_unreliable_in_the_first_line_with_the_checks_that_say_so(
        self, saturated
    ):
        assert saturated.unreliable
        first = page(saturated).splitlines()[0]
        assert first.startswith("UNRELIABLE: ")
        assert "11 gradients exist" in first

    def test_without_a_decided_check_there_is_no_verdict(self, few):
        assert few.count("not applicable") == 1
        assert page(few).startswith("no verdict: no check could decide anything")

    def test_a_failed_warning_leaves_the_number_and_is_counted(self, saturated):
        milder = [
            check.model_copy(update={"severity": "warning"}) if check.verdict == "fail" else check
            for check in saturated.checks
        ]
        audit = saturated.model_copy(update={"checks": milder})
        assert words.headline(audit) == "reliable as far as 4 checks can say"
        assert "1 failed (1 of them only warns)" in page(audit)


class TestLines:
    def test_every_check_has_one_line_with_mark_value_and_threshold(self, good):
        text = page(good)
        for check in good.checks:
            line = line_of(text, check.number)
            assert line.startswith(words.MARKS[check.verdict])
            assert check.title in line
            assert words.against(check) in line

    def test_only_failed_checks_are_told_in_sentences(self, saturated):
        text = " ".join(page(saturated, 400).split())
        told = {check.number for check in saturated.checks if check.sentence in text}
        assert told == {check.number for check in saturated.failed} == {11}

    def test_nothing_is_cut_off_at_110_columns_or_at_60(self, saturated):
        for width in (110, 60):
            text = page(saturated, width)
            assert max(map(len, text.splitlines())) <= width
            assert "…" not in text
            assert "gradients exist" in text

    def test_verdicts_are_told_apart_without_colour(self):
        assert len(set(words.MARKS.values())) == 4

    @pytest.mark.parametrize(
        ("number", "value", "threshold", "shown"),
        [
            (1, 0.0213, 0.005, "2.13 % (0.5 %)"),
            (1, -0.04, 0.005, "-4 % (0.5 %)"),
            (11, 3, 0, "3 (0)"),
            (13, 2e-3, 1e-4, "0.002 (0.0001)"),
            (12, "no gradient", None, "no gradient"),
            (1, 5, "more below than above", "5 (more below than above)"),
            (24, None, None, "-"),
        ],
    )
    def test_a_share_is_shown_in_percent_and_a_count_as_it_is(
        self, good, number, value, threshold, shown
    ):
        fields = {"number": number, "value": value, "threshold": threshold}
        assert words.against(good.checks[0].model_copy(update=fields)) == shown

    def test_markup_in_a_sentence_is_printed_as_it_is(self, saturated):
        checks = [
            check.model_copy(update={"sentence": "It raised [red]this[/red]."})
            for check in saturated.checks
        ]
        audit = saturated.model_copy(update={"checks": checks})
        assert "It raised [red]this[/red]." in page(audit)


class TestBeneath:
    def test_a_pass_beyond_its_threshold_is_explained(self, good):
        assert words.SIGNIFICANCE in " ".join(page(good).split())

    def test_budget_images_and_passes_are_those_of_the_audit(self, good):
        text = " ".join(page(good).split())
        assert "24 images" in text
        # The record names the budget, not what a test made of it.
        assert SMALL.name == "quick"
        assert str(QUICK) in text
        assert f"{good.cost.forwards:,} forward and {good.cost.backwards:,} backward passes" in text

    def test_what_the_checks_one_by_one_would_have_cost_is_said(self, good):
        cost = good.cost
        # Checks 1 and 3 both need PGD from both starts, check 2 from the first.
        assert cost.naive_forwards > 2 * cost.forwards
        ratio = (cost.naive_forwards + cost.naive_backwards) / (cost.forwards + cost.backwards)
        assert f"({ratio:.1f} times as many)" in " ".join(page(good).split())

    def test_the_worst_case_is_the_number_to_report(self, good):
        assert "worst case" not in page(good)
        text = " ".join(page(good.model_copy(update={"worst_case": WORST})).split())
        assert "usual attacks leave 50.0 %, all together with 2 adaptive ones 25.0 %" in text


class TestLog:
    def test_a_run_says_the_verdict_in_one_line_and_each_failure_in_another(
        self, saturated, capsys
    ):
        show.line(saturated)
        first, *rest = capsys.readouterr().out.splitlines()
        assert first.startswith("audit      UNRELIABLE: ")
        assert [line.split(":")[0].strip() for line in rest] == ["✗ 11 unreliable"]

    def test_an_audit_that_was_made_before_says_so(self, good, capsys):
        show.line(good, earlier=True)
        assert capsys.readouterr().out.rstrip().endswith("(done earlier)")
