"""How values are written on the pages: the filters of the templates. Escaping is not done here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from aal_bench.config import shorten
from aal_bench.leaderboard import cells

NONE = "–"
"""What stands where there is no value."""
_DEPTH = 4
"""Nested deeper, a configuration is shown as JSON: nobody's recursion is followed to its end."""


def duration(seconds: float | None) -> str:
    """Seconds with the unit that reads best: ``12.3 s``, ``41.0 min``, ``5.3 h``."""
    if seconds is None:
        return NONE
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"


def size(octets: float | None) -> str:
    """Bytes in decimal units: ``122.7 kB``."""
    if octets is None:
        return NONE
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if octets >= length:
            return f"{octets / length:,.1f} {unit}"
    return f"{octets:,.0f} bytes"


def plain(value: object) -> str:
    """A value of a configuration: strings as they are, the rest as JSON, None as `NONE`."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def flat(tree: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, str]]:
    """The leaves of a configuration as (dotted key, value), in its order."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and depth < _DEPTH:
            yield from flat(value, f"{prefix}{key}.", depth + 1)
        else:
            yield prefix + str(key), plain(value)


def command(argv: Sequence[str]) -> str | None:
    """An argument vector for a shell; None when it cannot be pasted without harm.

    Control characters end a terminal's bracketed paste or hide what a line does.
    """
    return shlex.join(argv) if all(word.isprintable() for word in argv) else None


FILTERS = {
    "points": partial(cells.percent, none=NONE),
    "interval": cells.interval,
    "duration": duration,
    "count": partial(cells.count, none=NONE),
    "device": cells.device,
    "passes": cells.passes,
    "passes_in_all": cells.passes_in_all,
    "size": size,
    "plain": plain,
    "flat": lambda tree: list(flat(tree or {})),
    "shorten": shorten,
}
