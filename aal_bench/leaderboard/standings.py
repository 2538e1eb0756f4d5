"""One configuration's seeds, their ranks and what is tied. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from aal_bench.leaderboard import paired, paired_episodes
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.scores import Verdicts, measure
from aal_bench.metrics import near_chance
from aal_bench.record import Result
from aal_bench.schema import Measure


class Row(NamedTuple):
    """One entry: one seed of a configuration, or one foreign checkpoint."""

    entry: Entry
    score: float
    """AutoAttack accuracy, or the lower accuracy behind ``external``, in [0, 1]; few-shot: clean
    accuracy."""
    collapsed: bool
    """See `is_collapsed`."""

    @property
    def id(self) -> str:
        """The entry's name: the stem of its file."""
        return self.entry.path.stem

    @property
    def seed(self) -> int | None:
        """Of the training; None for a foreign checkpoint."""
        training = self.entry.result.training
        return training.seeds[0] if training and training.seeds else None

    @property
    def measure(self) -> Measure:
        """The measured share behind the score, with its count and interval."""
        return measure(self.entry)


class Standing(NamedTuple):
    """One configuration with all of its seeds: see `_configuration` for what they share."""

    rank: int
    """From 1; a tied group shares the rank of its first."""
    tied: bool
    """Whether the group has another member."""
    rows: list[Row]
    """By seed."""
    mean: float
    """Mean score over all seeds, in [0, 1]."""
    spread: float | None
    """Sample standard deviation over the seeds; None for a single one."""

    @property
    def first(self) -> Result:
        """The record of the first seed: what all of its seeds share can be read there."""
        return self.rows[0].entry.result

    @property
    def method(self) -> str:
        """The method's name; for a foreign checkpoint the entry's."""
        return self.first.training.method if self.first.training else self.rows[0].id

    @property
    def collapsed(self) -> int:
        """How many of the seeds collapsed."""
        return sum(row.collapsed for row in self.rows)

    @property
    def unreliable(self) -> bool:
        """Whether any seed is."""
        return any(row.entry.result.unreliable for row in self.rows)

    @property
    def level(self) -> int:
        """The lowest verification level among the seeds."""
        return min(row.entry.result.verification.level for row in self.rows)

    @property
    def place(self) -> str:
        """The rank as it is printed: ``2``, or ``1=`` for a shared one."""
        return f"{self.rank}{'=' if self.tied else ''}"


def rank(members: Iterable[Row], verdicts: Verdicts) -> list[Standing]:
    """Group rows into standings, order and rank them.

    Args:
        members: rows of equal task_hash.
        verdicts: of each entry, in one order of images or episodes.
    """
    groups: dict[Any, list[Row]] = {}
    for row in members:
        groups.setdefault(_configuration(row.entry), []).append(row)
    listed = sorted((_standing(group) for group in groups.values()), key=_order)
    tied: list[list[Standing]] = []
    for standing in listed:
        if tied and not _beats(tied[-1][0], standing, verdicts):
            tied[-1].append(standing)
        else:
            tied.append([standing])
    ranked: list[Standing] = []
    for group in tied:
        place, shared = len(ranked) + 1, len(group) > 1
        ranked += [standing._replace(rank=place, tied=shared) for standing in group]
    return ranked


def is_collapsed(clean: float, score: float, classes: int, siblings: Sequence[float]) -> bool:
    """Whether training failed under this seed, as catastrophic overfitting makes it.

    Its clean accuracy is at most twice chance, or its score below half of its best sibling's.
    (AutoAttack needs four classes, so that twice chance is never all; of few-shot entries, whose
    chance is larger, `metrics.near_chance` takes its place.)

    Args:
        clean: accuracy without attack, in [0, 1].
        score: the score that ranks it, in [0, 1].
        classes: chance is 1 / classes.
        siblings: scores of all seeds of the configuration, its own may be among them.
    """
    return clean <= 2 / classes or _halved(score, siblings)


def _halved(score: float, siblings: Sequence[float]) -> bool:
    return score < max(siblings, default=0.0) / 2


def rows(group: Sequence[Entry]) -> list[Row]:
    """Score the entries of one section and find the seeds that collapsed.

    Raises:
        UserError: an entry has no number that ranks it, or an ``external`` that is not its own.
    """
    scores = {entry.path: measure(entry).value for entry in group}
    siblings: dict[Any, list[float]] = {}
    for entry in group:
        siblings.setdefault(_configuration(entry), []).append(scores[entry.path])
    scored: list[Row] = []
    for entry in group:
        task, metrics, score = entry.result.task, entry.result.metrics, scores[entry.path]
        others = siblings[_configuration(entry)]
        if task.episodes is not None and metrics is not None:
            near = near_chance(task.family, task.classes, metrics.clean.model_dump())
            collapsed = near is not None or _halved(score, others)
        else:
            clean = metrics.clean.value if metrics else 0.0
            collapsed = is_collapsed(clean, score, task.classes, others)
        scored.append(Row(entry, score, collapsed))
    return scored


def _configuration(entry: Entry) -> tuple[str, ...]:
    """What the seeds of one configuration share: method, network, config_hash, title, authors.

    A foreign checkpoint shares it with nobody. Title (``name``) and authors are compared so that
    somebody else's bad seed of the same recipe is a row of its own, and lowers nobody's mean.
    """
    result = entry.result
    if result.training is None:
        return (str(entry.path),)
    recipe = (result.training.method, result.model.name, result.training.config_hash)
    # Who copies title and authors too still joins: that is for the pull request's reviewer to see.
    return (*recipe, result.name, result.authors)


def _standing(seeds: list[Row]) -> Standing:
    seeds = sorted(seeds, key=lambda row: (row.seed is None, row.seed or 0, row.id))
    scores = [row.score for row in seeds]
    spread = stdev(scores) if len(scores) > 1 else None
    return Standing(rank=0, tied=False, rows=seeds, mean=fmean(scores), spread=spread)


def _order(standing: Standing) -> tuple[Any, ...]:
    first = standing.first
    config = first.training.config_hash if first.training else ""
    return (-standing.mean, standing.method, first.model.name, config, standing.rows[0].id)


def _beats(a: Standing, b: Standing, verdicts: Verdicts) -> bool:
    one, other = ([verdicts[row.entry.path] for row in standing.rows] for standing in (a, b))
    fewshot = a.first.task.episodes is not None
    return (paired_episodes.beats if fewshot else paired.beats)(one, other)
