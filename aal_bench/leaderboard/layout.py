"""Level 0, how the boards lie in their folder: plain files, pairs, no name twice. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from aal_bench.leaderboard.entries import NORMS, REPORTED, absolute, on_board
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import rule, shown

PENDING = (".new", ".tmp")
"""What a process that is writing an entry, or was killed, has there under a hidden name."""


def findings(where: Path, root: Path, files: list[Path]) -> list[Finding]:
    """The rules about a folder and what lies below it.

    Args:
        where: the folder.
        root: the folder that holds the boards; `where` or above it.
        files: the record files below `where`.
    """
    here = absolute(where)
    links = [*_links(here, root), *_linked_above(here, root)]
    if links:
        return [rule(0, "plain files", links, "")]
    return [
        rule(0, "plain files", [], "no symbolic links"),
        rule(0, "pairs", _strays(here), "every evidence has its record, nothing else lies there"),
        rule(0, "names", _twice(files), f"{len(files)} entries, each under a name of its own"),
    ]


def _links(here: Path, root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(here, onerror=None):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name != REPORTED]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted((*folders, *names)):
            path = Path(folder) / name
            if path.is_symlink():
                yield f"{shown(str(path.relative_to(here)))} is a symbolic link"


def _linked_above(here: Path, root: Path) -> Iterator[str]:
    while here != root and here.is_relative_to(root):
        if here.is_symlink():
            yield f"{shown(here.name)} is a symbolic link"
        here = here.parent


def _strays(here: Path) -> Iterator[str]:
    """Files of a board that are neither a record nor the evidence of one."""
    for board in sorted(_boards(here)):
        for path in _listed(board):
            hidden = path.name.startswith(".")
            if hidden and path.name.endswith(PENDING):
                continue
            if path.is_dir() or hidden or path.suffix not in (".json", ".npz"):
                yield f"{shown(str(path.relative_to(board.parent.parent)))} is no entry's"
            elif path.suffix == ".npz" and not path.with_suffix(".json").exists():
                yield f"{shown(str(path.relative_to(board.parent.parent)))} has no record"


def _listed(board: Path) -> list[Path]:
    try:
        return sorted(board.iterdir())
    except OSError:
        return []  # what cannot be listed cannot be read either, and that is told entry by entry


def _boards(here: Path) -> set[Path]:
    if here.name in NORMS:
        return {here}
    return {path for norm in NORMS for path in here.rglob(norm) if path.is_dir()}


def _twice(files: list[Path]) -> Iterator[str]:
    """Names that a file system without capital letters takes for one."""
    seen: dict[tuple[Path, str], Path] = {}
    for path in files:
        key = (path.parent, path.name.casefold())
        if on_board(path) and key in seen:
            yield f"{shown(path.name)} and {shown(seen[key].name)} are one name"
        seen[key] = path
