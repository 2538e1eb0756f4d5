"""Where the entries of the boards lie, and how one is read. No torch.

``leaderboards/<task>/<norm>/<entry>.json`` with its evidence ``<entry>.npz`` beside it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

from aal_bench.config import parse, shorten
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.leaderboard.untrusted import read_detections, read_evidence, read_json
from aal_bench.record import Result
from aal_bench.schema import ThreatBlock

REPORTED = "reported"
"""What others published: no board."""
NORMS: tuple[str, ...] = get_args(ThreatBlock.model_fields["norm"].annotation)
"""Names of a board's folder within its task's."""
NO_BOARD = (
    "detection results have no board yet; aal-bench compare A B sets two of them side by side"
)
"""Why a detection result is neither submitted nor verified nor ranked."""
BOARD_FILES = ("board.json", "BOARD.md", "README.md")
"""What lies beside the tasks' folders and is no entry."""
RUN_RECORD = "result.json"
"""The record of a run that is no entry yet."""
RUN_STATE = "run.json"
"""What a run's folder is told by."""
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
        """Of the ``.npz`` beside it: the entry's name, or what a run calls its evidence."""
        if self.is_run:
            return self.path.with_name("evidence.npz")
        return self.path.with_suffix(".npz")

    @property
    def is_run(self) -> bool:
        """A run's own ``result.json``, before it is submitted: it has no seal and no name yet."""
        return self.path.name == RUN_RECORD and not on_board(self.path)

    def evidence(self) -> Evidence:
        """The per-sample table, read anew.

        Raises:
            UserError: it is missing, damaged, larger than its rows need, or a symbolic link; or
                a detection result's, see `detections`.
        """
        if self.result.task.family == "detection":
            raise UserError(f"{self.path}: {NO_BOARD}")
        return read_evidence(self.evidence_path, self.result.task.rows, len(self.result.evaluation))

    def detections(self) -> DetectionEvidence:
        """The per-image table of a detection result, read anew.

        Raises:
            UserError: it is missing, damaged, too large, or a symbolic link.
        """
        return read_detections(self.evidence_path)


def folder(root: Path, task: str, norm: str) -> Path:
    """The folder of a board below `root`."""
    return root / task / norm


def on_board(path: Path) -> bool:
    """Whether a file lies where entries do: in a folder named after a norm."""
    return absolute(path).parent.name in NORMS


def root_of(where: Path) -> Path:
    """The folder that holds the boards: for itself, for one of its folders, or an entry's file."""
    here = absolute(where)
    if here.name not in NORMS and on_board(here):
        here = here.parent
    if here.name in NORMS:
        return here.parent.parent
    if _holds_boards(here):
        return here
    return here.parent if any((here / norm).is_dir() for norm in NORMS) else here


def absolute(path: Path) -> Path:
    """`path` from the root of the file system, without ``..``; links are not followed."""
    return Path(os.path.abspath(path))


def find(where: Path) -> list[Path]:
    """Every record file of a board, of all boards below a folder, or the one file `where`.

    ``reported/`` is no board, the committed ``board.json`` at the top no entry, and hidden files
    are somebody's unfinished writing. A run's folder has its ``result.json``.

    Raises:
        UserError: nothing is there, or an ``.npz``.
    """
    try:
        there = where.exists() or where.is_symlink()
    except OSError as error:
        raise UserError(f"{shorten(str(where))}: {error.strerror}") from None
    if not there:
        raise UserError(f"{where}: no such file or folder")
    if is_reported(where):
        return []
    if not where.is_dir():
        if where.suffix == ".npz":
            raise UserError(f"{where}: is an entry's evidence: name the .json beside it")
        return [where]
    if is_run_folder(where):
        return [where / RUN_RECORD]
    top = root_of(where) == absolute(where)
    found = [path for path in where.rglob("*.json") if _is_entry(path.relative_to(where), top)]
    return sorted(found)


def is_run_folder(where: Path) -> bool:
    """Whether a folder is a run's: it has a ``run.json``, and nothing below it is a board.

    A ``run.json`` among boards is no reason to look at nothing else.
    """
    here = absolute(where)
    if here.name in NORMS or not (here / RUN_STATE).is_file():
        return False
    return not any(path.is_dir() for norm in NORMS for path in here.rglob(norm))


def is_reported(where: Path) -> bool:
    """Whether this is the folder of published numbers beside the boards, or a file in it."""
    here = absolute(where)
    folder = here if here.name == REPORTED else here.parent
    return folder.name == REPORTED and _holds_boards(folder.parent) and not _holds_boards(folder)


def _holds_boards(folder: Path) -> bool:
    """Whether ``<task>/<norm>/`` lies directly below."""
    return any(path.is_dir() for norm in NORMS for path in folder.glob(f"*/{norm}"))


def read(path: Path) -> Entry:
    """Read and check one record file, whoever wrote it.

    Raises:
        UserError: it is not what the schema asks for; one line.
    """
    return checked(path, read_json(path))


def checked(path: Path, tree: dict[str, Any]) -> Entry:
    """Check the JSON of a record file against the schema.

    Raises:
        UserError: it is not what the schema asks for; one line.
    """
    try:
        return Entry(path, tree, parse(Result, tree, path.name))
    except (ArithmeticError, RecursionError):
        # Numbers of thousands of digits, which the schema's own arithmetic cannot take.
        raise UserError(f"{path.name}: holds a number that is out of all bounds") from None


def _is_entry(path: Path, top: bool) -> bool:
    if any(part.startswith(".") for part in path.parts[:-1]):
        return False
    if path.name.startswith("."):
        return False
    return not (top and (path.parts[0] == REPORTED or str(path) in BOARD_FILES))
