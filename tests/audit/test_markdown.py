"""The audit as Markdown: a section of a report, and a page for a bare checkpoint."""

import re

import pytest

from aal_bench.audit import markdown
from aal_bench.audit.record import Audit
from tests.audit.shown import WORST, Bright, audited


@pytest.fixture(scope="module")
def saturated() -> Audit:
    return audited(Bright(1e6), figures=["figures/audit_eps.png", "figures/audit_steps.png"])[0]


def cells(text: str, number: int) -> list[str]:
    (row,) = re.findall(rf"^\| \S+ \| {number} \|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_the_section_begins_with_its_heading_and_the_verdict(saturated):
    heading, verdict = markdown.section(saturated).split("\n\n")[:2]
    assert heading == "## Audit"
    assert verdict.startswith("**UNRELIABLE: this does not hold: 11 gradients exist.**")
    assert verdict.endswith("on 24 images.")


def test_every_check_is_a_row_with_its_figures_sentence_and_source(saturated):
    text = markdown.section(saturated)
    for check in saturated.checks:
        row = cells(text, check.number)
        assert len(row) == 8
        assert row[2] == check.title
        assert row[7] == check.source
    eleven = cells(text, 11)
    assert eleven[3:6] == ["**unreliable**", "24", "0"]
    assert eleven[6].startswith("24 of 24 correct images have a zero gradient")
    assert cells(text, 20)[3] == "not applicable"


def test_what_failed_stands_before_the_table_with_its_rule(saturated):
    before = markdown.section(saturated).partition("\n| ")[0]
    assert "**11 gradients exist** (unreliable): 24 of 24" in before
    assert "It fails if a correctly classified image has a zero gradient" in before
    assert before.count("\n- ") == len(saturated.failed) == 1


def test_figures_are_shown_with_what_a_reader_sees_in_them(saturated):
    text = markdown.section(saturated)
    assert "![audit_eps](figures/audit_eps.png)\n\nAccuracy against eps" in text
    assert "![audit_steps](figures/audit_steps.png)\n\nAccuracy at every step" in text
    assert "audit_surface" not in text


def test_a_sentence_cannot_break_the_table_or_smuggle_markup(saturated):
    sentence = "It raised a | b\nand <img src=x> **bold** `code`."
    checks = [check.model_copy(update={"sentence": sentence}) for check in saturated.checks]
    text = markdown.section(saturated.model_copy(update={"checks": checks}))
    assert len(cells(text, 11)) == 8
    assert "<img" not in text
    assert "**bold**" not in text


def test_adaptive_attacks_are_listed_and_masked_ones_are_called_no_robustness(saturated):
    assert "Adaptive attacks" not in markdown.section(saturated)
    text = markdown.section(saturated.model_copy(update={"worst_case": WORST}))
    assert "| **worst case of all** | **25.0 %** |" in text
    assert "| U1-head-1 | 30.0 % |" in text
    assert "| T5-masked-fgsm: masked, no robustness | 90.0 % |" in text


def test_the_page_of_a_checkpoint_says_what_it_is_and_how_to_make_it_again(saturated):
    text = markdown.page(saturated)
    assert text.startswith("# Audit: bright · Linf 8/255 · linear · standard · checkpoint c0ffee00")
    assert "| checkpoint | `c0ffee" in text
    assert text.rstrip().endswith("    aal-bench audit model.pt --quick")
    assert text.count("\n# ") == 0


def test_the_cost_is_counted_in_passes(saturated):
    cost = saturated.cost
    said = f"Cost: {cost.forwards:,} forward and {cost.backwards:,} backward passes"
    assert said in markdown.section(saturated)
