"""What ranks an entry, and the verdicts behind it, refused where they say another number. No torch.

An entry of images is ranked by AutoAttack, or by the lower value behind ``external``; a few-shot
entry by its clean accuracy, as the papers' tables are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import episodes
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.paired import images, ranked_stages, same_images, stands
from aal_bench.record import percent, whole_autoattack
from aal_bench.registry import AUTOATTACK
from aal_bench.schema import Measure

ROUNDING = 1e-9
"""Two shares of the same samples are equal when they differ by less."""
Verdicts = dict[Path, NDArray[Any]]
"""Path of each entry -> bool (n,), whether each image stands; few-shot: int64 (E,), how many
queries of each episode are correct."""


def measure(entry: Entry) -> Measure:
    """What ranks an entry.

    Raises:
        UserError: it has no such number, or an ``external`` that is not its own.
    """
    result = entry.result
    if result.task.episodes is not None:
        return _clean(entry)
    metrics = result.metrics
    if metrics is None or metrics.autoattack is None or not whole_autoattack(result):
        raise UserError(
            f"{entry.path}: has no AutoAttack accuracy (standard, whole test set), so that it"
            " cannot be ranked; the protocols full, standard and again measure it"
        )
    if result.external is None:
        return metrics.autoattack
    assert metrics.robust is not None  # the schema has it for images
    # The string has two decimals: it is only printed.
    if result.external != percent(metrics.robust.value):
        raise UserError(
            f"{entry.path}: external is {result.external!r}, its attacks leave"
            f" {percent(metrics.robust.value)} (aal-bench verify {entry.path})"
        )
    return metrics.robust


def _clean(entry: Entry) -> Measure:
    why, metrics = episodes.unranked(entry.result), entry.result.metrics
    if entry.result.limit is not None or entry.result.smoke:
        why = "it answered a part of the episodes"
    if why is not None or metrics is None:
        raise UserError(f"{entry.path}: cannot be ranked: {why or 'it has no metrics'}")
    return metrics.clean


def verdicts(group: Sequence[Entry]) -> Verdicts:
    """The verdicts behind the score of each entry of a section, in one order of samples.

    Raises:
        UserError: evidence is missing, unreadable, incomplete or about other samples, is not the
            table that the record names, or says other numbers than those that the board prints.
    """
    found: Verdicts = {}
    first = None
    for entry in group:
        evidence = entry.evidence()
        own = images(evidence)
        first = own if first is None else first
        same_images(first, own, (group[0].path, entry.path))
        found[entry.path] = _verdicts(entry, evidence)
        _follows(entry, evidence)
    return found


def _verdicts(entry: Entry, evidence: Evidence) -> NDArray[Any]:
    try:
        if entry.result.task.episodes is not None:
            return evidence.hits(evidence.clean_correct())
        stages = ranked_stages(entry.result, evidence)
        if stages is not None:
            return stands(evidence, stages)
    except (UserError, ValueError) as error:
        raise UserError(f"{entry.evidence_path}: {error}") from None
    raise UserError(f"{entry.evidence_path}: the evidence lacks a stage of AutoAttack")


def _follows(entry: Entry, evidence: Evidence) -> None:
    """Refuse a board that would print numbers which the evidence beside them does not say."""
    metrics, file = entry.result.metrics, entry.result.evidence
    assert metrics is not None  # `measure` refused the entry otherwise
    wrong = []
    if file is None or sha256_file(entry.evidence_path) != file.sha256:
        wrong.append(f"{entry.evidence_path.name} is not the table that it was made of (sha256)")
    told: dict[str, tuple[Measure | None, Sequence[str]]] = {"clean": (metrics.clean, ())}
    told["AutoAttack"] = (metrics.autoattack, AUTOATTACK)
    if entry.result.task.episodes is None:
        told["its score"] = (measure(entry), ranked_stages(entry.result, evidence) or ())
    else:
        told["all attacks"] = (metrics.robust, evidence.stages)
    for name, (stated, stages) in told.items():
        counted = None if stated is None else float(stands(evidence, stages).mean())
        if stated is not None and counted is not None and abs(stated.value - counted) > ROUNDING:
            wrong.append(
                f"{name} is {percent(stated.value)} %, the evidence says {percent(counted)} %"
            )
    if wrong:
        raise UserError(
            f"{entry.path}: {'; '.join(wrong)}: no board prints it"
            f" (aal-bench verify {entry.path} says which rules are broken)"
        )
