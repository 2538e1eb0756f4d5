"""Level 0, the question: it is the task file's, and everything hashed is what the hashes say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import chain

from aal_bench import registry
from aal_bench.audit.table import CHECKS
from aal_bench.config import Episodes, Task, read_task
from aal_bench.hashing import sha256_json
from aal_bench.leaderboard.extend import protocol_stages
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import differing, rule, shown
from aal_bench.metrics import near_chance
from aal_bench.record import Result
from aal_bench.results import run_hash
from aal_bench.threat import format_fraction

FINGERPRINT = {"pixels", "labels", "count"}
MOST_IMAGES = 2**31 - 1
"""Positions in a test split are 32-bit integers."""
IMAGES = {"digits": 360, "cifar10": 10_000, "cifar100": 10_000}
"""Test images of the data sets whose test split is the same in every copy."""
COUNTS = (600, 2_000, 10_000)
"""Lengths of a list of episodes that are answered, besides the task file's own."""
AUDITED = "audit-"
"""How the code of an audit's flag begins."""
NEAR_CHANCE = "near-chance"
"""The flag of a run that has not learnt its task: `metrics.near_chance`."""
_EPISODIC = re.compile(r"(.+)-([2-9]|[1-9]\d{1,2})w([1-9]\d{0,2})s", re.ASCII | re.DOTALL)


@cache
def known_task(name: str) -> Task | None:
    """The task of that id, from a task file of ours or an installed package's; None: none.

    ``<name>-<K>w<N>s`` is the few-shot task file's with K ways and N shots, whatever its own are.
    """
    files = registry.task_files()
    episodic = _EPISODIC.fullmatch(name)
    if name in files:
        task = read_task(files[name])
    elif episodic and episodic[1] in files:
        task = read_task(files[episodic[1]])
        if task.episodes is not None:
            asked = {"ways": int(episodic[2]), "shots": int(episodic[3])}
            task = _asking(task, **asked)
    else:
        return None
    return task if task.id == name else None


def task_of(record: Result) -> Task | None:
    """The `known_task` of a record, with as many episodes as the record states."""
    task = known_task(record.task.id)
    if task is None or task.episodes is None or record.task.episodes is None:
        return task
    return _asking(task, count=record.task.episodes.count)


def _asking(task: Task, **asked: int) -> Task:
    assert task.episodes is not None
    return task.model_copy(update={"episodes": task.episodes.model_copy(update=asked)})


def images(task: Task) -> int | None:
    """How many images the task's test set has; None: any number of somebody's own."""
    return task.data.subset.count if task.data.subset else IMAGES.get(task.data.name)


def asked(record: Result, task: Task | None) -> Finding:
    """Whether the record's task and threat are those of the task file.

    Args:
        record: of an entry.
        task: its `task_of`; None: unknown.
    """
    return rule(0, "task", _task(record, task), f"{record.task.id} {record.task.version}")


def hashes(record: Result, task: Task) -> Finding:
    """Whether ``task.hash``, ``config_hash`` and ``run_hash`` recompute."""
    return rule(0, "hashes", _hashes(record, task), "task, configuration and run hash recompute")


def flags(record: Result, task: Task) -> Finding:
    """Whether a model that has not learnt its task, or failed a check of its audit, says so."""
    told = f"{len(record.flags)}, {'unreliable' if record.unreliable else 'none of them decisive'}"
    return rule(0, "flags", chain(_flags(record, task), _audited(record)), told)


def _task(record: Result, task: Task | None) -> Iterator[str]:
    if task is None:
        yield f"unknown task {shown(record.task.id)}"
        return
    block = record.task.model_dump(mode="json", include={"version", "family", "classes"})
    wanted = {"version": task.version, "family": task.family, "classes": task.ways}
    yield from differing(block, wanted, "task")
    threat = {
        "norm": task.threat.norm,
        "eps": format_fraction(task.threat.eps),
        "box": [0.0, 1.0],
        "targeted": False,
    }
    yield from differing(record.threat.model_dump(mode="json"), threat, "threat")
    fingerprint = record.evidence.dataset_fingerprint if record.evidence else {}
    if task.episodes is not None:
        yield from _episodes(record, task.episodes, fingerprint)
        return
    examples = record.task.examples
    if examples > MOST_IMAGES:
        yield "task.examples is more than any test set has"
    elif fingerprint.keys() != FINGERPRINT or fingerprint["count"] != str(examples):
        yield f"dataset_fingerprint is not pixels, labels and a count of {examples}"
    if images(task) not in (None, examples):
        yield f"task.examples is {shown(examples)}, the task's {images(task)}"


def _episodes(record: Result, asked: Episodes, fingerprint: dict[str, str]) -> Iterator[str]:
    """The list of episodes is the task file's, of a length that others answer too."""
    stated = record.task.episodes.model_dump(mode="json") if record.task.episodes else {}
    yield from differing(stated, asked.model_dump(mode="json"), "task.episodes")
    own = known_task(record.task.id)
    lengths = {*COUNTS, own.episodes.count if own and own.episodes else asked.count}
    if asked.count not in lengths:
        told = ", ".join(f"{length:,}" for length in sorted(lengths))
        yield f"task.episodes.count is {shown(asked.count)}, not one of {told}: --episodes sets it"
    if fingerprint.keys() != FINGERPRINT | {"episodes"}:
        yield "dataset_fingerprint is not pixels, labels, count and episodes"
        return
    count, least = fingerprint["count"], asked.ways * (asked.shots + asked.queries)
    known = re.fullmatch(r"[1-9]\d{0,9}", count, re.ASCII) and int(count) <= MOST_IMAGES
    if not known or int(count) < least:
        yield f"dataset_fingerprint.count is {shown(count)}, an episode takes {least:,} images"


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
    if record.metrics is None:
        return
    clean = record.metrics.clean
    found = near_chance(task.family, task.ways, clean.model_dump(mode="json"))
    if len(raised) != int(found is not None):
        yield f"{NEAR_CHANCE} occurs {len(raised)} times at a clean accuracy of {clean.value:.4f}"
    elif found is not None:
        wanted = {"value": found[0], "threshold": found[1]}
        yield from differing(raised[0].model_dump(mode="json"), wanted, NEAR_CHANCE)


def _audited(record: Result) -> Iterator[str]:
    """Every failed check is a flag, every flag of the audit a failed check, none graver than it."""
    raised = {flag.code: flag.severity for flag in record.flags if flag.code.startswith(AUDITED)}
    stated = [] if record.audit is None else record.audit.failed
    if sorted(raised) != sorted(stated):
        told = shown(",".join(sorted(raised)) or "none")
        yield f"audit.failed is {shown(','.join(stated) or 'none')}, the flags say {told}"
        return
    decisive = {check.code for check in CHECKS if check.severity == "unreliable"}
    known = {check.code for check in CHECKS}
    for code, severity in raised.items():
        if code not in known:
            yield f"{shown(code)} is no check of the audit"
        elif severity == "unreliable" and code not in decisive:
            yield f"{shown(code)} makes no result unreliable"
    if record.audit is not None:
        one = record.audit
        total = one.passed + len(one.failed) + one.not_applicable + one.not_decided
        if total != len(CHECKS):
            yield f"audit counts {total} checks of {len(CHECKS)}"
