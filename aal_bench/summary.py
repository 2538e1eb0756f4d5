"""From evidence to what is read: the record, the report, the figures, the lines in the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from aal_bench import __version__, results
from aal_bench.aal.attention import has_gate
from aal_bench.adapters.network import loader_of
from aal_bench.again.heads import has_class_gates
from aal_bench.attacks.parameters import batches
from aal_bench.attacks.search import arithmetic
from aal_bench.audit import conduct, on_record
from aal_bench.config import Normalisation, Run
from aal_bench.files import write_text
from aal_bench.hashing import sha256_file
from aal_bench.metrics import near_chance
from aal_bench.progress import clock
from aal_bench.resolve import stages_run
from aal_bench.run_folder import Job, RunFolder, checkpoint_block
from aal_bench.schema import Adversarials, Flag, MaxViolation, Passes, StageRecord
from aal_bench.training import overfitting

if TYPE_CHECKING:
    from aal_bench.audit.record import Audit
    from aal_bench.methods.base import Method


def summarise(
    job: Job,
    adapter: Any,
    method: Method,
    model: nn.Module,
    evidence: Any,
    audit: Audit | None = None,
) -> results.Result:
    """Write ``result.json``, the figures and ``report.md``."""
    run, folder = job.run, job.folder
    stages = stages_run(run, model)
    record = folder.record
    path = folder / "model.safetensors"
    metrics = results.METRICS[run.task.family](evidence, stages)
    result = results.build(
        run=run,
        task_hash=record["task_hash"],
        examples=adapter.examples,
        model=_model_block(job, adapter, model, path),
        environment=record["environment"],
        command=record["command"],
        evaluation=[stage_record(adapter, name, evidence, folder) for name in stages],
        metrics=metrics,
        evidence=results.evidence_file(folder / "evidence.npz", evidence, adapter.fingerprint()),
        training=None if job.foreign is not None else _training_block(run, record),
        adversarials=_adversarials_block(folder, record["adversarials"]),
        flags=[
            *_flags(metrics, run),
            *(on_record.flags(audit) if audit is not None else []),
            *_overfitted(record),
            *_notes(adapter, record),
        ],
        audit=None if audit is None else on_record.block(audit, folder / conduct.FILE),
        published=_published(run, evidence, metrics),
    )
    results.write(folder / "result.json", result)
    figures = adapter.figures(method, model, folder.path)
    from aal_bench import report

    write_text(folder / "report.md", report.markdown(result, run.task, figures, audit))
    return result


def stage_record(adapter: Any, name: str, evidence: Any, folder: RunFolder) -> StageRecord:
    """What a stage did, from its evidence and the accounts kept while it ran."""
    stage, run = adapter.stage(name), adapter.run
    spent = folder.record["stages"].get(stage.name, {})
    reduced = arithmetic(stage, run.device)
    common: dict[str, Any] = {
        "attack": stage.name,
        "implementation": stage.implementation,
        "params": stage.params | reduced,
        "seed": run.task.evaluation.seed,
        **batches(run.task, stage.sequential),
        "memory_format": adapter.memory_format(name),
        "wall_seconds": spent.get("seconds", 0.0),
        "max_violation": MaxViolation(**spent.get("violation", {"norm": 0.0, "box": 0.0})),
    }
    if reduced:
        common |= {"compiled": reduced["compile"]}
        common |= {key: reduced[key] for key in ("dtype", "memory_format")}
    if run.task.detection is not None:
        return StageRecord(**common, **_passes(evidence, name))
    if stage.name == "clean":
        correct = int(evidence.clean_correct().sum())
        return StageRecord(**common, n_in=len(evidence), n_out=correct, forwards=1.0, backwards=0.0)
    attacked = evidence.column(stage.name, "attacked")
    count = int(attacked.sum())

    def mean(name: str) -> float:
        return float(evidence.column(stage.name, name)[attacked].mean()) if count else 0.0

    return StageRecord(
        **common,
        n_in=count,
        n_out=int(evidence.column(stage.name, "ok").sum()),
        forwards=mean("forwards"),
        backwards=mean("backwards"),
    )


def _passes(evidence: Any, name: str) -> dict[str, Any]:
    """Images of a detector's stage and their mean passes: none of them stands or falls."""
    attacked = evidence.column(name, "attacked") | (name == "clean")
    spent = {way: evidence.column(name, way)[attacked] for way in ("forwards", "backwards")}
    count = int(attacked.sum())
    means = {way: float(passes.mean()) if count else 0.0 for way, passes in spent.items()}
    return {"n_in": count, **means}


