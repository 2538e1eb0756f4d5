"""Strict JSON of a record, whoever wrote it: every way in which it is none ends in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from aal_bench.errors import UserError

DEEPEST = 32
"""Objects and lists within one another; a real record has 8."""


def parse(content: bytes, path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds.

    Args:
        content: of the file.
        path: of the file, for messages.

    Raises:
        UserError: not UTF-8, not JSON, nested too deep to be a record, a key that occurs twice, NaN
            or infinity, a lone surrogate, or no object.
    """
    try:
        tree = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        json.dumps(tree, ensure_ascii=False).encode("utf-8")  # a lone surrogate fails here
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
