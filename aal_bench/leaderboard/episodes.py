"""Levels 0 and 1 of few-shot entries: what differs where the unit is an episode. numpy only.

The mean over episodes of equal size is the share of all queries, so that a stage's counts still
give every accuracy; the spread between episodes only the rows give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aal_bench.attacks.parameters import DLR_CLASSES
from aal_bench.evidence import Evidence, same_samples
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import placed, rule, same, shown
from aal_bench.record import Result, whole_autoattack
from aal_bench.registry import EPISODIC
from aal_bench.schema import Measure
from aal_bench.student import Mean

TOLERANCE = 1e-9
"""How far the bounds of an interval may lie apart: quantiles differ with scipy's version."""


def unranked(record: Result) -> str | None:
    """Why a few-shot result cannot stand on a board; None: it can."""
    base, _, left_out = record.protocol.partition("-no-")
    allowed = "apgd-t" if record.task.classes < DLR_CLASSES else ""
    if base not in EPISODIC or left_out not in ("", allowed):
        return f"protocol {shown(record.protocol)} is not {' or '.join(EPISODIC)}"
    attacked = any(stage.attack != "clean" for stage in record.evaluation)
    if attacked and not left_out and not whole_autoattack(record):
        return "not AutoAttack's four standard attacks on every query of every episode"
    return None


# ---- level 0 ---------------------------------------------------------------------------------


def autoattack(record: Result) -> Iterator[str]:
    """A few-shot entry is attacked by all of AutoAttack or not at all."""
    why = unranked(record)
    if why is not None:
        yield why
    elif whole_autoattack(record) and record.autoattack_acc is None:
        yield "autoattack_acc is missing"


def attacked(record: Result) -> str:
    """What `autoattack` says where nothing is wrong."""
    if record.autoattack_acc is None:
        return "no AutoAttack: ranked by clean accuracy, as all of the board"
    return "standard, all four, on every query"


def measured(record: Result, name: str, stated: Measure, k: int) -> Iterator[str]:
    """Whether a measure is that of `k` correct queries, with an interval that its spread gives."""
    metrics, n, rows = record.metrics, record.task.examples, record.task.rows
    assert metrics is not None
    assert metrics.episodes is not None
    if k > rows:
        yield f"{name}: {k} of {rows} stand"
        return
    if not same([stated.value, stated.n], [k / rows, n]):
        yield f"metrics of {name} are not those of {k} of {rows} queries in {n} episodes"
        return
    sd = metrics.episodes.sd.get(name)
    if (sd is None) != (n == 1):
        yield f"metrics.episodes.sd has no spread of {name}"
        return
    # The most that shares in [0, 1] with this mean can differ.
    if sd is not None and sd**2 * (n - 1) / n > stated.value * (1 - stated.value) + TOLERANCE:
        yield f"the spread of {name}, {sd:.4f}, is more than any {n} episodes of that mean have"
    elif not _near(stated.ci95, Mean(stated.value, n, sd).interval(0.0, 1.0)):
        yield f"the interval of {name} is not that of its spread, {shown(sd)}"


def spreads(record: Result) -> Iterator[str]:
    """Whether ``metrics.episodes`` is about the task's episodes and exactly what was measured."""
    metrics = record.metrics
    if record.task.episodes is None:
        return
    if metrics is None or metrics.episodes is None:
        yield "no metrics of episodes"
        return
    stated = (metrics.episodes.n, metrics.episodes.queries)
    asked = (record.task.examples, record.task.queries)
    if stated != asked:
        yield f"metrics of {stated[0]} episodes x {stated[1]} queries, not {asked[0]} x {asked[1]}"
    whole = {"clean", *metrics.stages}
    whole |= {name for name in ("robust", "autoattack") if getattr(metrics, name) is not None}
    if metrics.episodes.sd.keys() != whole:
        yield f"metrics.episodes.sd is of {shown(','.join(metrics.episodes.sd))}"


# ---- level 1 ---------------------------------------------------------------------------------


def positions(record: Result, table: Evidence) -> Iterator[str]:
    """Whether the rows are the task's episodes of positions in the test split."""
    assert record.evidence is not None
    count = int(record.evidence.dataset_fingerprint["count"])
    if table.episodes != record.task.examples:
        yield f"{table.episodes:,} episodes, the task has {record.task.examples:,}"
    elif table.index.max() >= count:
        yield f"index {table.index.max()} is none of the {count:,} test images"


def labels(record: Result, table: Evidence) -> Iterator[str]:
    """Whether every episode asks each class as often, and no image is of two classes."""
    assert record.task.episodes is not None
    ways, queries = record.task.episodes.ways, record.task.episodes.queries
    expected = np.tile(np.repeat(np.arange(ways), queries), table.episodes)
    if not np.array_equal(table.label, expected):
        yield f"the queries of an episode are not {queries} of each class 0..{ways - 1}, in order"
        return
    classes = _classes(table.index.reshape(table.episodes, ways, queries))
    mixed = (np.diff(np.sort(classes, axis=1), axis=1) == 0).any(axis=1)
    if mixed.any():
        episode = int(np.argmax(mixed))
        yield f"two classes of episode {episode} are one class, as other episodes say"


def _classes(index: NDArray[np.int32]) -> NDArray[np.int64]:
    """Numbers (E, ways) of the classes that the queries (E, ways, queries) are of.

    Images that any episode asks as one class are of one class.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    images, nodes = np.unique(index, return_inverse=True)
    nodes = nodes.reshape(index.shape)
    first, others = np.broadcast_to(nodes[..., :1], nodes[..., 1:].shape), nodes[..., 1:]
    edges = (np.ones(others.size, np.int8), (first.ravel(), others.ravel()))
    graph = coo_array(edges, shape=(len(images), len(images)))
    return connected_components(graph, directed=False)[1][nodes[..., 0]]


def shared(
    own: Result,
    table: Evidence,
    records: Mapping[str, Result],
    tables: Mapping[str, tuple[str, Evidence]],
) -> Finding:
    """Whether entries of one task_hash on a board answered the very same queries.

    Args:
        own: the entry.
        table: its evidence.
        records: name -> every other entry of the board that can be read.
        tables: name -> (sha256 of the file, evidence), of those that can be read.
    """
    with_it = [
        name
        for name, record in records.items()
        if record.task.hash == own.task.hash and name in tables
    ]
    faults = [
        f"other queries than those of {placed(name)}, although its task_hash is the same"
        for name in with_it
        if not same_samples(table, tables[name][1])
    ]
    return rule(1, "episodes", faults, f"the same as of {len(with_it)} others on this board")


def same_means(stated: Any, found: Any) -> bool:
    """Whether two metrics are alike: exactly, but for the last digits of an interval."""
    if isinstance(stated, dict) and isinstance(found, dict):
        if stated.keys() != found.keys():
            return False
        alike = {**stated, **found}
        if "ci95" in alike and not _near(stated["ci95"], found["ci95"]):
            return False
        return all(same_means(stated[key], found[key]) for key in alike.keys() - {"ci95"})
    return same(stated, found)


def _near(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= TOLERANCE for x, y in zip(a, b, strict=True))