def _model_block(job: Job, adapter: Any, model: nn.Module, path: Path) -> dict[str, Any]:
    run = job.run
    plain = run.task.normalisation == Normalisation()
    forward, images = adapter.probe(model)
    operated = has_gate(model) or has_class_gates(model)
    block: dict[str, Any] = {
        "name": run.model.name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "macs": _multiply_accumulates(forward, run),
        "checkpoint": checkpoint_block(path) if job.foreign is None else job.foreign.block,
        "loader": loader_of(run) if job.foreign is None else job.foreign.loader,
        "source": run.model.source if run.task.detection is not None else None,
        # A few-shot method answers the test episodes too: its name is part of what was attacked.
        "surgery": run.method.identity() if operated or run.task.episodes else None,
        "normalisation": None if plain else run.task.normalisation.model_dump(mode="json"),
        "deterministic_forward": _deterministic(forward, images),
    }
    return block


def _multiply_accumulates(model: Callable[[Tensor], Tensor], run: Run) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    size = run.task.data.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=run.device))
    return counter.get_total_flops() // 2


def _deterministic(model: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.equal(model(images), model(images)))


def _training_block(run: Run, record: dict[str, Any]) -> results.Training:
    trained = record["training"]
    passes = trained.get("passes")
    return results.training_block(
        run,
        trained,
        record["environment"],
        selected="last" if run.task.train.select == "last" else "validation",
        passes=None if passes is None else Passes(forward=passes[0], backward=passes[1]),
    )


def _adversarials_block(folder: RunFolder, count: int) -> Adversarials | None:
    path = folder / "adversarials.npz"
    if not path.exists():
        return None
    return Adversarials(path=path.name, sha256=sha256_file(path), dtype="float32", count=count)


def _published(run: Run, evidence: Any, metrics: Mapping[str, Any]) -> dict[str, str | None]:
    external = results.lowered(run, evidence, metrics)
    told = {"footnote": _footnote(run)}
    return told if external is None else {**told, "external": external}


def _footnote(run: Run) -> str | None:
    """What a reader of RobustBench's keys alone must not miss."""
    if run.smoke:
        return "SMOKE: a trial of the machinery, not a result"
    if run.limits.eval is not None:
        units = "test images" if run.task.episodes is None else "episodes"
        return f"LIMITED to {run.limits.eval} {units}: not a result"
    return None


def _flags(metrics: Mapping[str, Any], run: Run) -> list[Flag]:
    found = near_chance(run.task.family, run.task.ways, metrics["clean"])
    if found is None:
        return []
    measured, bound = found
    told = "accuracy is within twice chance"
    if run.task.family != "classification":
        fewshot = run.task.family == "fewshot"
        told = "accuracy may be that of guessing" if fewshot else "mAP is below 1 %"
    return [
        Flag(
            code="near-chance",
            severity="warning",
            value=measured,
            threshold=bound,
            note=f"Clean {told}: the model has not learnt the task.",
        )
    ]


def _overfitted(record: Mapping[str, Any]) -> list[Flag]:
    """What training saw of itself; unreliable where the weights that were attacked are so."""
    found = (record.get("training") or {}).get("overfitting")
    if found is None:
        return []
    recovered = found["recovered"]
    weights = "the evaluated weights are not" if recovered else "the evaluated weights are"
    return [
        Flag(
            code="catastrophic-overfitting",
            severity="warning" if recovered else "unreliable",
            value=overfitting.measured(found),
            threshold=overfitting.CRITERION[found["rule"]],
            note=f"Training collapsed at epoch {found['epoch']} ({overfitting.told(found)});"
            f" {weights} collapsed.",
        )
    ]


