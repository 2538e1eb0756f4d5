"""Fixtures that several folders share: evidence with known verdicts, a record and entries of it."""

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from aal_bench import registry, results
from aal_bench.config import Choice, Run, Task, read_task, set_path
from aal_bench.evidence import Evidence
from aal_bench.record import Result, robustbench_view
from aal_bench.schema import Environment, EvidenceFile, StageRecord
from aal_bench.threat import format_fraction

# Test processes share the cores: more threads than cores spin against each other, which is slower
# by orders of magnitude. Set before torch is imported, and inherited by the processes tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class Made(NamedTuple):
    """A record and what it was made of."""

    result: Result
    task: Task
    evidence: Evidence
    run: Run


PARAMS: dict[str, dict[str, Any]] = {
    "apgd-ce": {"steps": 100, "restarts": 1, "version": "standard"},
    "apgd-t": {"steps": 100, "restarts": 1, "targets": 9, "version": "standard"},
    "fab-t": {"steps": 100, "restarts": 1, "targets": 9, "version": "standard"},
    "square": {"queries": 5000, "restarts": 1, "version": "standard"},
}
ENVIRONMENT = Environment(
    python="3.11.9",
    torch="2.15.0",
    cpu="two cores",
    packages={"torch": "2.15.0", "torchattacks": "3.5.1"},
    aal_bench={"version": "0.1.0", "commit": "c0ffee", "dirty": False},  # pyright: ignore
)


def fill(evidence: Evidence, stages: tuple[str, ...], seed: int) -> None:
    """Draw verdicts; AutoAttack's stages see the survivors only, all others the clean-correct."""
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(evidence))
    evidence.record(
        "clean", everyone, pred=np.where(rng.random(len(evidence)) < 0.9, evidence.label, 9)
    )
    for stage in stages:
        if stage == "clean":
            continue
        earlier = registry.AUTOATTACK[: registry.AUTOATTACK.index(stage)] if stage in PARAMS else ()
        standing = evidence.robust([name for name in earlier if name in stages])
        rows = np.flatnonzero(standing)
        ok = rng.random(len(rows)) < 0.8
        pred = np.where(ok, evidence.label[rows], (evidence.label[rows] + 1) % 10)
        evidence.record(stage, rows, pred=pred, norm=32 / 255, forwards=10, backwards=9)
        evidence.skip(stage, np.flatnonzero(~standing))


def stage_record(stage: str, evidence: Evidence, task: Task) -> StageRecord:
    """The record of a stage as the runner writes it."""
    attacked = (
        evidence.column(stage, "attacked") if stage != "clean" else np.ones(len(evidence), bool)
    )
    ok = evidence.column(stage, "ok") if stage != "clean" else evidence.clean_correct()
    eps = {} if stage == "clean" else {"eps": format_fraction(task.threat.eps)}
    package = "pyautoattack" if stage in PARAMS else "torchattacks"
    return StageRecord.model_validate(
        {
            "attack": stage,
            "implementation": {"package": package, "version": "1"},
            "params": eps | PARAMS.get(stage, {}),
            "seed": 0,
            "batch_size": 512,
            "partition": "survivors-in-index-order",
            "n_in": int(attacked.sum()),
            "n_out": int((ok & attacked).sum()),
            "wall_seconds": 1.5,
            "forwards": 10.0,
            "backwards": 9.0,
            "max_violation": {"norm": 0.0, "box": 0.0},
        }
    )


