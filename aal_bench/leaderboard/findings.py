"""What a verification says: one finding for each rule, and whether its level holds. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

LEVELS = {
    0: "well-formed",
    1: "recomputed",
    2: "replayed",
    3: "attacked again",
    4: "challenged",
}
"""Level -> its name; what each proves and leaves open: `site.levels`."""


class Finding(NamedTuple):
    """One rule, applied to one entry."""

    level: int
    """0..4, the level that the rule belongs to."""
    rule: str
    """Its short name: ``schema``, ``hashes``, ``autoattack order``."""
    ok: bool
    """Whether the entry keeps it."""
    text: str
    """One line: what was found, and where the rule is broken what was expected."""


def broken(findings: Iterable[Finding]) -> int | None:
    """The lowest level with a rule that is broken; None: all hold."""
    return min((finding.level for finding in findings if not finding.ok), default=None)
