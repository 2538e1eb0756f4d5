"""Seconds of `aal-bench verify --level 1` on an entry of 10,000 images, as a whole process.

Measured on an AMD EPYC, Python 3.11, nine rounds: 0.63 s of processor time, of which imports
(numpy, pydantic, click) take 0.56; by the clock 1.3 s on two cores that other programs shared.

An entry of CIFAR-10's size is made up: every stage of protocol `full`, verdicts drawn, and all of
its numbers, hashes and columns consistent, so that every rule of levels 0 and 1 is examined and
holds. Then the command itself verifies it, several times: interpreter, imports, reading, rules and
exit are all in the time. `import` is an interpreter that imports the same modules and does nothing,
`python` one that does not even that. A second entry lies on the same board, because an entry is
compared with its neighbours. Exits 1 when the median is beyond the limit.

    python benchmarks/verify.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aal_bench import environment, registry, results
from aal_bench.attacks import parameters
from aal_bench.config import Choice, Run, Task, read_task
from aal_bench.evidence import Evidence
from aal_bench.leaderboard import entries, pair, verify
from aal_bench.leaderboard.rows import labels_sha256
from aal_bench.leaderboard.stated import PARTITION, budget_of
from aal_bench.record import SCHEMA_VERSION
from aal_bench.schema import Adversarials, Event, StageRecord, Verification

PROGRAMS = {
    "python": ["-c", ""],
    "import": ["-c", "import aal_bench.cli, aal_bench.cli_leaderboard\n"
               "from aal_bench.leaderboard import verify"],
    "verify": ["-m", "aal_bench.cli", "verify", "--level", "1"],
}  # fmt: skip
ROWS = 10_000
"""Test images of CIFAR-10."""
LIMIT = 2.0
"""Seconds that a verification may take."""


def evidence_of(task: Task, rows: int, seed: int) -> Evidence:
    """Verdicts like those of a robust model: 85 % clean, a tenth falls to each stage."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, task.data.classes, rows)
    table = Evidence(np.arange(rows), labels)
    wrong = (labels + 1 + rng.integers(0, task.data.classes - 1, rows)) % task.data.classes
    table.record("clean", np.arange(rows), pred=np.where(rng.random(rows) < 0.85, labels, wrong))
    for stage in registry.protocol(task.protocol)[1:]:
        chain = registry.AUTOATTACK if parameters.sequential(stage) else ()
        standing = table.robust([name for name in chain if name in table.stages])
        budget = budget_of(stage, task)
        assert budget is not None
        at = np.flatnonzero(standing)
        ok = rng.random(len(at)) < 0.9
        early = np.where(ok, 1.0, rng.random(len(at)))
        table.record(
            stage,
            at,
            pred=np.where(ok, labels[at], wrong[at]),
            norm=np.where(ok, rng.random(len(at)), 1.0) * task.threat.radius,
            forwards=np.maximum(1, budget.forwards * early).astype(int),
            backwards=(budget.backwards * early).astype(int),
        )
        table.skip(stage, np.flatnonzero(~standing))
    return table


def stage_record(stage: str, task: Task, table: Evidence) -> StageRecord:
    """What a run would have recorded of a stage."""
    threat = task.threat
    params = parameters.parameters(
        stage, threat.norm, threat.eps, task.attack.step, task.data.classes
    )
    counts: dict[str, Any] = {"n_in": len(table), "n_out": int(table.clean_correct().sum())}
    counts |= {"forwards": 1.0, "backwards": 0.0}
    if stage != "clean":
        attacked = table.column(stage, "attacked")
        counts = {"n_in": int(attacked.sum()), "n_out": int(table.column(stage, "ok").sum())}
        for way in ("forwards", "backwards"):
            counts[way] = float(table.column(stage, way)[attacked].mean())
    return StageRecord.model_validate(
        {
            "attack": stage,
            "implementation": {"package": parameters.package(stage)},
            "params": params,
            "seed": task.evaluation.seed,
            "batch_size": task.evaluation.batch_size,
            "partition": PARTITION[parameters.sequential(stage)],
            "wall_seconds": 1.0,
            "max_violation": {"norm": 0.0, "box": 0.0},
            **counts,
        }
    )


