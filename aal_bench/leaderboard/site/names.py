"""Addresses: the files of the site, links between them, and which foreign links are followed."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, urlsplit

from aal_bench.errors import UserError
from aal_bench.leaderboard.board import Board, Row
from aal_bench.leaderboard.entries import ENTRY_NAME

INDEX = "index.html"


def board_file(board: Board) -> str:
    """Of a board's page, relative to the site: ``digits-Linf.html``."""
    return f"{board.task}-{board.norm}.html"


def entry_file(board: Board, row: Row) -> str:
    """Of an entry's page, relative to the site: ``digits-Linf/<entry>.html``."""
    return f"{board.task}-{board.norm}/{row.id}.html"


def href(path: str, root: str = "") -> str:
    """The address of a file of the site; `root` leads from the linking page to the site's top."""
    return root + quote(path)


def web(address: object) -> str | None:
    """A submitted address when it is one of the web (http or https), else None.

    Anything else, ``javascript:`` above all, is shown as text and never as a link.
    """
    text = str(address or "").strip()
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return text if parts.scheme in {"http", "https"} and parts.hostname else None


def check(boards: Iterable[Board]) -> None:
    """Refuse names that would not stay inside the site's folder as file names.

    Raises:
        UserError: a task or an entry is named so.
    """
    for board in boards:
        rows = (row for section in board.sections for one in section.standings for row in one.rows)
        for name in (f"{board.task}-{board.norm}", *(row.id for row in rows)):
            if not ENTRY_NAME.fullmatch(name):
                raise UserError(
                    f"{name!r} cannot name a page: letters, digits and _.+- only, as in"
                    " Rice2020Overfitting; rename the entry"
                )
