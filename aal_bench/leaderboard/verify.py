"""Levels 0 and 1 of one entry, or of every entry below a folder. No torch.

A level is examined only where those below it hold. A file that cannot be read is a finding of
level 0, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import copies, entries, episodes, layout, recomputed, wellformed
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.findings import LEVELS, Finding, broken
from aal_bench.leaderboard.rules import printable, rule
from aal_bench.leaderboard.untrusted import read_evidence, read_json
from aal_bench.record import Result

HIGHEST = 1
"""The highest level that needs no model."""
DECISIVE: dict[int, set[str]] = {2: {"adversarials"}, 3: {"survivors"}}
"""Level -> rules without which it was not examined: a challenge replays the clean images only."""
CHALLENGE = "challenge"
"""The rule that a challenge which finds nothing breaks: it is no fault of the entry's."""
LOWERED = "lowered"
"""The rule that says what a challenge has lowered."""
WIDTH = 2000
"""Characters of a printed path or finding."""
_NOT_OFFERED = rule(0, "board", [entries.NO_BOARD], "")


class Verdict(NamedTuple):
    """What the verification of one entry, or of how a folder's entries lie there, found."""

    path: Path
    findings: list[Finding]
    recorded: str | None = None
    """What was written into the entry, by whom and where; None: nothing was signed."""
    about: str | None = None
    """What this is about, where that is no entry: ``the folder``."""

    @property
    def level_held(self) -> int | None:
        """The highest level such that it and all below were examined and hold; None: not even 0.

        A challenge that nothing fell to leaves the entry as it was.
        """
        entry = [finding for finding in self.findings if not _in_vain(finding)]
        lowest, held = broken(entry), None
        for level in LEVELS:
            rules = {finding.rule for finding in entry if finding.level == level}
            if level == lowest or not rules or not rules >= DECISIVE.get(level, set()):
                break
            held = level
        return held

    @property
    def ok(self) -> bool:
        """Whether every level that was asked for holds."""
        return broken(self.findings) is None


class Board:
    """A board's other entries, each file read once."""

    def __init__(self) -> None:
        self._tables: dict[Path, tuple[str, Evidence] | None] = {}
        self._records: dict[Path, Result | None] = {}

    def records(self, entry: Entry) -> dict[str, Result]:
        """Name -> record of the readable entries beside this one."""
        found = {path.stem: self._record(path) for path in _beside(entry, ".json")}
        return {name: record for name, record in found.items() if record is not None}

    def others(self, entry: Entry) -> dict[str, tuple[str, Evidence]]:
        """Name -> (sha256 of the file, table) of the readable tables beside the entry's own."""
        found = {path.stem: self._table(path, entry) for path in _beside(entry, ".npz")}
        return {name: held for name, held in found.items() if held is not None}

    def _record(self, path: Path) -> Result | None:
        if path not in self._records:
            try:
                self._records[path] = entries.read(path).result
            except UserError:
                self._records[path] = None  # its own rules say what is wrong with it
        return self._records[path]

    def _table(self, path: Path, entry: Entry) -> tuple[str, Evidence] | None:
        if path not in self._tables:
            try:
                # Its own rules say what is wrong with it; it may have stages that this one lacks.
                rows, stages = entry.result.task.rows, 2 * len(entry.result.evaluation) + 8
                table = read_evidence(path, rows, stages)
                self._tables[path] = (sha256_file(path), table)
            except (UserError, OSError):
                self._tables[path] = None
        return self._tables[path]


def _beside(entry: Entry, suffix: str) -> list[Path]:
    """The files of other entries on the same board."""
    if not entries.on_board(entry.path):
        return []
    return [
        path
        for path in sorted(entry.path.parent.glob(f"*{suffix}"))
        if path.stem != entry.path.stem and not path.name.startswith(".")
    ]


def verify(where: Path, level: int = HIGHEST, root: Path | None = None) -> list[Verdict]:
    """Verify the entry `where`, or every entry below that folder and how they lie there.

    Args:
        where: a ``.json``, a board, a task's folder, the folder of all boards, or a run's folder.
        level: the highest level to examine; what is above 1 needs a model and is not examined here.
        root: the folder that holds the boards; None: found from `where`.

    Returns:
        One verdict for each entry; for a folder, first one about the folder itself.

    Raises:
        UserError: nothing is there, a folder holds no entries and nothing that is wrong, or `where`
            is one detection result.
    """
    files = entries.find(where)
    if entries.is_reported(where):
        told = rule(0, "board", [], "what others published: no entries")
        return [Verdict(where, [told], about="the folder")]
    top = entries.root_of(where) if root is None else entries.absolute(root)
    board = Board()
    if not where.is_dir() or files == [where / entries.RUN_RECORD]:
        alone = top if entries.on_board(files[0]) or root is not None else files[0]
        found = examine(files[0], level, alone, board)
        if found[-1] == _NOT_OFFERED:  # nothing is wrong with a run that has nowhere to go
            raise UserError(f"{where}: {entries.NO_BOARD}")
        return [Verdict(files[0], found)]
    about = Verdict(where, layout.findings(where, top, files), about="the folder")
    if not files and about.ok:
        raise UserError(f"{where}: no entries here (<task>/<{' or '.join(entries.NORMS)}>/*.json)")
    return [about, *(Verdict(path, examine(path, level, top, board)) for path in files)]


