"""How a rule states what it found: one line, whatever a stranger wrote into the entry. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aal_bench.config import shorten
from aal_bench.leaderboard.findings import Finding

WIDTH = 240
"""Characters of a finding's line; what is cut ends in dots."""
SHOWN = 2
"""Faults of one rule that are spelt out; the others are counted."""


def rule(level: int, name: str, faults: Iterable[str], fine: str) -> Finding:
    """The finding of a rule that is kept when it has no `faults`.

    Args:
        level: 0..4, the level that the rule belongs to.
        name: its short name.
        faults: what is wrong, one short sentence each.
        fine: what is said where nothing is wrong.
    """
    try:
        found = list(faults)
    except (ArithmeticError, ValueError):
        # Numbers of thousands of digits, which neither a float nor a printed line can hold.
        found = ["a number is out of all bounds"]
    more = len(found) - SHOWN
    told = "; ".join(printable(fault) for fault in found[:SHOWN])
    text = f"{told} (and {more} more)" if more > 0 else told
    return Finding(level, name, not found, text or printable(fine))


def printable(text: str, width: int = WIDTH) -> str:
    """`text` on one line of at most `width` characters, without what could steer a terminal."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shorten(text, width)
    )


def shown(value: object, width: int = 40) -> str:
    """A value as a finding quotes it: at most `width` characters."""
    return shorten(repr(value), width)


def placed(place: object) -> str:
    """A path below the boards' root as a finding names it: whole, if somebody named it soundly."""
    return shown(str(place), 100)


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are written alike: 1, 1.0 and true are three values."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def differing(stated: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> Iterator[str]:
    """A fault for each of the `expected` values that `what` states otherwise."""
    for key, value in expected.items():
        if not same(stated.get(key), value):
            yield f"{what}.{key} is {shown(stated.get(key))}, not {shown(value)}"


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and every value that is no object or list, as (dotted path, value)."""
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield f"{path}.(key)" if path else "(key)", key
            yield from leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(tree, list):
        for position, child in enumerate(tree):
            yield from leaves(child, f"{path}.{position}")
    else:
        yield path, tree
