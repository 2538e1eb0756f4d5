"""Assembling, hashing, writing and reading result records. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aal_bench import __version__, strict_json
from aal_bench.config import Run, Task, parse
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.files import write_text
from aal_bench.hashing import sha256_file, sha256_json
from aal_bench.metrics import METRICS, TABLES
from aal_bench.record import Record, Result, percent, robustbench_view
from aal_bench.registry import ADAPTIVE
from aal_bench.schema import (
    Adversarials,
    AuditBlock,
    Code,
    DataSource,
    EvidenceFile,
    Failure,
    Flag,
    ModelBlock,
    Passes,
    Selection,
    StageRecord,
    Status,
    ThreatBlock,
    Training,
)

__all__ = [
    "METRICS",
    "TABLES",
    "Record",
    "Result",
    "StageRecord",
    "build",
    "dumps",
    "evidence_file",
    "lowered",
    "method_name",
    "percent",
    "read",
    "robustbench_view",
    "run_hash",
    "seal",
    "sealed",
    "selection_metric",
    "title_of",
    "training_block",
    "write",
]


def run_hash(
    task_hash: str,
    threat: ThreatBlock,
    model: ModelBlock,
    evaluation: Sequence[StageRecord],
    limit: int | None = None,
) -> str:
    """sha256 over everything that may change a number, and nothing else.

    Timing, host, paths and progress are left out: two honest machines agree.
    """
    fields = ("attack", "implementation", "params", "seed", "batch_size", "partition")
    arithmetic = ("dtype", "tf32", "compiled", "memory_format")
    stages = [stage.model_dump(mode="json", include={*fields, *arithmetic}) for stage in evaluation]
    return sha256_json(
        {
            "task_hash": task_hash,
            "threat": threat.model_dump(mode="json"),
            "model": model.model_dump(
                mode="json", include={"name", "loader", "normalisation", "source", "surgery"}
            ),
            "checkpoint": None if model.checkpoint is None else model.checkpoint.sha256,
            "evaluation": stages,
            "limit": limit,
        }
    )


def evidence_file(
    path: Path, evidence: Evidence | DetectionEvidence, fingerprint: dict[str, str]
) -> EvidenceFile:
    """The `evidence` block of a table saved at `path`, which lies beside the record."""
    return EvidenceFile(
        path=path.name,
        sha256=sha256_file(path),
        format=evidence.format,
        rows=len(evidence),
        columns=evidence.columns(),
        dataset_fingerprint=fingerprint,
    )


def lowered(
    run: Run, evidence: Evidence | DetectionEvidence, metrics: Mapping[str, Any]
) -> str | None:
    """``external`` in percent, where the run's adaptive attacks felled what had stood till then.

    Returns:
        None where they did not run or felled nothing, or where only a part was evaluated.
    """
    if ADAPTIVE not in evidence.stages or run.limits.eval is not None:
        return None
    attacked, ok = (evidence.column(ADAPTIVE, name) for name in ("attacked", "ok"))
    return percent(metrics["robust"]["value"]) if (attacked & ~ok).any() else None


def method_name(run: Run) -> str:
    """The method with its update and its control: ``pgd``, ``trades-awp``, ``aal-fgsm[no_gate]``.

    A control is another method than the one that it is a control of: no claim is about it.
    """
    control = run.method.options.get("control", "none")
    name = run.method.name + ("" if control == "none" else f"[{control}]")
    update = run.update.name
    # awp, trades-awp and again-awp say their update themselves.
    said = update == "plain" or update in run.method.name.split("-")
    return name if said else f"{name}-{update}"


def training_block(
    run: Run,
    record: Mapping[str, Any],
    environment: Mapping[str, Any],
    selected: Literal["last", "validation"] = "last",
    passes: Passes | None = None,
) -> Training:
    """The `training` block of a run of our own.

    Args:
        run: the resolved configuration.
        record: of the training loop: ``images``, ``seconds``, and where known ``epochs``,
            ``steps``, ``peak_memory_bytes``.
        environment: as `environment.describe` gives it.
        selected: which checkpoint is evaluated.
        passes: per image and epoch, where counted.
    """
    on_gpu = run.device.startswith("cuda")
    held_out = run.task.train.validation
    metric = selection_metric(run.task) if selected == "validation" else None
    return Training(
        method=method_name(run),
        method_version=__version__,
        config=run.identity(),
        config_hash=run.hash(),
        data=[DataSource(name=run.task.data.name, count=record["images"])],
        seeds=[run.seed],
        selection=Selection(split=selected, metric=metric, size=held_out),
        epochs=record.get("epochs"),
        steps=record.get("steps"),
        wall_seconds=record["seconds"],
        gpu=environment.get("gpu") if on_gpu else None,
        gpu_count=1 if on_gpu else 0,
        peak_memory_bytes=record.get("peak_memory_bytes"),
        passes=passes,
        code=Code.model_validate(environment["aal_bench"]),
    )


def selection_metric(task: Task) -> str:
    """What ``train.select = "best"`` maximises on the held-out images or validation episodes."""
    return {"fewshot": "val_clean", "detection": "val_map"}.get(task.family, "val_pgd")


def build(
    *,
    run: Run,
    task_hash: str,
    examples: int,
    model: Mapping[str, Any],
    environment: Mapping[str, Any],
    command: Sequence[str],
    evaluation: Sequence[StageRecord] = (),
    metrics: Mapping[str, Any] | None = None,
    evidence: EvidenceFile | None = None,
    training: Training | None = None,
    adversarials: Adversarials | None = None,
    flags: Sequence[Flag] = (),
    audit: AuditBlock | None = None,
    status: Status = "success",
    error: Failure | None = None,
    created: datetime | None = None,
    published: Mapping[str, Any] | None = None,
) -> Result:
    """Assemble and check a record; everything derivable is derived here.

    Args:
        run: the resolved configuration.
        task_hash: of the task with the fingerprint of the data as fed.
        examples: size of the task's whole test set: images, or ``task.episodes.count``.
        model: fields of `ModelBlock`; `architecture` defaults to the name as RobustBench writes it.
        environment: fields of `Environment`, as `environment.describe` gives them.
        command: argument vector.
        evaluation: one record per stage, in order.
        metrics: what `METRICS[family]` returned; None when the run did not get there.
        evidence: from `evidence_file`.
        training: from `training_block`; None for somebody else's checkpoint.
        adversarials: stored fooled images, if any.
        flags: findings.
        audit: what the audit came to, if there was one.
        status: of the whole run.
        error: exactly when status is ``error``.
        created: default now.
        published: any of link, name, authors, venue, reported, external, footnote.

    Raises:
        UserError: a block is not what the schema asks for.
    """
    task = run.task
    block = parse(ModelBlock, {"architecture": _architecture(run.model.name), **model}, "model")
    threat = ThreatBlock(norm=task.threat.norm, eps=task.threat.eps)
    digest = None
    if block.checkpoint is not None:
        digest = run_hash(task_hash, threat, block, evaluation, run.limits.eval)
    tree: dict[str, Any] = {
        "submission_id": _submission_id(run, digest),
        "status": status,
        "error": error,
        "created": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
        "command": list(command),
        "protocol": run.protocol,
        "limit": run.limits.eval,
        "smoke": run.smoke,
        "run_hash": digest,
        "task": {
            "id": task.id,
            "version": task.version,
            "family": task.family,
            "hash": task_hash,
            "classes": task.ways,
            "examples": examples,
            "episodes": task.episodes,
        },
        "threat": threat,
        "model": block,
        "training": training,
        "evaluation": list(evaluation),
        "metrics": metrics,
        "evidence": evidence,
        "adversarials": adversarials,
        "environment": dict(environment),
        "flags": list(flags),
        "audit": audit,
    }
    record = parse(Record, tree, "result")
    paper = {"name": f"{method_name(run)} on {title_of(task)}"} | dict(published or {})
    return parse(Result, robustbench_view(record) | paper | tree, "result")


def seal(tree: Mapping[str, Any]) -> str:
    """The sha256 over everything else in a record's JSON `tree`."""
    return sha256_json({key: value for key, value in tree.items() if key != "seal"})