def examine(path: Path, level: int, root: Path, board: Board) -> list[Finding]:
    """The findings of one record file up to `level`."""
    try:
        tree = read_json(path)
    except UserError as error:
        return [rule(0, "readable", [str(error).removeprefix(f"{path}: ")], "")]
    readable = rule(0, "readable", [], "strict JSON")
    try:
        entry = entries.checked(path, tree)
    except UserError as error:
        return [readable, *wellformed.schema(tree, error)]
    if entry.result.task.family == "detection":
        return [readable, *wellformed.sound(entry), _NOT_OFFERED]
    found = [readable, *wellformed.sound(entry), *wellformed.findings(entry, root)]
    found.append(copies.once(entry.result, board.records(entry)))
    if level < 1 or broken(found) is not None:
        return found
    deeper, table = recomputed.findings(entry)
    found += deeper
    if table is not None and entry.result.evidence is not None:
        if entry.result.task.episodes is not None and broken(deeper) is None:
            records, tables = board.records(entry), board.others(entry)
            found.append(episodes.shared(entry.result, table, records, tables))
        found.append(copies.finding(table, entry.result.evidence.sha256, board.others(entry)))
    return found


def lines(verdicts: Sequence[Verdict], verbose: bool = False) -> Iterator[str]:
    """What a terminal shows: every rule of one entry; of many, only the broken ones.

    Args:
        verdicts: of `verify`.
        verbose: every rule of every entry.
    """
    spelt = verbose or len(verdicts) == 1
    for verdict in verdicts:
        yield f"{_mark(verdict.ok)}  {_summary(verdict):13}  {_told(str(verdict.path))}"
        for finding in verdict.findings:
            if spelt or not finding.ok:
                told = f"{finding.level} {_told(finding.rule):13} {_told(finding.text)}"
                yield f"{_mark(finding.ok)}  {told}"
        if verdict.recorded is not None:
            yield f"recorded  {_told(verdict.recorded)}"
    if len(verdicts) > 1:
        yield _counted(verdicts)


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The same for a machine: one object for each verdict, with every finding."""
    return [
        {
            "path": _told(str(verdict.path)),
            "ok": verdict.ok,
            "level_held": verdict.level_held,
            "recorded": None if verdict.recorded is None else _told(verdict.recorded),
            "findings": [
                finding._replace(rule=_told(finding.rule), text=_told(finding.text))._asdict()
                for finding in verdict.findings
            ],
        }
        for verdict in verdicts
    ]


def _told(text: str) -> str:
    """Findings of levels 2 to 4 quote files that anybody may have sent."""
    return printable(text, WIDTH)


def _counted(verdicts: Sequence[Verdict]) -> str:
    """How many entries hold, and whether all else does that was looked at."""
    held = [verdict.ok for verdict in verdicts if verdict.about is None]
    others = [
        f"; {verdict.about} {'holds' if verdict.ok else 'does not'}"
        for verdict in verdicts
        if verdict.about is not None
    ]
    return f"{sum(held)} of {len(held)} entries hold{''.join(others)}"


def _mark(ok: bool) -> str:
    return "ok" if ok else "NO"


def _in_vain(finding: Finding) -> bool:
    return finding.rule == CHALLENGE and not finding.ok


def _summary(verdict: Verdict) -> str:
    lowest = broken(finding for finding in verdict.findings if not _in_vain(finding))
    if lowest is not None:
        return f"level {lowest} broken"
    if not verdict.ok:
        more = "no image newly falls" if verdict.recorded else "the entry is unchanged"
        return f"challenge failed: {more}"
    lowered = [finding.text for finding in verdict.findings if finding.rule == LOWERED]
    if lowered:
        return f"challenge: {_told(lowered[0])}"
    return f"level {verdict.level_held} {LEVELS[verdict.level_held or 0]}"
