"""Somebody else's checkpoint, made ready for the same evaluation as a run of our own."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from aal_bench import paths, registry
from aal_bench.adapters.method import build_method
from aal_bench.adapters.network import BUILD, build_network, loader_of
from aal_bench.config import Normalisation, Run, parse, read_task
from aal_bench.errors import UserError
from aal_bench.hashing import sha256_json
from aal_bench.models import weights
from aal_bench.resolve import Request, resolve
from aal_bench.results import Result
from aal_bench.run_folder import Job, RunFolder, checkpoint_block
from aal_bench.runner import execute

ZOO = "robustbench.utils:load_model"


class Foreign(NamedTuple):
    """A model that this run did not train."""

    model: nn.Module
    block: dict[str, Any]
    """``{sha256, bytes, format}`` of the weights file, or of the one that they would make."""
    described: bool = False
    """The file says itself how it is to be fed: accuracy at chance is a finding, no mistake."""
    loader: str = BUILD
    """``module:function`` that built the model."""

    @property
    def sha256(self) -> str:
        """What the record calls the checkpoint."""
        return self.block["sha256"]


class Source(NamedTuple):
    """Where a model comes from, as typed."""

    checkpoint: Path | None
    robustbench: str | None
    normalise: str | None
    """``none``, ``task`` or ``MEAN/STD``; None: what the file says, else none."""


def evaluate(
    request: Request,
    source: Source,
    out: Path | None = None,
    data_dir: Path | None = None,
    resume: bool = False,
    command: list[str] | None = None,
) -> Result:
    """Evaluate a checkpoint under a task's protocol.

    Raises:
        UserError: the file is no checkpoint or of another architecture; clean accuracy at chance.
        RunFailed: an attack failed.
    """
    run, foreign = prepare(request, source)
    name = "evaluate-" + (source.checkpoint.stem if source.checkpoint else run.model.name)
    path = out or paths.run_folder(run.task.id, name, f"{foreign.sha256[:8]}{run.hash()}", run.seed)
    job = Job(run, RunFolder(path), command or [], data_dir, resume, foreign)
    return execute(job)


def prepare(request: Request, source: Source) -> tuple[Run, Foreign]:
    """The resolved configuration under which a foreign model is looked at, and the model.

    Raises:
        UserError: the file is no checkpoint or of another architecture, or says otherwise than
            what was typed.
    """
    _unambiguous(request, source)
    described = None if source.checkpoint is None else _describe(source.checkpoint)
    if described is not None:
        _trusted(described, request, source.checkpoint)
        if request.method not in {"standard", described.method}:
            raise UserError(
                f"{source.checkpoint} says that its method is '{described.method}': omit --method"
            )
        request = request._replace(model=request.model or described.model, method=described.method)
        if described.names and not _has_classes(request):
            request = request._replace(classes=",".join(described.names))
    elif source.robustbench is not None:
        request = request._replace(model=f"robustbench:{source.robustbench}")
    elif request.model is None and source.checkpoint is not None:
        weights.read(source.checkpoint)  # a page or a damaged file is the more helpful error
        raise UserError(
            f"{source.checkpoint}: does not describe itself; say what it is with --model"
            " (aal-bench list models)"
        )
    run = _resolved(request, source, described)
    return run, _load(run, source)


def _unambiguous(request: Request, source: Source) -> None:
    if source.robustbench is not None:
        given = {
            "--checkpoint": source.checkpoint,
            "--model": request.model,
            "--normalise": source.normalise,
            "--method": None if request.method == "standard" else request.method,
        }
        surplus = [name for name, value in given.items() if value is not None]
        if surplus:
            raise UserError(
                f"--robustbench {source.robustbench} is a whole model, its normalisation included:"
                f" omit {' and '.join(surplus)}"
            )
    elif source.checkpoint is None and ":" not in (request.model or ""):
        raise UserError("give --checkpoint FILE, --robustbench NAME or --model module:builder")


def _trusted(described: weights.Described, request: Request, path: Path | None) -> None:
    """A file may name registered code only: what runs on the user's machine is what she typed."""
    said = {"method": described.method, "model": described.model}
    for kind, name in said.items():
        if ":" in name and name != getattr(request, kind):
            raise UserError(
                f"{path}: says that its {kind} is the code '{name}';"
                f" if you trust that code, add --{kind} {name}"
            )


def _describe(path: Path) -> weights.Described | None:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    return weights.describe(path)


