"""Reading files that anybody may have sent: every way in which one is no entry ends in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aal_bench import strict_json
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.errors import UserError
from aal_bench.evidence import STAGE, Evidence

LARGEST = 1 << 20
"""Bytes of the largest record that is read: 1 MiB; a real one has about 20 kB."""
LARGEST_TABLE = 1 << 28
"""Bytes of the largest evidence table, packed or unpacked, whatever its record claims: 256 MiB."""
LARGEST_DETECTIONS = 1 << 31
"""The same of a detection run's table, of which a stage alone may take 27 MB: 2 GiB."""
HEADER = 4096
"""Bytes allowed for the frame of one array of an evidence table; numpy writes about 400."""


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Read one JSON object strictly.

    Raises:
        UserError: no plain file, too large, or refused by `strict_json.parse`.
    """
    plain(path, "a record", largest)
    try:
        with path.open("rb") as handle:
            # Not more than that, even if the file has grown since.
            content = handle.read(largest + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return strict_json.parse(content, path)


def read_evidence(path: Path, rows: int, stages: int) -> Evidence:
    """Read an evidence table that claims `rows` rows and `stages` attack stages.

    What it may unpack to follows from both: a bomb is refused by its own listing.

    Raises:
        UserError: no plain file, larger than its rows need, damaged, or no evidence table.
    """
    largest = unpacked(rows, stages)
    plain(path, "its evidence", largest)
    return Evidence.load(path, largest)


def read_detections(path: Path) -> DetectionEvidence:
    """Read a detection run's table; how many boxes an image may have, its record does not say.

    Raises:
        UserError: no plain file, too large, damaged, or no detection table.
    """
    plain(path, "its evidence", LARGEST_DETECTIONS)
    return DetectionEvidence.load(path, LARGEST_DETECTIONS)


def unpacked(rows: int, stages: int) -> int:
    """Bytes that an evidence table of so many rows and attack stages may hold.

    A submitter states both himself: never more than `LARGEST_TABLE`.
    """
    # episode (few-shot only), index, label, clean_pred, and the stages.
    claimed = rows * (4 + 4 + 2 + 2 + stages * STAGE.itemsize) + (stages + 5) * HEADER
    return min(claimed, LARGEST_TABLE)


def plain(path: Path, what: str, largest: int) -> None:
    """Refuse a symbolic link, what is no file (a pipe would wait for ever), and a large file.

    Raises:
        UserError: one of these, or it may not be looked at; `what` names what it should be.
    """
    try:
        if path.is_symlink():
            raise UserError(f"{path}: is a symbolic link; {what} is a plain file")
        if not path.exists():
            raise UserError(f"{path}: no such file")
        if not path.is_file():
            raise UserError(f"{path}: not a plain file")
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if size > largest:
        raise UserError(f"{path}: {size:,} bytes; {what} has at most {largest:,}")
