"""Fixtures that several folders share: evidence with known verdicts, a record and entries of it."""

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from aal_bench import __version__, registry, results
from aal_bench.attacks import parameters as known
from aal_bench.config import Choice, Run, Task, read_task, set_path
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_json
from aal_bench.metrics import near_chance
from aal_bench.record import Result, robustbench_view
from aal_bench.schema import Environment, EvidenceFile, Flag, MaxViolation, StageRecord
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


KEYS = ("index", "label", "episode")
"""Columns that say which sample a row is about."""
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


IMAGES = 40
"""Of each of the twenty classes of the test split that `make_episodes` asks about."""


def asked(task: Task, seed: int = 0) -> Evidence:
    """The task's episodes: some of twenty classes, and query images of each."""
    assert task.episodes is not None
    ways, queries, count = task.episodes.ways, task.episodes.queries, task.episodes.count
    rng = np.random.default_rng(seed)
    classes = rng.permuted(np.tile(np.arange(20), (count, 1)), axis=1)[:, :ways]
    within = rng.permuted(np.tile(np.arange(IMAGES), (count, ways, 1)), axis=2)[..., :queries]
    labels = np.tile(np.repeat(np.arange(ways), queries), count)
    index = classes[..., None] * IMAGES + within
    return Evidence(index.ravel(), labels, np.repeat(np.arange(count), ways * queries))


