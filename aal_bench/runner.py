"""The stages of a run, each resumable: train -> evaluate[i] -> audit -> summarise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aal_bench import environment, paths, registry, results, summary
from aal_bench.adapters.method import build_method, build_update
from aal_bench.adversarials import Adversarials
from aal_bench.audit import conduct, show
from aal_bench.audit.of_run import Told
from aal_bench.audit.record import Audit
from aal_bench.audit.table import BUDGETS
from aal_bench.config import Run
from aal_bench.errors import RunFailed, UserError, full_disk
from aal_bench.methods.base import Method
from aal_bench.methods.updates import Plain
from aal_bench.models import weights
from aal_bench.resolve import Request, resolve, stages_of, stages_run
from aal_bench.run_folder import Job, RunFolder, checkpoint_block
from aal_bench.training.loop import Trained


def run(
    request: Request,
    out: Path | None = None,
    data_dir: Path | None = None,
    resume: bool = False,
    command: list[str] | None = None,
) -> results.Result:
    """Train, evaluate and summarise what `request` asks for.

    Raises:
        UserError: bad input; nothing was written.
        RunFailed: training diverged or an attack failed; ``run.json`` says so.
    """
    resolved = resolve(request)
    name = resolved.method.identity()["name"]
    path = out or paths.run_folder(resolved.task.id, name, resolved.hash(), resolved.seed)
    return execute(Job(resolved, RunFolder(path), command or sys.argv, data_dir, resume))


def follow(request: Request, out: Path | None = None, data_dir: Path | None = None) -> None:
    """Train beside the process that keeps the record: what a launcher's other processes do.

    They write nothing, and are done when training is.
    """
    resolved = resolve(request)
    name = resolved.method.identity()["name"]
    path = out or paths.run_folder(resolved.task.id, name, resolved.hash(), resolved.seed)
    if (path / "model.safetensors").exists():
        return
    from accelerate.utils import set_seed

    adapter = load_adapter(resolved, data_dir)
    set_seed(resolved.seed)
    method, update = build_method(resolved), build_update(resolved)
    adapter.fit(method, update, method.build(adapter.build()), path)


def execute(job: Job) -> results.Result:
    """Run a job to its end, or print what a finished one left."""
    checkpoint = None if job.foreign is None else job.foreign.sha256
    state = job.folder.inspect(job.run, checkpoint, job.data_dir)
    if state == "finished":
        result = results.read(job.folder / "result.json")
        summary.show(result, job.run, job.folder.path, again=True)
        return result
    if state == "unfinished" and not job.resume:
        raise UserError(
            f"{job.folder.path}: this run was begun and not finished"
            f" (status {job.folder.record['status']}). Add --resume, or choose another --out"
        )
    from accelerate.utils import set_seed

    adapter = load_adapter(job.run, job.data_dir)
    # Networks of the method's own (a teacher) are drawn before the model: the seed covers them too.
    set_seed(job.run.seed)
    method, update = build_method(job.run), build_update(job.run)
    update.check(method)
    model = job.foreign.model if job.foreign is not None else method.build(adapter.build())
    adapter.check(stages_of(job.run), training=job.foreign is None)
    job.folder.same_data(adapter.fingerprint())
    task_hash = job.run.task.hash(adapter.fingerprint())
    summary.announce(job, task_hash, adapter)
    job.folder.begin(
        job.run,
        {
            "command": job.command,
            "data_dir": None if job.data_dir is None else str(job.data_dir.resolve()),
            "checkpoint": checkpoint,
            "task_hash": task_hash,
            "fingerprint": adapter.fingerprint(),
            "environment": environment.describe(),
        },
    )
    with recorded(job.folder):
        result = _stages(job, adapter, method, update, model)
    summary.show(result, job.run, job.folder.path)
    return result


def _stages(
    job: Job, adapter: Any, method: Method, update: Plain, model: nn.Module
) -> results.Result:
    if job.foreign is None:
        train(job, adapter, method, update, model)
        model = rebuild(job.folder / "model.safetensors", adapter, method)
    evidence = evaluate(job, adapter, model)
    audited = audit(job, adapter, model, evidence)
    job.folder.update(stage="summarise")
    return summary.summarise(job, adapter, method, model, evidence, audited)


@contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Whatever ends the run is in ``run.json`` before anybody is told."""
    try:
        yield
    except KeyboardInterrupt:
        folder.update(status="cancelled")
        raise
    except Exception as error:
        cause = full_disk(error) or error
        failure = {
            "stage": folder.record.get("stage", "train"),
            "type": type(cause).__name__,
            "message": str(cause).partition("\n")[0],
        }
        folder.update(status="error", error=failure)
        raise
    folder.update(status="success")


