"""docs/audit.md says what the table of checks says: titles, severities, rules, every figure."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aal_bench.audit import significance, table
from aal_bench.audit.table import CHECKS, EPS_SWEEP, FULL, QUICK, THRESHOLDS, Budget, Check

PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^### (\d+) · (.+?)$\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = {int(number): (title, text) for number, title, text in SECTION.findall(PAGE)}
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
WORDS = {"twice": 2.0}


def numbers(text: str) -> set[float]:
    """Every number written in `text`, as it stands there."""
    written = {float(found.replace(",", "")) for found in NUMBER.findall(text)}
    return written | {value for word, value in WORDS.items() if word in text}


def thresholds() -> list[tuple[str, tuple[int, ...]]]:
    """Field of the table -> the checks that its docstring names."""
    found = re.findall(
        r'^    (\w+): float = .*\n    """(\d+)(?: and (\d+))?',
        inspect.getsource(table),
        re.MULTILINE,
    )
    return [(name, tuple(int(n) for n in checks if n)) for name, *checks in found]


def spent(budget: Budget) -> Iterator[float]:
    """Every number of a budget that is not 0."""
    for value in budget:
        several = value if isinstance(value, tuple) else (value,)
        yield from (float(one) for one in several if isinstance(one, int) and one)


def test_every_check_has_a_section_in_order():
    assert list(SECTIONS) == [check.number for check in CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_title_severity_source_and_rule_are_the_tables(check: Check):
    title, text = SECTIONS[check.number]
    assert title == check.title
    severity, *families, source = text.strip().splitlines()[0].split(" · ")
    assert severity == f"`{check.severity}`"
    assert bool(families) == (len(check.families) > 1)
    assert source == check.source
    assert f"**It fails if** {check.rule}." in " ".join(text.split())
    assert "**Why.** " in text
    assert "**Then.** " in text


def test_every_threshold_of_the_table_belongs_to_a_check():
    assert [name for name, _ in thresholds()] == list(THRESHOLDS._fields)


@pytest.mark.parametrize(("name", "checks"), thresholds())
def test_every_threshold_stands_in_the_section_of_its_checks(name, checks):
    value = getattr(THRESHOLDS, name)
    for number in checks:
        written = numbers(SECTIONS[number][1])
        wanted = (value, 100 * value)  # as it is, or in percent
        assert any(abs(one - two) < 1e-9 for one in written for two in wanted), (name, number)


def test_the_budgets_of_the_sweep_are_named():
    assert set(map(float, EPS_SWEEP)) <= numbers(SECTIONS[5][1])


def test_the_two_budgets_are_the_tables():
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE.partition("### Two budgets")[2], re.M
    )
    (_, quick, full), *_ = rows
    assert (quick, full) == ("quick", "full")
    last = next(place for place, row in enumerate(rows) if row[0].startswith("points along"))
    for budget, column in ((QUICK, 1), (FULL, 2)):
        written = set().union(*(numbers(row[column]) for row in rows[1 : last + 1]))
        assert written == set(spent(budget))


def test_the_images_that_it_takes_are_those_of_the_exact_tests():
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        n, *printed = (int(cell.replace(",", "")) for cell in row)
        needed = [
            next(
                k for k in range(n + 1) if significance.judge_difference(k, 0, n, 0.005) == "fail"
            ),
            *(
                next(k for k in range(n + 1) if significance.judge_share(k, n, share) == "fail")
                for share in (0.002, 0.01, 0.1)
            ),
        ]
        assert printed == needed


def test_six_images_are_too_few_for_any_paired_rule():
    assert significance.judge_difference(6, 0, 6, 0.0) == "not decided"
    assert significance.judge_difference(7, 0, 7, 0.0) == "fail"
    assert "six images are too few for any paired rule" in " ".join(PAGE.split())


def test_level_and_least_count_are_the_tests():
    assert f"at least {significance.LEAST}" in PAGE
    assert f"level of {significance.ALPHA:.0%}".replace("%", " %") in PAGE


def test_only_the_named_checks_can_make_a_result_unreliable():
    grave = {check.number for check in CHECKS if check.severity == "unreliable"}
    named = {n for n, (_, text) in SECTIONS.items() if text.lstrip().startswith("`unreliable`")}
    assert named == grave