def _notes(adapter: Any, record: Mapping[str, Any]) -> list[Flag]:
    """What of the data is not in the numbers, as the adapter and its training told it."""
    told = [*getattr(adapter, "notes", []), (record.get("training") or {}).get("dropped")]
    return [Flag(code="data", severity="note", note=one) for one in told if one]


def announce(job: Job, task_hash: str, adapter: Any) -> None:
    """The lines at the start: what is run, on which pixels, and where it goes."""
    run = job.run
    limit = f" of which {run.limits.eval:,}" if run.limits.eval else ""
    units = f"{adapter.examples:,} {'test images' if run.task.episodes is None else 'episodes'}"
    subject = f"method {results.method_name(run)} · {run.model.name} · {run.device} {run.precision}"
    if job.foreign is not None:
        subject = f"evaluate {run.model.name} · {run.device}"
    print(
        f"{'SMOKE · ' if run.smoke else ''}aal-bench {__version__} · task {run.task.id}"
        f" ({run.task.threat}, {units}{limit},"
        f" {adapter.images.source}) · {subject} · protocol {run.protocol} · seed {run.seed}"
    )
    print(f"task {task_hash[:8]}  config {run.hash()[:8]}  ->  {job.folder.path}", flush=True)
    if not adapter.images.official:
        digest = adapter.fingerprint()["pixels"]
        known = run.task.data.fingerprints.get(digest, "not the toolkit's own, verified copy")
        print(f"pixels {digest[:8]}  {known}", flush=True)


def say_trained(training: dict[str, Any], earlier: bool = False) -> None:
    """One line when training is over; `training` is the loop's record."""
    final = training["final"]
    parts = [f"epoch {training['epochs']}/{training['epochs']}", clock(training["seconds"])]
    parts.append(f"loss {final['loss']:.3f}")
    told = {"val_clean": "val clean", "val_pgd": "val PGD", "val_map": "val mAP"}
    for key, name in told.items():
        if key in final:
            parts.append(f"{name} {final[key]:.1%}")
    print("  ".join(["train    ", *parts, *(["(done earlier)"] if earlier else [])]), flush=True)


def say_stage(adapter: Any, name: str, evidence: Any, folder: RunFolder) -> None:
    """One line when a stage is over: what still stands or is found, and what it cost."""
    seconds = folder.record["stages"].get(name, {}).get("seconds", 0.0)
    if evidence.family == "detection":
        spoken, queries = adapter.told(name, evidence), int(evidence.column(name, "forwards").sum())
        rate = f"{queries / seconds:,.1f} q/s" if seconds else ""
        print(f"evaluate   {name:15} {spoken}  {clock(seconds)}  {rate}", flush=True)
        return
    if name == "clean":
        standing, queries = int(evidence.clean_correct().sum()), len(evidence)
    else:
        standing = int(evidence.column(name, "ok").sum())
        queries = int(evidence.column(name, "forwards").sum())
    rate = f"{queries / seconds:,.0f} q/s" if seconds else ""
    # `evidence` has one row per query of an episode, or per image.
    print(
        f"evaluate   {name:12} {standing:,} of {len(evidence):,} stand"
        f"  {standing / len(evidence):7.1%}  {clock(seconds)}  {rate}",
        flush=True,
    )


def show(result: results.Result, run: Run, folder: Path, again: bool = False) -> None:
    """The result table and where the rest is."""
    from rich.console import Console

    from aal_bench import report

    console = Console(width=None if os.isatty(1) else 110, highlight=False)
    if again:
        console.print(f"finished earlier, nothing to do  ->  {folder}")
    console.print(report.table(result, run.task))
    for flag in result.flags:
        console.print(f"{flag.severity:9} {flag.code}: {flag.note}", soft_wrap=True)
    console.print(f"report    {folder / 'report.md'}", soft_wrap=True)
