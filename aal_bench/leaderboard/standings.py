"""One configuration's seeds, their ranks and what is tied. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.paired import Bools, beats, images, ranked_stages, same_images, stands
from aal_bench.record import Result, percent, whole_autoattack
from aal_bench.registry import AUTOATTACK
from aal_bench.schema import Measure

ROUNDING = 1e-9
"""Two shares of the same images are equal when they differ by less."""


class Row(NamedTuple):
    """One entry: one seed of a configuration, or one foreign checkpoint."""

    entry: Entry
    score: float
    """AutoAttack accuracy, or the lower accuracy behind ``external``: k / n, in [0, 1]."""
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
        return _measure(self.entry)


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


def rank(members: Iterable[Row], verdicts: dict[Path, Bools]) -> list[Standing]:
    """Group rows into standings, order and rank them.

    Args:
        members: rows of equal task_hash.
        verdicts: path of each entry -> (n,) whether each image stands, in one order of images.
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
    (AutoAttack needs four classes, so that twice chance is never all.)

    Args:
        clean: accuracy without attack, in [0, 1].
        score: the score that ranks it, in [0, 1].
        classes: chance is 1 / classes.
        siblings: scores of all seeds of the configuration, its own may be among them.
    """
    return clean <= 2 / classes or score < max(siblings, default=0.0) / 2


def rows(group: Sequence[Entry]) -> list[Row]:
    """Score the entries of one section and find the seeds that collapsed.

    Raises:
        UserError: an entry has no AutoAttack accuracy, or an ``external`` that is not its own.
    """
    scores = {entry.path: _measure(entry).value for entry in group}
    siblings: dict[Any, list[float]] = {}
    for entry in group:
        siblings.setdefault(_configuration(entry), []).append(scores[entry.path])
    scored: list[Row] = []
    for entry in group:
        result, score = entry.result, scores[entry.path]
        clean = result.metrics.clean.value if result.metrics else 0.0
        best = siblings[_configuration(entry)]
        scored.append(Row(entry, score, is_collapsed(clean, score, result.task.classes, best)))
    return scored


def verdicts(group: Sequence[Entry]) -> dict[Path, Bools]:
    """Whether each image stands, by the path of each entry of a section.

    Returns:
        Path -> (n,) in ascending order of image, under the stages behind the entry's score.

    Raises:
        UserError: evidence is missing, unreadable, incomplete or about other images, is not the
            table that the record names, or says other numbers than those that the board prints.
    """
    found: dict[Path, Bools] = {}
    first = None
    for entry in group:
        evidence = entry.evidence()
        own = images(evidence)
        first = own if first is None else first
        same_images(first, own, (group[0].path, entry.path))
        stages = ranked_stages(entry.result, evidence)
        if stages is None:
            raise UserError(f"{entry.evidence_path}: the evidence lacks a stage of AutoAttack")
        try:
            found[entry.path] = stands(evidence, stages)
        except UserError as error:
            raise UserError(f"{entry.evidence_path}: {error}") from None
        _follows(entry, evidence, float(found[entry.path].mean()))
    return found


def _follows(entry: Entry, evidence: Evidence, score: float) -> None:
    """Refuse a board that would print numbers which the evidence beside them does not say."""
    metrics, file = entry.result.metrics, entry.result.evidence
    assert metrics is not None  # `_measure` refused the entry otherwise
    assert metrics.autoattack is not None
    wrong = []
    if file is None or sha256_file(entry.evidence_path) != file.sha256:
        wrong.append(f"{entry.evidence_path.name} is not the table that it was made of (sha256)")
    told = {
        "clean": (metrics.clean.value, float(stands(evidence).mean())),
        "AutoAttack": (metrics.autoattack.value, float(stands(evidence, AUTOATTACK).mean())),
        "its score": (_measure(entry).value, score),
    }
    wrong += [
        f"{name} is {percent(stated)} %, the evidence says {percent(counted)} %"
        for name, (stated, counted) in told.items()
        if abs(stated - counted) > ROUNDING
    ]
    if wrong:
        raise UserError(
            f"{entry.path}: {'; '.join(wrong)}: no board prints it"
            f" (aal-bench verify {entry.path} says which rules are broken)"
        )


def _measure(entry: Entry) -> Measure:
    """What ranks an entry."""
    result = entry.result
    metrics = result.metrics
    if metrics is None or metrics.autoattack is None or not whole_autoattack(result):
        raise UserError(
            f"{entry.path}: has no AutoAttack accuracy (standard, whole test set), so that it"
            " cannot be ranked; the protocols full, standard and again measure it"
        )
    if result.external is None:
        return metrics.autoattack
    # The string has two decimals: it is only printed.
    if result.external != percent(metrics.robust.value):
        raise UserError(
            f"{entry.path}: external is {result.external!r}, its attacks leave"
            f" {percent(metrics.robust.value)} (aal-bench verify {entry.path})"
        )
    return metrics.robust


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


def _beats(a: Standing, b: Standing, verdicts: dict[Path, Bools]) -> bool:
    one, other = ([verdicts[row.entry.path] for row in standing.rows] for standing in (a, b))
    return beats(one, other)