def sealed(result: Result) -> Result:
    """A copy with its seal renewed."""
    return result.model_copy(update={"seal": seal(result.model_dump(mode="json"))})


def dumps(result: Result) -> str:
    """The record as the text of its file."""
    tree = result.model_dump(mode="json")
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(path: Path, result: Result) -> None:
    """Write the record as JSON, whole or not at all."""
    write_text(path, dumps(result))


def read(path: Path) -> Result:
    """Read and check a record.

    Raises:
        UserError: no such file, no strict JSON, or not what the schema asks for.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return parse(Result, strict_json.parse(content, path), path.name)


def title_of(task: Task) -> str:
    """The task's title, with ways and shots of a few-shot task."""
    asked = task.episodes
    return task.title if asked is None else f"{task.title}, {asked.ways}-way {asked.shots}-shot"


def _architecture(model: str) -> str:
    if model == "wrn28":  # learn2learn's, of width 10
        return "WRN-28-10"
    known = {"resnet": "ResNet", "preactresnet": "PreActResNet", "wrn": "WideResNet", "cnn": "CNN"}
    if detector := re.fullmatch(r"ssd512-resnet34(-b)?", model):
        return f"SSD-512 ResNet-34{' B' if detector[1] else ''}"
    match = re.fullmatch(r"(preactresnet|resnet|wrn|cnn)-?([\d-]+)", model)
    return f"{known[match[1]]}-{match[2]}" if match else model


def _submission_id(run: Run, digest: str | None) -> str:
    text = f"{method_name(run)}-{run.model.name}-seed{run.seed}-{(digest or 'unfinished')[:8]}"
    return re.sub(r"[^\w.-]+", "_", text)
