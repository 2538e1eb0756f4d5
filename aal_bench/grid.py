"""Tables in Markdown, and strings that somebody else wrote. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_MARKED = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
    | {mark: f"\\{mark}" for mark in "\\`*_[]~#!"}
)


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells may hold Markdown, and their pipes and line breaks stay inside."""

    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )

    return "\n".join([line(head), line(["---"] * len(head)), *(line(row) for row in rows)])


def plain(text: str) -> str:
    """A submitted string on one line, without anything that steers a terminal or turns text."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def escape(text: str) -> str:
    """A submitted string as Markdown that shows it as it is: no markup, no HTML, no new column."""
    return plain(text).translate(_MARKED)