def _resolved(request: Request, source: Source, described: weights.Described | None) -> Run:
    if source.robustbench is not None:
        run = resolve(request._replace(model=None))
        run = run.model_copy(update={"model": run.model.model_copy(update={"name": request.model})})
    else:
        run = resolve(request)
    normalisation = _normalisation(source, run, described)
    task = run.task.model_copy(update={"normalisation": normalisation})
    update: dict[str, Any] = {"task": task}
    if described is not None:
        if task.detection is not None and described.source not in {None, run.model.source}:
            raise UserError(
                f"{source.checkpoint}: was built from another MMDetection config than"
                f" {run.model.name}_{task.detection.config}.py is now: its priors may be others;"
                " choose the one with --model and --set detection.config"
            )
        if task.detection is not None and described.names != task.detection.names:
            raise UserError(
                f"{source.checkpoint}: was trained on the classes {_few(described.names)}, the"
                f" class list is {_few(task.detection.names)}; give its own with --classes"
            )
        if (described.classes, described.size) != (task.data.classes, task.data.size):
            raise UserError(
                f"{source.checkpoint}: a model of {described.classes} classes and"
                f" {described.size} px, task {task.name} has {task.data.classes} and"
                f" {task.data.size} px"
            )
        if run.method.options != _defaults(described.method):
            raise UserError(f"{source.checkpoint} says its own method options: omit their --set")
        known = registry.load(registry.method_row(described.method).target).Options
        options = parse(known, described.options, f"{source.checkpoint}: method {described.method}")
        update["method"] = run.method.model_copy(
            update={"options": options.model_dump(mode="json")}
        )
    return run.model_copy(update=update)


def _has_classes(request: Request) -> bool:
    """Whether a detection task, or who asks for it, says which classes there are."""
    detection = read_task(registry.task_file(request.task)).detection
    return request.classes is not None or detection is None or bool(detection.names)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _defaults(method: str) -> dict[str, Any]:
    options = registry.load(registry.method_row(method).target).Options
    return options().model_dump(mode="json")


def _normalisation(source: Source, run: Run, described: weights.Described | None) -> Normalisation:
    given = None if source.normalise is None else _typed(source.normalise, run)
    if described is None:
        # A detector's config says how its images are normalised.
        unsaid = Normalisation() if run.task.detection is None else run.task.normalisation
        return given or unsaid
    own = parse(Normalisation, described.normalisation, str(source.checkpoint))
    if given is not None and given != own:
        raise UserError(f"{source.checkpoint} says its own normalisation: omit --normalise")
    return own


def _typed(text: str, run: Run) -> Normalisation:
    if text == "none":
        return Normalisation()
    if text == "task":
        return run.task.normalisation
    try:
        mean, std = (tuple(float(part) for part in side.split(",")) for side in text.split("/"))
    except ValueError:
        mean = std = ()
    if not (mean and std and all(isfinite(value) for value in (*mean, *std))):
        raise UserError(
            f"--normalise {text}: write none, task or MEAN/STD as in 0.49,0.48,0.45/0.25,0.24,0.26"
        )
    widened = {
        "mean": mean * 3 if len(mean) == 1 else mean,
        "std": std * 3 if len(std) == 1 else std,
    }
    return parse(Normalisation, widened, f"--normalise {text}")


def _load(run: Run, source: Source) -> Foreign:
    if source.robustbench is not None:
        return from_robustbench(run, source.robustbench)
    # A builder that draws its weights draws the same ones again, and the run can be resumed.
    torch.manual_seed(run.seed)
    model = build_method(run).build(build_network(run))
    if any(weight.dtype != torch.float32 for weight in model.parameters()):
        raise UserError(f"model {run.model.name}: verdicts are taken in float32; build it so")
    if source.checkpoint is None:
        # Of the weights, not of the name: the builder may load others tomorrow.
        return Foreign(model, weights.checkpoint_block(model), loader=loader_of(run))
    path, state = source.checkpoint, weights.read(source.checkpoint)
    if run.task.detection is not None:
        from aal_bench.detection.build import check_classes

        check_classes(state, model, path, run.task.detection.names)
    weights.load_into(model, state, path, run.model.name)
    described = weights.describe(path) is not None
    return Foreign(model, checkpoint_block(path), described, loader_of(run))


def from_robustbench(run: Run, name: str) -> Foreign:
    """Load an entry of RobustBench's zoo for the run's task.

    Raises:
        UserError: the task is none of RobustBench's, or there is no such entry.
    """
    from aal_bench.models.robustbench_zoo import load

    dataset = run.task.paper.get("robustbench")
    if dataset is None:
        raise UserError(f"task {run.task.name}: RobustBench has no models for it")
    model, files = load(name, dataset, run.task.threat.norm)
    if not files:  # torchvision keeps the weights of ImageNet's standard models
        return Foreign(model, weights.checkpoint_block(model), loader=ZOO)
    blocks = [checkpoint_block(path) for path in files]
    if len(blocks) == 1:
        return Foreign(model, blocks[0], loader=ZOO)
    digest = sha256_json([block["sha256"] for block in blocks])  # an ensemble
    size = sum(block["bytes"] for block in blocks)
    return Foreign(model, {"sha256": digest, "bytes": size, "format": "torch"}, loader=ZOO)
