"""Level 0, the question: it is the task file's, and everything hashed is what the hashes say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from aal_bench import registry
from aal_bench.config import Task, read_task
from aal_bench.hashing import sha256_json
from aal_bench.leaderboard.extend import protocol_stages
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import differing, rule, shown
from aal_bench.record import Result
from aal_bench.results import run_hash
from aal_bench.threat import format_fraction

FINGERPRINT = {"pixels", "labels", "count"}
MOST_IMAGES = 2**31 - 1
"""Positions in a test split are 32-bit integers."""
IMAGES = {"digits": 360, "cifar10": 10_000, "cifar100": 10_000}
"""Test images of the data sets whose test split is the same in every copy."""
NEAR_CHANCE = "near-chance"
"""The flag of a run whose clean accuracy is at most twice chance."""


@cache
def known_task(name: str) -> Task | None:
    """The task file of that name, ours or an installed package's; None: there is none."""
    path = registry.task_files().get(name)
    return None if path is None else read_task(path)


def images(task: Task) -> int | None:
    """How many images the task's test set has; None: any number of somebody's own."""
    return task.data.subset.count if task.data.subset else IMAGES.get(task.data.name)


def asked(record: Result, task: Task | None) -> Finding:
    """Whether the record's task and threat are those of the task file; `task` None: unknown."""
    return rule(0, "task", _task(record, task), f"{record.task.id} {record.task.version}")


def hashes(record: Result, task: Task) -> Finding:
    """Whether ``task.hash``, ``config_hash`` and ``run_hash`` recompute."""
    return rule(0, "hashes", _hashes(record, task), "task, configuration and run hash recompute")


def flags(record: Result, task: Task) -> Finding:
    """Whether a model that has not learnt its task says so."""
    told = f"{len(record.flags)}, {'unreliable' if record.unreliable else 'none of them decisive'}"
    return rule(0, "flags", _flags(record, task), told)


def _task(record: Result, task: Task | None) -> Iterator[str]:
    if task is None:
        yield f"unknown task {shown(record.task.id)}"
        return
    block = record.task.model_dump(mode="json", include={"version", "family", "classes"})
    wanted = {"version": task.version, "family": task.family, "classes": task.data.classes}
    yield from differing(block, wanted, "task")
    threat = {
        "norm": task.threat.norm,
        "eps": format_fraction(task.threat.eps),
        "box": [0.0, 1.0],
        "targeted": False,
    }
    yield from differing(record.threat.model_dump(mode="json"), threat, "threat")
    examples = record.task.examples
    fingerprint = record.evidence.dataset_fingerprint if record.evidence else {}
    if examples > MOST_IMAGES:
        yield "task.examples is more than any test set has"
    elif fingerprint.keys() != FINGERPRINT or fingerprint["count"] != str(examples):
        yield f"dataset_fingerprint is not pixels, labels and a count of {examples}"
    if images(task) not in (None, examples):
        yield f"task.examples is {shown(examples)}, the task's {images(task)}"


def _hashes(record: Result, task: Task) -> Iterator[str]:
    fingerprint = record.evidence.dataset_fingerprint if record.evidence else {}
    if task.hash(fingerprint) != record.task.hash:
        yield "task.hash is not that of the task file and the fingerprint"
    if record.training and sha256_json(record.training.config) != record.training.config_hash:
        yield "training.config_hash is not that of training.config"
    own = run_hash(
        record.task.hash,
        record.threat,
        record.model,
        protocol_stages(record.evaluation),
        record.limit,
    )
    if own != record.run_hash:
        yield "run_hash is not that of task, threat, model and stages"


def _flags(record: Result, task: Task) -> Iterator[str]:
    """A model that has not learnt its task says so, with the figures that say it."""
    raised = [flag for flag in record.flags if flag.code == NEAR_CHANCE]
    accuracy = record.metrics.clean.value if record.metrics else 0.0
    bound = 2 / task.data.classes
    if len(raised) != int(accuracy <= bound):
        yield f"{NEAR_CHANCE} occurs {len(raised)} times at a clean accuracy of {accuracy:.4f}"
    for flag in raised:
        wanted = {"value": round(accuracy, 4), "threshold": round(bound, 4)}
        yield from differing(flag.model_dump(mode="json"), wanted, NEAR_CHANCE)
