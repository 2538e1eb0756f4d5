"""Where the entries of the boards lie, and how one is read. No torch.

``leaderboards/<task>/<norm>/<entry>.json`` with its evidence ``<entry>.npz`` beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from aal_bench.config import parse
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.leaderboard.untrusted import read_json
from aal_bench.record import Result

REPORTED = "reported"
"""What others published: no board."""
ENTRY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+\-\[\]]{0,119}", re.ASCII)
"""Names of entries: they become file names and addresses."""


class Entry(NamedTuple):
    """One row of a board as it lies on disk."""

    path: Path
    """Of the ``.json``."""
    tree: dict[str, Any]
    """The file's JSON as it is written."""
    result: Result
    """The same, checked against the schema."""

    @property
    def evidence_path(self) -> Path:
        """Of the ``.npz`` beside it."""
        return self.path.with_suffix(".npz")

    def evidence(self) -> Evidence:
        """The per-sample table, read anew.

        Raises:
            UserError: it is missing, damaged, or a symbolic link.
        """
        if self.evidence_path.is_symlink():
            raise UserError(f"{self.evidence_path}: is a symbolic link; evidence is a plain file")
        return Evidence.load(self.evidence_path)


def folder(root: Path, task: str, norm: str) -> Path:
    """The folder of a board below `root`."""
    return root / task / norm


def find(where: Path) -> list[Path]:
    """Every record file of a board, of all boards below a folder, or the one file `where`.

    ``reported/`` is no board, the committed ``board.json`` at the top no entry, and hidden files
    are somebody's unfinished writing.

    Raises:
        UserError: nothing is there.
    """
    if not where.exists():
        raise UserError(f"{where}: no such file or folder")
    if not where.is_dir():
        return [where]
    found = [path for path in where.rglob("*.json") if _is_entry(path.relative_to(where))]
    return sorted(path for path in found if path.name != "board.json")


def read(path: Path) -> Entry:
    """Read and check one record file, whoever wrote it.

    Raises:
        UserError: it is not what the schema asks for; one line.
    """
    tree = read_json(path)
    return Entry(path, tree, parse(Result, tree, path.name))


def _is_entry(path: Path) -> bool:
    return path.parts[0] != REPORTED and not any(part.startswith(".") for part in path.parts)
