"""Two results of one question: the protocol fields and the images in which they differ. No torch.

Accuracies are paired image by image (`paired`): a difference that McNemar's exact test does not
find is a tie. Few-shot results are paired over episodes (`compare_episodes`), the mean average
precisions of detection over draws of images (`compare_detection`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import (
    compare_detection,
    compare_episodes,
    compare_view,
    entries,
    paired,
)
from aal_bench.leaderboard.compare_detection import DetectionComparison, DetectionSide
from aal_bench.leaderboard.compare_episodes import EpisodeComparison
from aal_bench.leaderboard.protocol import Difference, differences, question
from aal_bench.record import Result


class Side(NamedTuple):
    """One of the two results."""

    path: Path
    """Of its record."""
    result: Result
    evidence: Evidence


class Line(NamedTuple):
    """One verdict on which both are compared."""

    verdict: str
    """``clean``, a stage that both have, ``autoattack``, ``external``, ``robust``."""
    a: float
    """Share of images on which A stands, in [0, 1]."""
    b: float
    pair: paired.Pair
    only_a: list[int]
    """Positions in the test split of the images on which only A stands, ascending."""
    only_b: list[int]


class Comparison(NamedTuple):
    """What `compare` found."""

    a: Side
    b: Side
    differing: list[Difference]
    """Protocol fields in which they differ."""
    lines: list[Line]
    basis: Literal["autoattack", "external", "robust"]
    """The verdict that decides: ``external`` where a result has such a value (each side counts all
    that ranks it), else AutoAttack where both have it, else ``robust``."""
    stages: list[str]
    """The attacks that both have: ``robust`` is the AND of these. It has no line where ``external``
    decides."""

    def line(self, verdict: str) -> Line:
        """The line of one verdict."""
        return next(line for line in self.lines if line.verdict == verdict)

    @property
    def winner(self) -> Literal["A", "B", "tie"]:
        """Who is significantly better under the verdict that decides."""
        return self.line(self.basis).pair.winner


def compare(a: Path, b: Path) -> Comparison | EpisodeComparison | DetectionComparison:
    """Compare two entries (``.json``), two runs (their folder or ``result.json``), or one of each.

    Raises:
        UserError: a file is missing or unreadable, a run is not finished, or the two are answers
            to different questions, which names the fields that differ.
    """
    one, other = load(a), load(b)
    _same_question(one, other)
    if isinstance(one, DetectionSide) and isinstance(other, DetectionSide):
        return compare_detection.compare(one, other)
    if isinstance(one, DetectionSide) or isinstance(other, DetectionSide):
        raise UserError(f"{a} and {b}: only one is of detection, so one task_hash is wrong")
    paired.same_images(
        paired.images(one.evidence), paired.images(other.evidence), (one.path, other.path)
    )
    if one.evidence.episodes:
        return compare_episodes.compare(one, other)
    common = [stage for stage in one.evidence.stages if stage in other.evidence.stages]
    if not common:
        raise UserError(
            f"{a} and {b} have no attack in common:"
            f" {', '.join(one.evidence.stages)} | {', '.join(other.evidence.stages)}"
        )
    ranked = [paired.ranked_stages(side.result, side.evidence) for side in (one, other)]
    both = [("clean", (), ()), *((stage, (stage,), (stage,)) for stage in common)]
    basis: Literal["autoattack", "external", "robust"] = "robust"
    if ranked[0] is not None and ranked[1] is not None:
        lowered = any(side.result.external is not None for side in (one, other))
        basis = "external" if lowered else "autoattack"
        both.append((basis, ranked[0], ranked[1]))
    if basis != "external":  # beside a challenge, the attacks in common would say another number
        both.append(("robust", tuple(common), tuple(common)))
    lines = [_line(verdict, one, other, left, right) for verdict, left, right in both]
    return Comparison(one, other, differences(one.result, other.result), lines, basis, common)


def text(found: Comparison | EpisodeComparison | DetectionComparison) -> str:
    """For a terminal; no line break at the end."""
    if isinstance(found, DetectionComparison):
        return compare_detection.text(found)
    if isinstance(found, EpisodeComparison):
        return compare_episodes.text(found)
    return compare_view.text(found)


def tree(found: Comparison | EpisodeComparison | DetectionComparison) -> dict[str, Any]:
    """As JSON; shares are fractions in [0, 1]."""
    if isinstance(found, DetectionComparison):
        return compare_detection.tree(found)
    if isinstance(found, EpisodeComparison):
        return compare_episodes.tree(found)
    return compare_view.tree(found)


def load(path: Path) -> Side | DetectionSide:
    """Read a result and the evidence beside it.

    Raises:
        UserError: either is missing, unreadable, or not made of the other.
    """
    file = path / entries.RUN_RECORD if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(
            f"{path}: holds no {entries.RUN_RECORD}: give an entry (.json) or a finished run"
        )
    entry = entries.read(file)
    detecting = entry.result.task.family == "detection"
    evidence = entry.detections() if detecting else entry.evidence()
    if entry.result.status != "success" or entry.result.evidence is None:
        raise UserError(f"{file}: the run is not finished ({entry.result.status})")
    if sha256_file(entry.evidence_path) != entry.result.evidence.sha256:
        raise UserError(
            f"{entry.evidence_path}: not the table that {file.name} was made of (sha256 differs);"
            " finish the run with --resume"
        )
    if isinstance(evidence, Evidence):
        return Side(file, entry.result, evidence)
    return DetectionSide(file, entry.result, evidence)


def _same_question(a: Side | DetectionSide, b: Side | DetectionSide) -> None:
    hashes = [side.result.task.hash for side in (a, b)]
    if hashes[0] != hashes[1]:
        fields = differences(a.result, b.result, question)
        told = "; ".join(f"{field.name} {field.a} | {field.b}" for field in fields)
        raise UserError(
            f"{a.path} and {b.path} answer different questions (task_hash {hashes[0][:8]} |"
            f" {hashes[1][:8]}): {told or 'no recorded field differs, so one hash is wrong'}"
        )
    if len(a.evidence) != len(b.evidence):
        units = "queries" if a.result.task.episodes else "images"
        raise UserError(
            f"{a.path} evaluated {len(a.evidence)} {units}, {b.path} {len(b.evidence)}:"
            f" compare runs on the same {units}, without --limit-eval"
        )


def _line(verdict: str, a: Side, b: Side, left: Any, right: Any) -> Line:
    try:
        one, other = paired.stands(a.evidence, left), paired.stands(b.evidence, right)
    except UserError as error:
        raise UserError(f"{a.path} or {b.path}: {error}") from None
    index = np.sort(a.evidence.index)
    return Line(
        verdict,
        float(one.mean()),
        float(other.mean()),
        paired.pair(one, other),
        index[one & ~other].tolist(),
        index[other & ~one].tolist(),
    )
