"""Level 0, how the boards lie in their folder: what is known, plain, in pairs. No torch.

Below the boards' root lie ``README.md``, ``BOARD.md``, ``board.json``, ``reported/`` and
``<task>/<Linf|L2>/`` with the entries. Whatever else lies there somebody has put there, and
nobody would look at it: it is a fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from aal_bench.leaderboard.entries import BOARD_FILES, NORMS, REPORTED, absolute, on_board
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import placed, rule, shown

PENDING = (".new", ".tmp")
"""What a process that is writing an entry, or was killed, has there under a hidden name."""
UNFINISHED = "unfinished writing, aal-bench submit finishes or removes it; do not commit it"
GIT = ".git"
"""At the top, where the boards are a repository of their own; git itself takes nothing so named."""


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
        rule(0, "pairs", _strays(here, root), "every evidence has its record, nothing else there"),
        rule(0, "names", _twice(files), f"{len(files)} entries, each under a name of its own"),
    ]


def _links(here: Path, root: Path) -> Iterator[str]:
    for path in _below(here, root):
        if path.is_symlink():
            yield f"{placed(path.relative_to(here))} is a symbolic link"


def _linked_above(here: Path, root: Path) -> Iterator[str]:
    while here != root and here.is_relative_to(root):
        if here.is_symlink():
            yield f"{shown(here.name)} is a symbolic link"
        here = here.parent


def _below(here: Path, root: Path) -> Iterator[Path]:
    """Every folder and file below, in order; what cannot be listed is told entry by entry."""
    for folder, folders, names in os.walk(here):
        if Path(folder) == root and GIT in folders:
            folders.remove(GIT)
        folders.sort()
        for name in sorted((*folders, *names)):
            yield Path(folder) / name


def _strays(here: Path, root: Path) -> Iterator[str]:
    """What the boards do not know, named from their root; of an unknown folder only itself."""
    unknown: list[Path] = []
    for path in _below(here, root):
        if any(path.is_relative_to(above) for above in unknown):
            continue
        place = path.relative_to(root)
        fault = _fault(place.parts, path)
        if fault is not None:
            unknown.append(path)
            yield f"{placed(place)} {fault}"


def _fault(parts: tuple[str, ...], path: Path) -> str | None:
    """What is wrong with what lies at `parts` below the boards' root; None: nothing."""
    *above, name = parts
    folder, hidden = path.is_dir(), name.startswith(".")
    if not folder and hidden and name.endswith(PENDING):
        return f"is {UNFINISHED}"
    if hidden:
        return "is hidden"
    if not above:
        known = name not in NORMS if folder else name in BOARD_FILES
        return None if known else "is no task's folder"
    if above == [REPORTED]:
        return None if not folder and path.suffix in (".json", ".md") else "is no published table"
    if len(above) == 1:
        return None if folder and name in NORMS else f"is no {' or '.join(NORMS)}"
    if folder or path.suffix not in (".json", ".npz"):
        return "is no entry's"
    if path.suffix == ".npz" and not path.with_suffix(".json").exists():
        return "has no record"
    return None


def _twice(files: list[Path]) -> Iterator[str]:
    """Names that a file system without capital letters takes for one."""
    seen: dict[tuple[Path, str], Path] = {}
    for path in files:
        key = (path.parent, path.name.casefold())
        if on_board(path) and key in seen:
            yield f"{shown(path.name)} and {shown(seen[key].name)} are one name"
        seen[key] = path
