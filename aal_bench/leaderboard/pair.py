"""A record and its evidence, written together: both or neither, by one process at a time.

Two files cannot be renamed at once, so the intention is written first: ``.<entry>.npz.new``, then
``.<entry>.json.new``, then both are renamed. Whoever locks the folder next finishes what a killed
process had fully written, and removes what it had not.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.files import replacing, write_text
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard.untrusted import read_json
from aal_bench.record import Result
from aal_bench.results import dumps


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it alone: another process waits here. Mends what a killed one left.

    Raises:
        UserError: the folder cannot be made or written, or is a symbolic link.
    """
    if folder.is_symlink():
        raise UserError(f"{folder}: is a symbolic link; a board is a plain folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The folder itself is locked: no lock file that could be left behind or committed.
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        recover(folder)
        yield
    finally:
        os.close(descriptor)


def write(path: Path, result: Result, evidence: Path | Evidence) -> None:
    """Write ``<entry>.json`` and ``<entry>.npz``; the folder is `locked` meanwhile.

    Args:
        path: of the ``.json``.
        result: its ``evidence.sha256`` is that of the table.
        evidence: the table, or the file that holds it.

    Raises:
        ValueError: the record states another sha256 of the table.
        UserError: the folder cannot be written, or the disk is full.
    """
    table, record = _pending(path)
    if isinstance(evidence, Evidence):
        evidence.save(table)
    else:
        with replacing(table) as handle, evidence.open("rb") as source:
            shutil.copyfileobj(source, handle)
    if result.evidence is None or sha256_file(table) != result.evidence.sha256:
        table.unlink()
        raise ValueError("the record states another sha256 of its evidence")
    write_text(record, dumps(result))
    os.replace(table, path.with_suffix(".npz"))
    os.replace(record, path)


def recover(folder: Path) -> None:
    """Finish or remove what a killed process left in the `locked` folder."""
    for record in folder.glob(".*.json.new"):
        path = folder / record.name[1 : -len(".new")]
        table = _pending(path)[0]
        stated = _stated(record)
        if table.is_file() and sha256_file(table) == stated:
            os.replace(table, path.with_suffix(".npz"))
        held = path.with_suffix(".npz")
        if held.is_file() and sha256_file(held) == stated:
            os.replace(record, path)
        record.unlink(missing_ok=True)
    for left in (*folder.glob(".*.new"), *folder.glob(".*.tmp")):
        left.unlink(missing_ok=True)


def _pending(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.stem}.npz.new"), path.with_name(f".{path.stem}.json.new")


def _stated(record: Path) -> object:
    try:
        evidence = read_json(record).get("evidence")
    except UserError:
        return None
    return evidence.get("sha256") if isinstance(evidence, dict) else None
