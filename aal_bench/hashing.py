"""Canonical JSON and the hashes that identify a question, a configuration and a run.

Canonical means UTF-8, sorted keys, no spaces, no floats: 8/255 printed as
0.03137254901960784 by one library and as 0.031372549 by another would be two hashes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """Return `value` as canonical JSON.

    Raises:
        TypeError: it holds a float; write floats as strings (`without_floats`).
    """

    def check(node: Any) -> None:
        if isinstance(node, float):
            raise TypeError(f"canonical JSON has no floats, got {node!r}; write it as a string")
        if isinstance(node, dict):
            for key, child in node.items():
                if not isinstance(key, str):
                    raise TypeError(f"canonical JSON has string keys only, got {key!r}")
                check(child)
        elif isinstance(node, list | tuple):
            for child in node:
                check(child)

    check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def without_floats(value: Any) -> Any:
    """Copy a JSON tree with every float written as its shortest round-trip string."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {key: without_floats(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [without_floats(child) for child in value]
    return value


def sha256_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON of `value` (floats written as strings first)."""
    return hashlib.sha256(canonical(without_floats(value)).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