def load_adapter(run: Run, data_dir: Path | None) -> Any:
    """The adapter of the task's family, with its data read."""
    family = run.task.family
    if family not in registry.ADAPTERS:
        raise UserError(f"task {run.task.name}: no adapter for {family} tasks yet")
    return registry.load(registry.ADAPTERS[family].target)(run, data_dir)


def train(job: Job, adapter: Any, method: Method, update: Plain, model: nn.Module) -> None:
    """Train unless ``model.safetensors`` is there; keep last and best."""
    folder = job.folder
    if (folder / "model.safetensors").exists():
        summary.say_trained(folder.record["training"], earlier=True)
        return
    folder.update(stage="train")
    trained: Trained = adapter.fit(method, update, model, folder.path)
    described = weights.Described(
        model=job.run.model.name,
        classes=job.run.task.data.classes,
        size=job.run.task.data.size,
        normalisation=job.run.task.normalisation.model_dump(mode="json"),
        method=job.run.method.name,
        options=job.run.method.options,
        names=job.run.task.detection.names if job.run.task.detection is not None else (),
        source=job.run.model.source if job.run.task.detection is not None else None,
    )
    chosen = trained.last
    if trained.best is not None:
        weights.save(folder / "checkpoints" / "best.safetensors", trained.best, described)
        if job.run.task.train.select == "best":
            chosen = trained.best
    weights.save(folder / "checkpoints" / "last.safetensors", trained.last, described)
    folder.update(training=trained.record)
    # Last: its presence says that training is over.
    weights.save(folder / "model.safetensors", chosen, described)
    summary.say_trained(trained.record)


def rebuild(path: Path, adapter: Any, method: Method) -> nn.Module:
    """The model as anybody would rebuild it from the file, contiguous and in eval mode."""
    model = method.build(adapter.build())
    weights.load_into(model, weights.read(path), path, path.name)
    return model


def evaluate(job: Job, adapter: Any, model: nn.Module) -> Any:
    """Run every stage that the evidence lacks; the evidence is saved after every batch."""
    folder, device = job.folder, torch.device(job.run.device)
    model = model.to(device).eval().requires_grad_(False)
    path = folder / "evidence.npz"
    table = results.TABLES[job.run.task.family]
    evidence = table.load(path) if path.exists() else adapter.new_evidence()
    adversarials = Adversarials(folder.path, len(evidence))
    for name in stages_run(job.run, model):
        folder.update(stage=name)

        def saved(seconds: float, violation: dict[str, float], stage: str = name) -> None:
            # In this order: a kill in between repeats the batch, and its violation is kept.
            folder.account(stage, seconds, violation)
            evidence.save(path)

        def fooled(rows: Any, x_adv: Any, stage: str = name) -> None:
            adversarials.keep(stage, rows, x_adv)

        adapter.run_stage(name, model, evidence, fooled, saved)
        # A stage without a survivor to attack has no batch, and its skipped rows are evidence too.
        evidence.save(path)
        summary.say_stage(adapter, name, evidence, folder)
        if name == "clean" and job.foreign is not None and not job.foreign.described:
            adapter.check_clean(evidence)
    folder.update(adversarials=adversarials.merge(evidence))
    return evidence


def audit(job: Job, adapter: Any, model: nn.Module, evidence: Any) -> Audit | None:
    """Audit what was evaluated, unless that was done already; None: no audit was asked for."""
    folder, budget = job.folder, BUDGETS.get(job.run.audit)
    if budget is None:
        return None
    checkpoint = job.foreign.sha256 if job.foreign is not None else None
    checkpoint = checkpoint or checkpoint_block(folder / "model.safetensors")["sha256"]
    path = folder / conduct.FILE
    if path.exists():
        held = conduct.read(path)
        if (held.budget, held.subject["checkpoint"]) == (budget.name, checkpoint):
            show.line(held, earlier=True)
            return held
    folder.update(stage="audit")
    metrics = results.METRICS[job.run.task.family](evidence, stages_run(job.run, model))
    training = None if job.foreign is not None else folder.record["training"]
    known = job.foreign is None or job.foreign.described
    told = Told(folder.path, evidence, metrics, training, known)
    found = conduct.conduct(adapter, model, budget, folder.path, checkpoint, told)
    show.line(found)
    return found


__all__ = [
    "Job",
    "RunFailed",
    "build_method",
    "build_update",
    "checkpoint_block",
    "execute",
    "run",
]