def make(root: Path, seed: int, described: dict[str, Any]) -> Path:
    """Write a consistent entry onto the CIFAR-10 board; returns its record."""
    task = read_task(registry.task_file("cifar10"))
    run = Run(
        task=task,
        method=Choice(name="pgd", options={"craft_bn": "eval"}),
        model=Choice(name=task.model),
        protocol=task.protocol,
        seed=seed,
    )
    table = evidence_of(task, ROWS, seed)
    fingerprint = {"pixels": "0" * 64, "labels": labels_sha256(table.label), "count": str(ROWS)}
    stages = registry.protocol(task.protocol)
    folder = entries.folder(root, task.name, task.threat.norm)
    scratch = root.parent / f"{seed}.npz"
    table.save(scratch)
    images = 49_000
    steps = task.train.epochs * -(-images // task.train.batch_size)
    trained = {"images": images, "seconds": 1.0, "epochs": task.train.epochs, "steps": steps}
    result = results.build(
        run=run,
        task_hash=task.hash(fingerprint),
        examples=ROWS,
        model={
            "name": run.model.name,
            "loader": "aal_bench.models.build:build",
            "normalisation": task.normalisation.model_dump(mode="json"),
            "checkpoint": {"sha256": f"{seed:064x}", "bytes": 1, "format": "safetensors"},
        },
        environment=described,
        command=["aal-bench", "run", task.name, "--seed", str(seed)],
        evaluation=[stage_record(stage, task, table) for stage in stages],
        metrics=results.METRICS["classification"](table, stages),
        evidence=results.evidence_file(scratch, table, fingerprint),
        training=results.training_block(run, trained, described),
        adversarials=Adversarials(
            sha256="0" * 64,
            dtype="float32",
            count=int((table.clean_correct() & ~table.robust()).sum()),
        ),
    )
    path = folder / f"{result.submission_id}.json"
    assert result.evidence is not None
    submitted = Event(at=result.created, by="submitter", event="submitted", level=1)
    event = submitted.model_copy(update={"run_hash": result.run_hash})
    changes = {
        "schema_version": SCHEMA_VERSION,
        "evidence": result.evidence.model_copy(update={"path": f"{path.stem}.npz"}),
        "verification": Verification(level=1, history=[event]),
    }
    with pair.locked(folder):
        pair.write(path, results.sealed(result.model_copy(update=changes)), scratch)
    return path


class Spent(NamedTuple):
    """What a whole process took, in seconds."""

    wall: float
    cpu: float
    """User and system: what other programs on the machine cannot change."""


def spent(program: list[str], path: Path) -> Spent:
    """Run a program in an interpreter of its own."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *program, str(path)], check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def median(values: list[Spent]) -> Spent:
    """The median of each."""
    return Spent(*(statistics.median(part) for part in zip(*values, strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    described = environment.describe()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "leaderboards"
        made = [make(root, seed, described) for seed in (0, 1)]
        path = made[0]
        (verdict,) = verify.verify(path)
        if not verdict.ok:
            sys.exit("\n".join(verify.lines([verdict])))
        size = path.with_suffix(".npz").stat().st_size
        times: dict[str, list[Spent]] = {name: [] for name in PROGRAMS}
        for _ in range(options.rounds):
            for name, program in PROGRAMS.items():
                times[name].append(spent(program, path))
    print(f"{ROWS:,} rows, {size / 1024:.0f} KiB of evidence; {options.rounds} rounds")
    print(f"{described['cpu']}, python {described['python']}\n")
    for name, values in times.items():
        wall, cpu = median(values)
        worst = max(value.wall for value in values)
        print(f"{name:8} {wall:6.2f} s   worst {worst:6.2f} s   processor {cpu:6.2f} s")
    wall, cpu = median(times["verify"])
    ratios = {
        "verify_seconds": wall,
        "verify_processor_seconds": cpu,
        "import_seconds": median(times["import"]).wall,
        "verify_over_limit": wall / LIMIT,
    }
    if options.json is not None:
        hardware = {key: described[key] for key in ("cpu", "threads", "gpu", "torch", "python")}
        options.json.write_text(json.dumps(ratios | {"hardware": hardware}, indent=1) + "\n")
    if wall > LIMIT:
        sys.exit(f"verify takes {wall:.2f} s; at most {LIMIT} s")


if __name__ == "__main__":
    main()
