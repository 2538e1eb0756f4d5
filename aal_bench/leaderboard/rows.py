"""Level 1, the rows: are they the task's images, does no column contradict another? numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from aal_bench.attacks import parameters as known
from aal_bench.config import Task
from aal_bench.evidence import NORM_DECIMALS, NOT_MEASURED, Evidence
from aal_bench.leaderboard import episodes
from aal_bench.leaderboard.extend import is_extra
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import rule, shown
from aal_bench.leaderboard.stated import budget_of
from aal_bench.record import Result
from aal_bench.registry import follows
from aal_bench.schema import StageRecord
from aal_bench.threat import TOLERANCE

ROUNDING = 0.5 * 10**-NORM_DECIMALS
"""How far a stored norm may lie from the measured one, before float32 rounds it."""
LEAVING = ("apgd-t", "fab-t", "square")
"""Stages whose batch an image leaves when it falls: twin images may have swapped their counts."""
SWAPPED = 0.002
"""Share of such a stage's rows for which that is believed; one row always."""


def findings(record: Result, task: Task, table: Evidence) -> list[Finding]:
    """The rules about rows; where rows are missing, nothing more is judged."""
    complete = rule(1, "rows", _rows(record, task, table), f"{len(table):,}, complete")
    if not complete.ok:
        return [complete]
    return [
        complete,
        rule(1, "labels", _labels(record, task, table), _pixels(record, task)),
        rule(1, "classes", _classes(record, table), f"predictions are 0..{task.ways - 1}"),
        rule(1, "attacked", _attacked(record, table), "every stage attacked those that stood"),
        rule(1, "verdicts", _verdicts(table), "as the predictions say"),
        rule(1, "norms", _norms(record, table), f"within {record.eps} of the image"),
        rule(1, "passes", _passes(record, task, table), "survivors cost what their attacks cost"),
    ]


def attacks(record: Result) -> list[StageRecord]:
    """The stages that have columns in the evidence: all but the clean one."""
    return [stage for stage in record.evaluation if stage.attack != "clean"]


def _rows(record: Result, task: Task, table: Evidence) -> Iterator[str]:
    assert record.evidence is not None
    n = record.task.rows
    if table.family != record.task.family:
        yield f"a table of {table.family}, the task is {record.task.family}"
        return
    if len(table) != n:
        yield f"{len(table):,} rows, the task has {n:,}"
        return
    if table.columns() != record.evidence.columns:
        yield f"its columns are not those stated: {shown(','.join(table.stages))}"
        return
    for stage in ("clean", *table.stages):
        missing = int((~table.done(stage)).sum())
        if missing:
            yield f"stage {stage} lacks {missing} rows"
    if record.task.episodes is not None:
        yield from episodes.positions(record, table)
        return
    ascending = bool((np.diff(table.index.astype(np.int64)) > 0).all())
    if task.data.subset is None and not np.array_equal(table.index, np.arange(n)):
        yield f"index is not 0..{n - 1}"
    elif not ascending or table.index[0] < 0:
        yield "index is not ascending positions of the test split"


def labels_sha256(labels: NDArray[np.int16]) -> str:
    """The fingerprint of labels (n,): of the line ``int64 n`` and little-endian integers."""
    digest = hashlib.sha256(f"int64 {len(labels)}\n".encode())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _labels(record: Result, task: Task, table: Evidence) -> Iterator[str]:
    assert record.evidence is not None
    stated = record.evidence.dataset_fingerprint
    if record.task.episodes is not None:
        yield from episodes.labels(record, table)
    elif labels_sha256(table.label) != stated["labels"]:
        yield "they are not those of dataset_fingerprint.labels"
    official = task.data.labels.get(stated["pixels"])
    if official not in (None, stated["labels"]):
        yield "dataset_fingerprint.labels is not what the task file has for these pixels"


def _pixels(record: Result, task: Task) -> str:
    assert record.evidence is not None
    pixels = record.evidence.dataset_fingerprint["pixels"]
    if pixels in task.data.labels:
        return f"the task's, pixels {pixels[:8]}"
    where = "known, labels not" if pixels in task.data.fingerprints else "unknown to the task file"
    return f"as stated; pixels {pixels[:8]} are {where}"


