"""What a verification leaves in the entry: a level that it reached, images that fell, or both.

A lie that was caught leaves a trace: what falls at level 3 is recorded even where its rule breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aal_bench.errors import UserError
from aal_bench.hashing import sha256_json
from aal_bench.leaderboard import pair
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.extend import Verified, confirm, extend
from aal_bench.leaderboard.findings import Finding, broken

if TYPE_CHECKING:
    from aal_bench.verification.reattack import Reattack

REPLAYED, ATTACKED = 2, 3
"""Levels."""


def sign(
    entry: Entry, before: bytes, by: str, findings: Sequence[Finding], found: Reattack | None
) -> str:
    """Write the outcome into the entry, if it still is the one that was verified.

    Args:
        entry: level 2 holds.
        before: the bytes of its ``.json`` when the verification began.
        by: who verified.
        findings: everything that was found; the report.
        found: survivors attacked again; None: level 3 was not asked for.

    Returns:
        What was recorded, by whom and where: one line.

    Raises:
        UserError: the entry was changed meanwhile.
    """
    level = reached(findings, found)
    seed = found.seed if found is not None and level == ATTACKED else None
    report = sha256_json([finding._asdict() for finding in findings])
    verified = Verified(by, level, seed, report, _note(level, found))
    with pair.locked(entry.path.parent):
        if entry.path.read_bytes() != before:
            raise UserError(f"{entry.path}: was changed while it was verified; verify it again")
        if found is None or not len(found.fallen):
            result, table = confirm(entry, verified), entry.evidence_path
        else:
            result, table, _ = extend(entry, found.attacked, verified)
        pair.write(entry.path, result, table)
    held = result.verification.level
    told = "level 3 broken" if level is None else f"level {level}"
    if found is not None and len(found.fallen):
        told += f", external {result.external} %,"
    stays = "" if held == level else f"; the entry stays at level {held}"
    return f"{told} by {by} in {entry.path}{stays}"


def reached(findings: Sequence[Finding], found: Reattack | None) -> int | None:
    """The level that may be recorded; None: level 3's rule fired, and the entry keeps its own."""
    if broken(findings) is not None:
        return None
    return ATTACKED if found is not None and found.enough else REPLAYED


def unrecorded(saved: Path | None) -> Finding:
    """How what fell is kept when nobody signs: the images are a proof by themselves."""
    how = "--save FILE keeps the images, --challenge FILE brings them"
    if saved is not None:
        how = f"--challenge {saved} brings the images"
    return Finding(ATTACKED, "unrecorded", True, f"nothing is written without --by: {how}")


def _note(level: int | None, found: Reattack | None) -> str:
    if found is None:
        return f"level {level}: stored adversarials replayed"
    params = found.attacked.params
    told = {
        None: "level 3 broken",
        REPLAYED: "level 2, for a record of level 3 needs more survivors",
        ATTACKED: "level 3",
    }
    return (
        f"{told[level]}: {params['sampled']} of {params['of']} survivors attacked under seed"
        f" {found.seed} of public string '{params['public_string']}', {len(found.fallen)} fell"
    )
