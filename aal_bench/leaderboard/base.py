"""Level 0, against what was there before: boards as a pull request leaves them. No torch.

A record can be forged whole, its history with it. What cannot be forged is the copy that others
hold: the boards as they are on the main branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from aal_bench.errors import UserError
from aal_bench.leaderboard import entries
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.history import CLAIMED, lowered
from aal_bench.leaderboard.rules import placed, rule, same, shown
from aal_bench.record import Result

Held = Mapping[str, Entry]
"""``<task>/<norm>/<entry>.json`` below the boards' root -> the entry."""


def findings(where: Path, base: Path, maintainer: bool = False) -> list[Finding]:
    """Compare boards with what they were.

    Args:
        where: the folder of all boards, or a task's or a board's below it.
        base: the folder of all boards as they were, or the same part of it.
        maintainer: whoever made the change may set levels above 1.

    Returns:
        One finding for each rule. An entry of `where` that cannot be read is no more than missing
        here: its own findings say why.

    Raises:
        UserError: one of them is no folder, `base` has no entries, or one there cannot be read.
    """
    for folder in (where, base):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; --base compares a folder of boards")
    before, part = _base(base), _part(where)
    if not before:
        raise UserError(f"{base}: no entries here to compare with")
    before = {place: entry for place, entry in before.items() if place.startswith(part)}
    now = _readable(where)
    return [
        rule(0, "kept", _gone(where, now, before), f"all {len(before)} entries of the base"),
        rule(0, "histories", _rewritten(now, before), "each begins with the base's"),
        rule(0, "lowered", _washed(now, before), "what fell once is lowered wherever it stands"),
        rule(0, "values", _raised(now, before), "external rises nowhere"),
        rule(0, "claims", _claimed(now, before, maintainer), _allowed(maintainer)),
    ]


def _part(where: Path) -> str:
    """Which part of the boards `where` is: ``""``, ``digits/`` or ``digits/Linf/``."""
    below = entries.absolute(where).relative_to(entries.root_of(where)).as_posix()
    return "" if below == "." else f"{below}/"


def _place(path: Path, root: Path) -> str:
    return entries.absolute(path).relative_to(root).as_posix()


def _base(base: Path) -> dict[str, Entry]:
    root = entries.root_of(base)
    return {_place(path, root): entries.read(path) for path in entries.find(base)}


def _readable(where: Path) -> dict[str, Entry]:
    root, found = entries.root_of(where), {}
    for path in entries.find(where):
        try:
            found[_place(path, root)] = entries.read(path)
        except UserError:
            continue
    return found


def _gone(where: Path, now: Held, before: Held) -> Iterator[str]:
    root = entries.root_of(where)
    for place in before.keys() - now.keys():
        there = (root / place).is_file()
        yield f"{placed(place)} {'cannot be read any more' if there else 'has disappeared'}"


def _rewritten(now: Held, before: Held) -> Iterator[str]:
    for place in sorted(now.keys() & before.keys()):
        old, new = (_events(held[place].result) for held in (before, now))
        if not same(new[: len(old)], old):
            yield f"the history of {placed(place)} does not begin with the base's {len(old)} events"
        elif len(new) == len(old) and before[place].result.run_hash != now[place].result.run_hash:
            yield f"{placed(place)} holds another run, and no event says so (submit --replace)"


def _events(result: Result) -> list[object]:
    return [event.model_dump(mode="json") for event in result.verification.history]


def _washed(now: Held, before: Held) -> Iterator[str]:
    """Checkpoints and runs that had been brought down, under any name of the same board."""
    for old_place, entry in before.items():
        old, board = entry.result, old_place.rpartition("/")[0]
        fallen = {event.run_hash for event in lowered(old.verification.history)} - {None}
        for place, other in now.items():
            new = other.result
            if place.rpartition("/")[0] != board:
                continue
            if _checkpoint(new) == _checkpoint(old) and _rises(old.external, new.external):
                lost = f"{placed(old_place)}, lowered to {old.external} %"
                yield f"{placed(place)} has the checkpoint of {lost}"
            elif new.run_hash in fallen and new.external is None:
                yield f"{placed(place)} is a run that {placed(old_place)} was lowered for"


def _checkpoint(result: Result) -> str | None:
    return None if result.model.checkpoint is None else result.model.checkpoint.sha256


def _raised(now: Held, before: Held) -> Iterator[str]:
    for place in sorted(now.keys() & before.keys()):
        old, new = before[place].result, now[place].result
        if old.run_hash == new.run_hash and _rises(old.external, new.external):
            yield f"external of {placed(place)} was {old.external} %, is {shown(new.external)}"


def _rises(old: str | None, new: str | None) -> bool:
    """Whether a value that something had been lowered to is gone or higher."""
    return old is not None and (new is None or float(new) > float(old))


def _claimed(now: Held, before: Held, maintainer: bool) -> Iterator[str]:
    if maintainer:
        return
    for place, entry in sorted(now.items()):
        changed = place not in before or not same(entry.tree, before[place].tree)
        level = entry.result.verification.level
        if changed and level > CLAIMED:
            yield f"{placed(place)} states level {level}; levels above {CLAIMED} a maintainer sets"


def _allowed(maintainer: bool) -> str:
    return "not judged: a maintainer's change" if maintainer else f"none above level {CLAIMED}"