@pytest.fixture
def make_result() -> Callable[..., Made]:
    """A finished, consistent result: ``make_result(task=, method=, model=, protocol=, ...)``."""

    def make(
        task: str = "digits",
        method: str = "aal-pgd",
        model: str | None = None,
        protocol: str = "full",
        n: int = 360,
        limit: int | None = None,
        smoke: bool = False,
        **extra: Any,
    ) -> Made:
        question = read_task(registry.task_file(task))
        run = Run.model_validate(
            {
                "task": question,
                "method": Choice(name=method),
                "model": Choice(name=model or question.model),
                "protocol": protocol,
                "limits": {"eval": limit},
                "smoke": smoke,
            }
        )
        evaluated = limit or n
        labels = np.random.default_rng(1).integers(0, 9, evaluated)
        evidence = Evidence(np.arange(evaluated), labels)
        stages = registry.protocol(protocol)
        fill(evidence, stages, seed=2)
        environment = ENVIRONMENT.model_dump(mode="json")
        training = {"images": 1437, "seconds": 31.0, "epochs": 30, "steps": 690}
        arguments: dict[str, Any] = {
            "task_hash": "a" * 64,
            "examples": n,
            "model": {
                "name": run.model.name,
                "parameters": 115_000,
                "loader": "aal_bench.models.build:build",
                "checkpoint": {"sha256": "b" * 64, "bytes": 460_000, "format": "safetensors"},
            },
            "evaluation": [stage_record(stage, evidence, question) for stage in stages],
            "metrics": results.METRICS["classification"](evidence, stages),
            "environment": environment,
            "training": results.training_block(run, training, environment),
            "evidence": EvidenceFile(
                path="evidence.npz",
                sha256="c" * 64,
                format="1",
                rows=evaluated,
                columns=evidence.columns(),
                dataset_fingerprint={"pixels": "d" * 64},
            ),
            "command": ["aal-bench", "run", task, "--method", method],
            "created": datetime(2026, 1, 2, tzinfo=UTC),
        }
        return Made(results.build(run=run, **(arguments | extra)), question, evidence, run)

    return make


def chosen(
    n: int, falls: Iterable[int], unclean: Iterable[int], challenged: Iterable[int] | None
) -> Evidence:
    """Images `falls` fall under apgd-ce, `challenged` under a later challenge; the rest stands."""
    everyone, labels = np.arange(n), np.arange(n) % 9
    evidence = Evidence(everyone, labels)
    evidence.record("clean", everyone, pred=np.where(np.isin(everyone, [*unclean]), 9, labels))
    fallen = {"apgd-ce": [*falls], "challenge-1": [*(challenged or ())]}
    for stage in (*registry.protocol("full")[1:], *["challenge-1"] * (challenged is not None)):
        earlier = () if stage in ("fgsm", "pgd-10") else registry.AUTOATTACK
        rows = np.flatnonzero(evidence.robust([one for one in earlier if one in evidence.stages]))
        pred = np.where(np.isin(rows, fallen.get(stage, [])), 9, labels[rows])
        evidence.record(stage, rows, pred=pred, norm=24 / 255, forwards=10, backwards=9)
        evidence.skip(stage, np.setdiff1d(everyone, rows))
    return evidence


@pytest.fixture
def boards_root(tmp_path: Path) -> Path:
    """Where `make_entry` puts its boards."""
    return tmp_path / "boards"


@pytest.fixture
def make_entry(make_result: Callable[..., Made], boards_root: Path) -> Callable[..., Path]:
    """A consistent entry with verdicts chosen by hand: ``make_entry("name", falls=[0, 1], ...)``.

    Lists of images that fall: `falls` under AutoAttack, `unclean` without attack, `challenged`
    under a challenge. Further keywords are dotted names in the record's JSON with their new values.
    A foreign checkpoint has ``method=None``. Returns the path of the ``.json``.
    """

    def make(
        name: str,
        falls: Iterable[int] = (),
        *,
        unclean: Iterable[int] = (),
        challenged: Iterable[int] | None = None,
        method: str | None = "pgd",
        seed: int = 0,
        n: int = 40,
        task: str = "digits",
        **changes: Any,
    ) -> Path:
        made = make_result(task=task, method=method or "standard", n=n)
        evidence = chosen(n, falls, unclean, challenged)
        tree = made.result.model_dump(mode="json")
        path = boards_root / task / changes.get("threat.norm", "Linf") / f"{name}.json"
        evidence.save(path.with_suffix(".npz"))
        table = results.evidence_file(path.with_suffix(".npz"), evidence, {"pixels": "d" * 64})
        stages = [stage_record(one, evidence, made.task) for one in ("clean", *evidence.stages)]
        tree |= {
            "submission_id": name,
            "evaluation": [stage.model_dump(mode="json") for stage in stages],
            "metrics": results.METRICS["classification"](evidence, evidence.stages),
            "evidence": table.model_dump(mode="json"),
            "training": None if method is None else tree["training"] | {"seeds": [seed]},
        }
        if challenged is not None:
            tree["external"] = results.percent(tree["metrics"]["robust"]["value"])
        for dotted, value in changes.items():
            set_path(tree, dotted, value)
        for stage in tree["evaluation"][1:]:
            stage["params"]["eps"] = tree["threat"]["eps"]
        record = {key: value for key, value in tree.items() if key in results.Record.model_fields}
        tree |= robustbench_view(results.Record.model_validate(record))
        results.write(path, Result.model_validate(tree))
        return path

    return make
