"""The pages of docs/methods are what the code says; what is read from it is read right."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from aal_bench import method_pages, registry
from aal_bench.config import Strict
from aal_bench.method_pages import Option, escaped, options, prose, table
from aal_bench.methods.trades import TRADESOptions

FOLDER = Path(__file__).parent.parent / "docs" / "methods"
MEND = "docs/methods is not what the code says. Mend: make docs"


@pytest.fixture(scope="module")
def pages():
    return dict(method_pages.render())


def test_the_pages_in_docs_are_those_that_the_code_makes(pages):
    stored = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert stored.keys() == pages.keys(), MEND
    assert [name for name in pages if stored[name] != f"{pages[name]}\n"] == [], MEND


def test_writing_replaces_what_is_there_and_drops_the_page_of_a_method_that_is_gone(
    tmp_path, pages
):
    (tmp_path / "pgd.md").write_text("old")
    (tmp_path / "gone.md").write_text("old")
    written = method_pages.write(tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "pgd.md").read_text(encoding="utf-8") == f"{pages['pgd.md']}\n"


def test_every_method_has_a_page_that_the_table_links_to(pages):
    assert pages.keys() == {"README.md", *(f"{name}.md" for name in registry.METHODS)}
    assert all(f"[{name}]({name}.md)" in pages["README.md"] for name in registry.METHODS)


@pytest.mark.parametrize("name", registry.METHODS)
def test_every_option_of_a_method_is_on_its_page_with_words(name):
    kind = registry.load(registry.METHODS[name].target)
    found = options(kind.Options)
    assert {o.name.split(".")[0] for o in found} == kind.Options.model_fields.keys()
    assert [o.name for o in found if not o.text or not o.values] == []


def test_a_page_has_formula_cost_options_numbers_and_source(pages):
    page = pages["trades.md"]
    for line in (
        "| loss | CE(f(x), y) + β KL(p(x) ‖ p(x')), β = 6 |",
        "| model | 13 | 10 | 2 |  |",
        "| `beta` | 6 | ≥ 0 | Weight of the robust term; 6 in the official code, and 0 is standard"
        " training. |",
        "- Zhang et al. 2019: Theoretically Principled Trade-off between Robustness and Accuracy."
        " arXiv 1901.08573",
        "    aal-bench run cifar10 --method trades",
    ):
        assert line in page.splitlines()
    # As printed: the AGAIN poster's table and RobustBench.
    assert "AutoAttack 48.41 | AGAIN, white-box attack, ResNet-18: TRADES |" in page
    assert "| CIFAR10 | WideResNet-34-10 | 0.031 | clean 84.92, AutoAttack 53.08;" in page


def test_an_official_recipe_is_shown_with_its_commands_where_there_is_one(pages):
    assert "--recipe" not in pages["standard.md"]
    for name, row in registry.METHODS.items():
        recipe, page = registry.load(row.target).recipe, pages[f"{name}.md"]
        assert (f"--method {name} --recipe official\n" in page) == (recipe is not None)
        exact = recipe is None or not recipe.eps_031
        assert (f"--method {name} --recipe official-031\n" in page) != exact
        for key in () if recipe is None else recipe.train:
            assert f"| `train.{key}` |" in page


# ---- options -------------------------------------------------------------------------------------


class Inner(Strict):
    """A table inside the options."""

    share: float = Field(1 / 3, gt=0, le=1, description="By Field")


class Outer(TRADESOptions):
    """Options of a test."""

    beta: float = Field(2.0, ge=0)
    way: Literal["a", "b"] = "a"
    """Below, in
    two lines, with ``code``."""
    rate: Literal["follow"] | Annotated[float, Field(ge=0)] = "follow"
    """Either."""
    cap: int | None = Field(None, ge=1)
    """Unset: none."""
    pair: tuple[float, int] = (0.5, 2)
    """Two."""
    on: bool = False
    """A switch."""
    inner: Inner = Inner()


def test_options_are_read_from_fields_and_from_the_docstrings_below_them():
    assert options(Outer)[1:] == [
        # Of its own a default; of the class that it inherits from the words.
        Option("beta", "2", "≥ 0", options(TRADESOptions)[1].text),
        Option("start_std", "0.001", "≥ 0", options(TRADESOptions)[2].text),
        Option("way", "a", "a, b", "Below, in two lines, with `code`."),
        Option("rate", "follow", "follow or ≥ 0", "Either."),
        Option("cap", "none", "≥ 1 or none", "Unset: none."),
        Option("pair", "[0.5, 2]", "[number, whole number]", "Two."),
        Option("on", "false", "true, false", "A switch."),
        Option("inner.share", "1/3", "> 0 and ≤ 1", "By Field"),
    ]


# ---- Markdown ------------------------------------------------------------------------------------


def test_formulas_stay_text_and_code_stays_code():
    assert escaped("min_W a*b |x| < _y_ `a*b|c_`") == r"min_W a\*b \|x\| \< \_y\_ `a*b|c_`"
    assert escaped("[pgd](pgd.md)") == "[pgd](pgd.md)"


def test_a_docstring_becomes_paragraphs_of_one_line():
    assert prose("One\n    line.\n\nTwo ``x``.") == "One line.\n\nTwo `x`."


def test_a_table_has_as_many_columns_in_every_line():
    assert table(("a", "b"), [("x|y", "z")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y | z |",
    ]