def answer(evidence: Evidence, task: Task, stages: Iterable[str], skill: float, seed: int) -> None:
    """Draw verdicts; survivors cost what their attacks cost, the fallen a little less."""
    ways, n = task.ways, len(evidence)
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(0, 0.1, evidence.episodes)  # the same for everybody
    right = rng.random(n) < skill + np.repeat(hard, n // evidence.episodes)
    wrong = (evidence.label + rng.integers(1, ways, n)) % ways
    evidence.record("clean", np.arange(n), pred=np.where(right, evidence.label, wrong))
    for stage in (stage for stage in stages if stage != "clean"):
        chain = registry.AUTOATTACK if stage in registry.AUTOATTACK else ()
        standing = evidence.robust([name for name in chain if name in evidence.stages])
        rows = np.flatnonzero(standing)
        ok = rng.random(len(rows)) < 0.7
        cost = known.budget(stage, _params(stage, task))
        assert cost is not None
        evidence.record(
            stage,
            rows,
            pred=np.where(ok, evidence.label[rows], wrong[rows]),
            norm=np.where(rng.random(len(rows)) < 0.9, float(task.threat.eps), 0.01),
            forwards=np.where(ok, cost.forwards, max(1, cost.forwards - 3)),
            backwards=np.where(ok, cost.backwards, max(0, cost.backwards - 3)),
        )
        evidence.skip(stage, np.flatnonzero(~standing))


def _params(stage: str, task: Task) -> dict[str, Any]:
    threat = task.threat
    params = known.parameters(stage, threat.norm, threat.eps, task.attack.step, task.ways)
    assert params is not None
    return params


def episode_stage(stage: str, evidence: Evidence, task: Task) -> StageRecord:
    """The record of a stage as the runner writes it, of rows that say all of it."""
    clean = stage == "clean"
    attacked = np.ones(len(evidence), bool) if clean else evidence.column(stage, "attacked")
    ok = evidence.clean_correct() if clean else evidence.column(stage, "ok")
    way = {name: 1.0 if name == "forwards" else 0.0 for name in ("forwards", "backwards")}
    if not clean:
        way = {name: float(evidence.column(stage, name)[attacked].mean()) for name in way}
    worst = 0.0 if clean else float(evidence.column(stage, "norm").max()) - float(task.threat.eps)
    return StageRecord(
        attack=stage,
        implementation={"package": known.package(stage)},  # pyright: ignore
        params=_params(stage, task),
        seed=task.evaluation.seed,
        **known.batches(task, known.sequential(stage)),
        n_in=int(attacked.sum()),
        n_out=int(ok.sum()),
        wall_seconds=1.5,
        max_violation=MaxViolation(norm=max(0.0, worst), box=0.0),
        **way,
    )


def _flags(task: Task, metrics: dict[str, Any]) -> list[Flag]:
    found = near_chance("fewshot", task.ways, metrics["clean"])
    if found is None:
        return []
    return [Flag(code="near-chance", severity="warning", value=found[0], threshold=found[1])]


@pytest.fixture
def make_episodes(tmp_path: Path) -> Callable[..., Made]:
    """A finished few-shot run whose rows say every number of its record, and its folder.

    ``make_episodes("mini-imagenet", method=, skill=, protocol=, seed=, limit=, shots=, ...)``:
    `listed` and further keywords are of ``[episodes]``; its files lie in ``tmp_path / <name>``.
    """

    def make(
        task: str = "mini-imagenet",
        method: str = "rfs",
        skill: float = 0.6,
        model: str | None = None,
        protocol: str = "episodes",
        seed: int = 0,
        limit: int | None = None,
        smoke: bool = False,
        name: str = "run",
        options: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        listed: dict[str, Any] | None = None,
        **episodes: Any,
    ) -> Made:
        question = read_task(registry.task_file(task))
        assert question.episodes is not None
        changed = {"count": min(600, question.episodes.count)} | (listed or {}) | episodes
        parts = {"episodes": question.episodes.model_copy(update=changed)}
        parts |= {"train": question.train.model_copy(update=train or {})}
        question = question.model_copy(update=parts)
        run = Run.model_validate(
            {
                "task": question,
                "method": Choice(name=method, options=options or {}),
                "model": Choice(name=model or question.model),
                "protocol": protocol,
                "limits": {"eval": limit},
                "smoke": smoke,
                "seed": seed,
            }
        )
        evidence = asked(question)
        if limit is not None:
            rows = evidence.episode < limit  # pyright: ignore[reportOptionalOperand]
            evidence = Evidence(*(getattr(evidence, key)[rows] for key in KEYS))
        stages = registry.protocol(protocol.partition("-no-")[0])
        stages = [stage for stage in stages if stage != protocol.partition("-no-")[2]]
        answer(evidence, question, stages, skill, seed=int(1000 * skill) + seed)
        fingerprint = {"pixels": "d" * 64, "labels": "e" * 64, "count": f"{20 * IMAGES}"}
        fingerprint["episodes"] = "f" * 64
        environment = ENVIRONMENT.model_dump(mode="json")
        environment["aal_bench"]["version"] = __version__
        epochs = question.train.epochs
        trained = {"images": 38_400, "seconds": 31.0, "epochs": epochs, "steps": 10 * epochs}
        metrics = results.METRICS["fewshot"](evidence, stages)
        folder = tmp_path / name
        folder.mkdir()
        evidence.save(folder / "evidence.npz")
        digest = sha256_json([task, method, skill, seed, options])
        result = results.build(
            run=run,
            task_hash=question.hash(fingerprint),
            examples=question.episodes.count,
            model={
                "name": run.model.name,
                "parameters": 12_000_000,
                "loader": "aal_bench.models.build:build",
                "normalisation": None
                if question.normalisation == type(question.normalisation)()
                else question.normalisation.model_dump(mode="json"),
                "checkpoint": {"sha256": digest, "bytes": 460_000, "format": "safetensors"},
            },
            environment=environment,
            command=["aal-bench", "run", task, "--method", method, "--seed", str(seed)],
            evaluation=[episode_stage(stage, evidence, question) for stage in stages],
            metrics=metrics,
            evidence=results.evidence_file(folder / "evidence.npz", evidence, fingerprint),
            training=results.training_block(
                run,
                trained,
                environment,
                "validation" if question.train.select == "best" else "last",
            ),
            flags=_flags(question, metrics),
            created=datetime(2026, 1, 2, tzinfo=UTC),
        )
        results.write(folder / "result.json", result)
        (folder / "run.json").write_text('{"status": "success", "error": null}', "utf-8")
        return Made(result, question, evidence, run)

    return make
