"""Markdown as another library renders it, with strings that try to be more than a string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from aal_bench.grid import escape, grid, plain

RENDER = MarkdownIt("commonmark").enable("table").enable("strikethrough")

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "`code` and ``more``",
    "**bold** _it_ ~~no~~",
    "[text](javascript:alert(1))",
    "![image](x)",
    "back\\slash \\| pipe",
    "# heading",
    "&lt;b&gt; &#124; &copy;",
    "<http://a.example>",
    "<!-- gone -->",
]


def cells(text: str) -> list[list[str]]:
    """The rows of the only table in `text`, as the words that a reader sees."""
    tokens = RENDER.parse(text)
    assert tokens[0].type == "table_open"
    assert tokens[-1].type == "table_close"
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}, token.content
            rows[-1].append("".join(child.content for child in children))
    return rows


@pytest.mark.parametrize("text", HOSTILE)
def test_a_submitted_string_is_shown_as_it_is(text):
    assert cells(grid(("a", "b"), [(escape(text), "x")])) == [["a", "b"], [text, "x"]]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_string_is_one_cell(text):
    shown = cells(grid(("a", "b"), [("x" + escape(text) + "x", "y")]))
    assert shown == [["a", "b"], [f"x{plain(text)}x", "y"]]


def test_markdown_in_a_cell_stays_in_its_cell():
    assert grid(("a",), [("**x** | y\nz",)]) == "| a |\n| --- |\n| **x** \\| y z |"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r\n and\ttabs", "two lines and tabs"),
        ("red \x1b[31m", "red [31m"),
        ("right\u202eto left", "right to left"),
        ("zero\u200bwidth", "zero width"),
        ("Ångström, Übung, 漢字", "Ångström, Übung, 漢字"),
    ],
)
def test_plain_is_one_line_of_characters_that_can_be_seen(text, shown):
    assert plain(text) == shown
