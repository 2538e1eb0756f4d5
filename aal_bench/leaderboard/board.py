"""The boards: which entries are ranked together, how, and what is tied. No torch.

What the terminal, Markdown, JSON and HTML renderers show is decided here:

- Rows are ranked together only where their ``task_hash`` is equal: one `Section` each.
- A row's score is ``external`` where it has one, else its AutoAttack accuracy.
- Entries of one configuration (equal method, network, config_hash, title and authors) are one
  `Standing`, ranked by the mean over *all* of its seeds. A seed that collapsed
  (`standings.is_collapsed`) is counted and never dropped.
- From the best downwards, a standing joins the group of the group's leader unless the leader beats
  it (`paired.RULE`); else it leads the next group. A group shares its rank: 1, 1, 3. Within a group
  the order is by mean, then by name.
- A few-shot row's score is its clean accuracy, and rows are paired over episodes
  (`paired_episodes.RULE`).
- An unreliable entry is ranked like any other, and marked wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aal_bench import registry
from aal_bench.config import Episodes, Task, read_task
from aal_bench.errors import UserError, did_you_mean
from aal_bench.leaderboard import entries
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.question import known_task
from aal_bench.leaderboard.scores import verdicts
from aal_bench.leaderboard.standings import Row, Standing, rank, rows
from aal_bench.results import title_of
from aal_bench.threat import format_fraction

__all__ = ["Board", "Row", "Section", "Standing", "boards"]

OFFICIAL = ("official", "the embedded")
"""How a task file's note on a fingerprint begins when these are the data set's own bytes."""


class Section(NamedTuple):
    """Standings that answer exactly the same question."""

    task_hash: str
    pixels: str
    """Where the test pixels come from, as the task file says; else that it does not know them."""
    official: bool | None
    """Whether they are the data set's own bytes; None: the task file does not know them."""
    examples: int
    """Size of the test set: images, or episodes."""
    standings: list[Standing]
    """In the order of the ranks."""
    eps: str
    """As the entries write it: ``8/255``."""
    fingerprint: str
    """sha256 of the test pixels as fed."""
    episodes: Episodes | None = None
    """Of a few-shot task."""


class Board(NamedTuple):
    """One folder of entries."""

    task: str
    title: str
    """The task file's, with ways and shots of a few-shot task; else the task's name."""
    norm: str
    eps: str
    """Of its sections, joined by a comma should they differ; without entries the task file's."""
    sections: list[Section]
    """Those on the data set's own bytes first, then the larger ones; [] without entries."""
    task_file: Task | None
    """None: no such task is known here."""

    @property
    def fewshot(self) -> bool:
        """Whether its rows answer episodes, and are ranked by clean accuracy."""
        if self.sections:
            return self.sections[0].episodes is not None
        return self.task_file is not None and self.task_file.episodes is not None


def boards(root: Path, task: str | None = None) -> list[Board]:
    """Read and rank every board below `root`, or those of one task.

    Args:
        root: the folder of the leaderboards.
        task: a task's id (``mini-imagenet-5w1s``), or the name of a few-shot task file for all of
            its boards; None: all that have entries.

    Returns:
        Boards by task and norm; when `task` is None, those that have entries. A known task without
        entries is one board without sections.

    Raises:
        UserError: an entry or its evidence is missing, unreadable, not rankable or in the wrong
            folder; or `task` is unknown or of detection.
    """
    paths: dict[tuple[str, ...], list[Path]] = {}
    for path in entries.find(root):
        paths.setdefault(path.relative_to(root).parts[:-1], []).append(path)
    if task is not None:
        held = sorted({place[0] for place in paths if place})
        wanted = {place for place in paths if place and _is(place[0], task)}
        paths = {place: files for place, files in paths.items() if place in wanted}
        if not paths:
            return [_empty(task, held)]
    return [_board(place, files) for place, files in sorted(paths.items())]


def _is(board: str, task: str) -> bool:
    """Whether a board is that of `task`, or one of a few-shot task file of that name."""
    known = known_task(board)
    of_file = known is not None and known.episodes is not None and known.name == task
    return board == task or of_file


def _empty(task: str, held: list[str]) -> Board:
    """The board of a known task that has no entries yet; `held`: tasks that have some."""
    files = registry.task_files()
    file = read_task(files[task]) if task in files else known_task(task)
    if file is None:
        near = did_you_mean(task, sorted({*held, *files}))
        raise UserError(f"unknown task '{task}'.{near} Boards: {', '.join(held) or 'none'}")
    if file.family == "detection":
        raise UserError(f"task {file.name}: {entries.NO_BOARD}")
    eps = format_fraction(file.threat.eps)
    return Board(file.id, title_of(file), file.threat.norm, eps, sections=[], task_file=file)


def _board(place: tuple[str, ...], files: Sequence[Path]) -> Board:
    read = [entries.read(path) for path in files]
    for entry in read:
        _check_place(entry, place)
    task, norm = place
    task_file = known_task(task)
    questions: dict[str, list[Entry]] = {}
    for entry in read:
        questions.setdefault(entry.result.task.hash, []).append(entry)
    sections = [_section(digest, group, task_file) for digest, group in questions.items()]
    sections.sort(key=lambda one: (not one.official, -len(one.standings), one.task_hash))
    return Board(
        task=task,
        title=title_of(task_file) if task_file else task,
        norm=norm,
        eps=", ".join(dict.fromkeys(section.eps for section in sections)),
        sections=sections,
        task_file=task_file,
    )


def _section(task_hash: str, group: Sequence[Entry], task: Task | None) -> Section:
    first = group[0].result
    pixels = first.evidence.dataset_fingerprint.get("pixels", "") if first.evidence else ""
    note = task.data.fingerprints.get(pixels) if task else None
    return Section(
        task_hash=task_hash,
        pixels=note or f"pixels {pixels[:8]}, unknown to the task file",
        official=None if note is None else note.startswith(OFFICIAL),
        examples=first.task.examples,
        standings=rank(rows(group), verdicts(group)),
        eps=first.eps,
        fingerprint=pixels,
        episodes=first.task.episodes,
    )


def _check_place(entry: Entry, place: tuple[str, ...]) -> None:
    result = entry.result
    if result.task.family == "detection":
        raise UserError(f"{entry.path}: {entries.NO_BOARD}")
    right = (result.task.id, result.threat.norm)
    if place != right:
        raise UserError(
            f"{entry.path}: answers {'/'.join(right)}, but lies in {'/'.join(place) or 'no folder'}"
        )