def _classes(record: Result, table: Evidence) -> Iterator[str]:
    """A row that was not attacked has no prediction; every other has one of the task's classes."""
    k = record.task.classes
    columns = {"label": table.label, "clean_pred": table.clean_pred}
    for stage in table.stages:
        attacked = table.column(stage, "attacked")
        columns[f"{stage}.pred"] = table.column(stage, "pred")[attacked]
        if (table.column(stage, "pred")[~attacked] != NOT_MEASURED).any():
            yield f"{stage}.pred states a class of a row that was not attacked"
    for name, values in columns.items():
        if len(values) and not 0 <= values.min() <= values.max() < k:
            yield f"{name} holds {values.min()}..{values.max()}, classes are 0..{k - 1}"


def _attacked(record: Result, table: Evidence) -> Iterator[str]:
    clean = table.clean_correct()
    for position, stage in enumerate(attacks(record)):
        earlier = [before.attack for before in attacks(record)[:position]]
        if known.closing(stage.attack) or is_extra(stage.attack):
            standing = table.robust(earlier)
        elif known.sequential(stage.attack):
            standing = table.robust([name for name in earlier if name in follows(stage.attack)])
        else:
            standing = clean
        wrong = int((table.column(stage.attack, "attacked") != standing).sum())
        if wrong:
            yield f"{stage.attack} attacked other images than stood before it: {wrong} rows"


def _verdicts(table: Evidence) -> Iterator[str]:
    for stage in table.stages:
        attacked, ok = table.column(stage, "attacked"), table.column(stage, "ok")
        correct = attacked & (table.column(stage, "pred") == table.label)
        wrong = int((ok != correct).sum())
        if wrong:
            yield f"{stage}: {wrong} verdicts are not those of the predictions"


def _norms(record: Result, table: Evidence) -> Iterator[str]:
    """Every row within eps and what float32 explains; the stage's worst is the one it states."""
    eps = float(record.threat.eps)
    slack = ROUNDING + float(np.spacing(np.float32(eps + TOLERANCE)))
    for stage in attacks(record):
        norm = table.column(stage.attack, "norm").astype(np.float64)
        attacked = table.column(stage.attack, "attacked")
        if norm[~attacked].any():
            yield f"{stage.attack} moved an image that it did not attack"
        excess = max(float(norm.max(initial=0.0)) - eps, 0.0)
        if excess > TOLERANCE + slack:
            over = int((norm > eps + TOLERANCE + slack).sum())
            yield f"{stage.attack}: {over} images lie up to {excess:.2e} beyond {record.eps}"
        stated = stage.max_violation.norm
        # A challenger's file may go further in images that had fallen already.
        if excess > stated + slack or (not is_extra(stage.attack) and stated > excess + slack):
            yield f"{stage.attack}.max_violation.norm is {stated:.2e}, the rows say {excess:.2e}"


def _passes(record: Result, task: Task, table: Evidence) -> Iterator[str]:
    for stage in attacks(record):
        attacked, ok = (table.column(stage.attack, name) for name in ("attacked", "ok"))
        spent = {way: table.column(stage.attack, way) for way in ("forwards", "backwards")}
        if any((values[~attacked] != 0).any() or (values < 0).any() for values in spent.values()):
            yield f"{stage.attack}: passes of a row that was not attacked, or fewer than none"
        budget = None if is_extra(stage.attack) else budget_of(stage.attack, task)
        if budget is None:
            continue
        if (spent["forwards"][attacked] < 1).any():
            yield f"{stage.attack}: a verdict without a forward pass"
        for way, most in budget._asdict().items():
            twins = stage.attack in LEAVING
            fault = _spent(spent[way], ok, attacked & ~ok, most, twins)
            if fault:
                yield f"{stage.attack}: {fault} {way}; its attack costs {most}"


def _spent(
    passes: NDArray[np.int32],
    standing: NDArray[np.bool_],
    fallen: NDArray[np.bool_],
    most: int,
    twins: bool,
) -> str | None:
    """What is wrong with the passes of the rows of one stage; None: nothing.

    Of `twins`, identical images of one batch, the survivor may show what the fallen one spent.
    """
    if (passes > most).any():
        return f"a row spent {passes.max()}"
    short = standing & (passes < most)
    believed = max(1.0, SWAPPED * float(standing.sum() + fallen.sum()))
    swapped = min(int((fallen & (passes == most)).sum()), believed) if twins else 0
    if short.sum() > swapped:
        return f"{short.sum()} survivors spent {passes[short].min()} to {passes[short].max()}"
    return None
