"""Reading files that anybody may have sent: every way in which one is no entry ends in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from aal_bench.errors import UserError
from aal_bench.evidence import STAGE, Evidence

LARGEST = 1 << 20
"""Bytes of the largest record that is read: 1 MiB; a real one has about 20 kB."""
DEEPEST = 32
"""Objects and lists within one another; a real record has 8."""
HEADER = 4096
"""Bytes allowed for the frame of one array of an evidence table; numpy writes about 400."""


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Read one JSON object strictly.

    Raises:
        UserError: no plain file, too large, not UTF-8, not JSON, nested too deep to be a record, a
            key that occurs twice, NaN or infinity, a lone surrogate, or no object.
    """
    try:
        plain(path, "a record", largest)
        with path.open("rb") as handle:
            # Not more than that, even if the file has grown since.
            text = handle.read(largest + 1).decode("utf-8")
        tree = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        json.dumps(tree, ensure_ascii=False).encode("utf-8")  # a lone surrogate fails here
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: a string holds half of a character (a lone surrogate)") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deep to be a record") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON record ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a JSON object")
    if _depth(tree) > DEEPEST:
        raise UserError(f"{path}: nested too deep to be a record")
    return tree


def read_evidence(path: Path, rows: int, stages: int) -> Evidence:
    """Read an evidence table that claims `rows` rows and `stages` attack stages.

    What it may unpack to follows from both: a bomb is refused by its own listing.

    Raises:
        UserError: no plain file, larger than its rows need, damaged, or no evidence table.
    """
    largest = unpacked(rows, stages)
    plain(path, "its evidence", largest)
    return Evidence.load(path, largest)


def unpacked(rows: int, stages: int) -> int:
    """Bytes that an evidence table of so many rows and attack stages may hold."""
    return rows * (4 + 2 + 2 + stages * STAGE.itemsize) + (stages + 4) * HEADER


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


def _depth(tree: Any) -> int:
    """How deep a JSON tree is nested, counted without recursion."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        nested = [node for node in level if isinstance(node, dict | list)]
        level = [
            child
            for node in nested
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name[:40]!r} occurs twice")
            seen.add(name)
    return tree


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value
