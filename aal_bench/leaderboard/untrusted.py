"""Reading JSON that anybody may have sent: every way in which it is no record ends in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from aal_bench.errors import UserError

LARGEST = 1 << 22
"""Bytes of the largest record that is read: 4 MiB; a real one has about 20 kB."""


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Read one JSON object strictly.

    Raises:
        UserError: no plain file, too large, not UTF-8, not JSON, nested too deep to be a record, a
            key that occurs twice, NaN or infinity, a lone surrogate, or no object.
    """
    try:
        if path.is_symlink():
            raise UserError(f"{path}: is a symbolic link; a record is a plain file")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        size = path.stat().st_size
        if size > largest:
            raise UserError(f"{path}: {size:,} bytes; a record has at most {largest:,}")
        text = path.read_bytes().decode("utf-8")
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
    return tree


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} occurs twice")
    return tree


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value
