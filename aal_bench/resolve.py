"""From what was typed to a resolved `Run`: command line > task file, every value spelled out."""

from __future__ import annotations

from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aal_bench import registry
from aal_bench.config import (
    Choice,
    Crafting,
    Limits,
    Pretrained,
    Run,
    Strict,
    Task,
    parse,
    parse_value,
    read_task,
    set_path,
)
from aal_bench.errors import UserError, did_you_mean
from aal_bench.hashing import sha256_file
from aal_bench.mm_files import config_path, config_sha256
from aal_bench.plugins import source_sha256
from aal_bench.threat import format_fraction

if TYPE_CHECKING:
    from aal_bench.methods.base import Method

SMOKE = {"epochs": 1, "train": 256, "eval": 32, "validation": 32}
"""What ``--smoke`` cuts a run down to."""
SMOKE_DETECTION = {"epochs": 1, "train": 16, "eval": 4, "validation": 0}
"""The same for detection, whose images are large."""
RECIPES = ("official", "official-031")
"""``official-031``: with the rounded training budget of some official scripts, too."""
OFFICIAL_OPTIMISER = {"optimizer": "sgd", "momentum": 0.9, "nesterov": False, "warmup_epochs": 0.0}
"""What all official scripts share, unless a recipe says otherwise."""
OFFICIAL_EPS = Fraction(8, 255)
"""What the official scripts' steps are for."""
TASK_SECTIONS = (
    *("data", "threat", "attack", "train", "evaluation", "episodes", "detection", "normalisation"),
)


class Request(NamedTuple):
    """The options of ``aal-bench run`` as typed; None means "the task's"."""

    task: str
    method: str = "standard"
    update: str | None = None
    """None: the method's own, which is plain for most."""
    recipe: str | None = None
    """``official`` or ``official-031``: the method's own settings in place of the task's."""
    model: str | None = None
    protocol: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    ways: int | None = None
    shots: int | None = None
    episodes: int | None = None
    limit_train: int | None = None
    limit_eval: int | None = None
    seed: int = 0
    device: str | None = None
    precision: str | None = None
    compile: bool = False
    ema: float | None = None
    classes: str | None = None
    """Detection: names with commas between, or a file with one on each line."""
    backbone: str | None = None
    """Detection: a file of weights that the backbone starts from."""
    smoke: bool = False
    audit: str = "none"
    """``quick``, ``full`` or ``none``; a trial with ``smoke`` is never audited."""
    settings: tuple[str, ...] = ()
    """``key=value`` of ``--set``, in order."""


def resolve(request: Request) -> Run:
    """Resolve a request. Imports torch and the method's module.

    Raises:
        UserError: an unknown name or key, a value of the wrong type or out of range.
    """
    settled = _settled(request)
    task = settled.task
    device = device_of(request.device)
    kind = registry.load(registry.method_row(request.method).target)
    model = request.model or task.model
    if ":" not in model:
        registry.fits(registry.find("model", model).row, model, task.family)
    small = _smoke(task.family)
    run = {
        "task": task,
        "method": _choice(request.method, settled.method.model_dump(mode="json")),
        "update": _choice(settled.update_name, settled.update.model_dump(mode="json")),
        "model": _model(model, task),
        "protocol": _protocol_name(request.protocol or task.protocol, task, request.smoke),
        "limits": Limits(
            train=_smaller(request.limit_train, small["train"] if request.smoke else None),
            eval=_smaller(request.limit_eval, small["eval"] if request.smoke else None),
        ),
        "seed": request.seed,
        "device": device,
        "precision": request.precision or kind.precision or _precision(device),
        "compile": request.compile,
        "ema": request.ema,
        "crafting": None if settled.crafting == Crafting() else settled.crafting,
        "recipe": request.recipe,
        "pretrained": _pretrained(request, task),
        "smoke": request.smoke,
        "audit": _audit(request, task),
    }
    return parse(Run, run, "run")


class _Settled(NamedTuple):
    """The task and the options of method and update, with everything typed folded in."""

    task: Task
    method: Strict
    update_name: str
    update: Strict
    crafting: Crafting


def _settled(request: Request) -> _Settled:
    task = read_task(registry.task_file(request.task))
    method = _method(request.method, task.family)
    method_options = method.Options
    update_name = _update_name(request, method)
    update_options = registry.load(registry.find("update", update_name).row.target).Options
    tree: dict[str, Any] = {"task": task.model_dump(mode="json"), "crafting": {}}
    tree["method"] = method.family_defaults(task.family)
    tree["update"] = deepcopy(method.update_defaults.get(update_name, {}))
    tree["task"]["train"] |= method.train_defaults
    _recipe(tree, request, method)
    _assign(tree, "task.train.epochs", request.epochs)
    _assign(tree, "task.train.batch_size", request.batch_size)
    _episodes(tree, request)
    _classes(tree, request)
    known = {"method": method_options.model_fields, "update": update_options.model_fields}
    for setting in request.settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise UserError(f"--set {setting}: write key=value, as in --set train.lr=0.05")
        set_path(tree, _locate(key, tree, known), parse_value(value))
    if tree["task"]["detection"] is not None and tree["task"]["detection"]["names"]:
        tree["task"]["data"]["classes"] = len(tree["task"]["detection"]["names"])
    task = parse(Task, tree["task"], f"task {task.name}")
    if request.smoke:
        cut = _smoke(task.family)
        small = {
            "epochs": cut["epochs"],
            "validation": min(task.train.validation, cut["validation"]),
        }
        task = task.model_copy(update={"train": task.train.model_copy(update=small)})
    _augmentable(task, request.method, method)
    if update_name == "plain" and tree["update"]:
        key = next(iter(tree["update"]))
        raise UserError(f"--set update.{key}: the update plain has no options; add --update awp")
    return _Settled(
        task,
        parse(method_options, tree["method"], f"method {request.method}"),
        update_name,
        parse(update_options, tree["update"], f"update {update_name}"),
        _crafting(tree, request, task),
    )


def _update_name(request: Request, method: type[Method]) -> str:
    """The update that was asked for, or the method's own, which is part of what it is."""
    asked = request.update or method.update
    registry.find("update", asked)
    if method.update not in {"plain", asked}:
        raise UserError(
            f"method {request.method} includes the update {method.update}: omit --update {asked},"
            " or choose the method without it (aal-bench list methods)"
        )
    return asked


def _recipe(tree: dict[str, Any], request: Request, method: type[Method]) -> None:
    """``--recipe``: the method's own settings over the task's, and under what is typed."""
    if request.recipe is None:
        return
    if request.recipe not in RECIPES:
        raise UserError(f"unknown recipe '{request.recipe}'. Known: {', '.join(RECIPES)}")
    recipe = method.recipe
    if recipe is None:
        having = ", ".join(registry.with_recipe())
        raise UserError(f"method {request.method} has no official recipe. These have: {having}")
    if request.recipe == "official-031" and not recipe.eps_031:
        raise UserError(f"method {request.method}: its official budget is exact, not .031")
    if tree["task"]["family"] != "classification":
        raise UserError("--recipe: the official scripts are for images with labels: omit it here")
    # Copies: what is typed is folded into these tables.
    tree["task"]["train"] |= deepcopy(OFFICIAL_OPTIMISER | recipe.train)
    tree["method"] |= deepcopy(dict(recipe.options))
    tree["crafting"] |= recipe.crafting
    if request.recipe == "official-031":
        tree["crafting"]["eps"] = "0.031"


def _crafting(tree: dict[str, Any], request: Request, task: Task) -> Crafting:
    """The training attack, as far as it is not the task's."""
    typed = {setting.partition("=")[0].strip() for setting in request.settings}
    usual = task.threat.eps == OFFICIAL_EPS
    if request.recipe == "official-031" and not usual and "crafting.eps" not in typed:
        raise UserError(
            f"--recipe official-031: its budget stands for 8/255, and the task's is"
            f" {format_fraction(task.threat.eps)}: choose --recipe official"
        )
    crafting = parse(Crafting, tree["crafting"], "crafting")
    if request.recipe is not None and crafting.step is not None and "crafting.step" not in typed:
        # The scripts' steps are for 8/255: where the budget is another, so is the step.
        scaled = crafting.step * task.threat.eps / OFFICIAL_EPS
        crafting = crafting.model_copy(update={"step": scaled})
    same = {"eps": task.threat.eps, "step": task.attack.step, "steps": task.attack.steps}
    own = {key: value for key, value in crafting if value != same[key]}
    return Crafting(**own)


def _augmentable(task: Task, name: str, method: type[Method]) -> None:
    can = method.augmentations
    if can is not None and task.train.augment not in can:
        raise UserError(
            f"method {name} undoes the augmentation, which it cannot for {task.train.augment}:"
            f" --set train.augment= one of {', '.join(can)}"
        )


def _episodes(tree: dict[str, Any], request: Request) -> None:
    typed = {"ways": request.ways, "shots": request.shots, "count": request.episodes}
    given = {key: value for key, value in typed.items() if value is not None}
    if given and tree["task"]["episodes"] is None:
        names = ", ".join(f"--{'episodes' if key == 'count' else key}" for key in given)
        raise UserError(f"task {tree['task']['name']} has no episodes: omit {names}")
    for key, value in given.items():
        set_path(tree, f"task.episodes.{key}", value)


def _classes(tree: dict[str, Any], request: Request) -> None:
    """``--classes`` of a detection task."""
    if request.classes is None:
        return
    if tree["task"]["detection"] is None:
        raise UserError(f"task {tree['task']['name']} has its own classes: omit --classes")
    path = Path(request.classes)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError:
        raise UserError(f"--classes {path}: not a text file with one name on each line") from None
    listed = text.splitlines() if path.is_file() else request.classes.split(",")
    names = [name.strip() for name in listed if name.strip()]
    if not names or len(set(names)) != len(names):
        told = "a class occurs twice" if names else "no class"
        raise UserError(
            f"--classes {request.classes}: {told}; write a,b,c, or a file with one on each line"
        )
    tree["task"]["detection"]["names"] = names


def _pretrained(request: Request, task: Task) -> Pretrained | None:
    if request.backbone is None:
        return None
    if task.detection is None:
        raise UserError("--backbone is for detection")
    path = Path(request.backbone)
    if not path.is_file():
        raise UserError(f"--backbone {path}: no such file")
    return Pretrained(path=str(path), sha256=sha256_file(path))


def _smoke(family: str) -> dict[str, int]:
    return SMOKE_DETECTION if family == "detection" else SMOKE


def _method(name: str, family: str) -> type[Method]:
    from aal_bench.methods.base import Method

    row = registry.method_row(name)
    registry.serves(row, name, family)
    found = registry.load(row.target)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(
            f"method '{name}' is no training method: it must be a subclass of"
            " aal_bench.methods.base.Method"
        )
    return found


def _model(name: str, task: Task) -> Choice:
    """A detector is what its MMDetection config says: the files are part of the configuration."""
    if task.detection is None:
        return _choice(name, {})
    if ":" in name:
        raise UserError(f"--model {name}: a detector is a config of tasks/detection (list models)")
    source = config_sha256(config_path(name, task.detection.config))
    return Choice(name=name, source=source)


def _choice(name: str, options: dict[str, Any]) -> Choice:
    return Choice(name=name, options=options, source=source_sha256(name) if ":" in name else None)


def stages_of(run: Run) -> tuple[str, ...]:
    """The stages of the run's protocol, without those that its class count does not allow."""
    left_out = run.protocol.partition("-no-")[2]
    stages = registry.protocol(run.protocol.partition("-no-")[0])
    return tuple(name for name in stages if name != left_out)


def stages_run(run: Run, model: Any) -> tuple[str, ...]:
    """The stages of a run's evaluation: `stages_of`, and what the network makes necessary.

    Where it declares a gate or auxiliary heads, AutoAttack on its final logits may overstate it:
    then the adaptive attacks follow, on what all other stages left standing.

    Args:
        run: the resolved configuration.
        model: an ``nn.Module``, as it is evaluated.
    """
    stages = stages_of(run)
    whole = set(registry.AUTOATTACK) <= set(stages)
    if run.task.family != "classification" or run.task.threat.norm != "Linf" or not whole:
        return stages
    from aal_bench.attacks.adaptive.declared import declares

    return (*stages, registry.ADAPTIVE) if declares(model) else stages


def _protocol_name(name: str, task: Task, smoke: bool) -> str:
    """A protocol that must leave a stage out has another name: its number is another number."""
    from aal_bench.attacks.parameters import DLR_CLASSES

    stages = registry.protocol(name)
    if smoke:
        return "smoke"
    _fitting(name, stages, task)
    if task.family == "detection":
        return name
    needing = next((stage for stage in ("apgd-t", "bf16-apgd-t") if stage in stages), None)
    if task.ways < DLR_CLASSES and needing is not None:
        if not set(stages) - {"clean", needing}:
            raise UserError(
                f"protocol {name}: {needing} needs {DLR_CLASSES} classes, the task has"
                f" {task.ways}, and no other attack is left"
            )
        return f"{name}-no-{needing}"
    return name


def _fitting(name: str, stages: tuple[str, ...], task: Task) -> None:
    """Refuse a protocol of another family, or a list with an attack of one."""
    own = {"fewshot": registry.EPISODIC, "detection": registry.DETECTING}
    others = [family for family in own if name in own[family]]
    if others and task.family not in others:
        kind = {"fewshot": "few-shot", "detection": "detection"}[others[0]]
        raise UserError(f"protocol {name} is for {kind} tasks, which {task.name} is none of")
    fitting = (*own.get(task.family, registry.PROTOCOLS), "smoke")
    if name in registry.PROTOCOLS and name not in fitting:
        example = {"fewshot": "clean,pgd-20", "detection": "clean,pgd-20-cls"}[task.family]
        raise UserError(
            f"protocol {name} is for labelled images; {task.name} has"
            f" {', '.join(own[task.family])}, or a list: {example}"
        )
    for stage in stages:
        families = registry.find("attack", stage).row.families
        if task.family not in families:
            raise UserError(f"attack {stage} serves {', '.join(families)}, not {task.family}")


def _audit(request: Request, task: Task) -> str:
    """The audit's budget; its attacks are Linf."""
    return "none" if request.smoke or task.threat.norm != "Linf" else request.audit


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    if value is not None:
        set_path(tree, dotted, value)


def _smaller(*limits: int | None) -> int | None:
    given = [limit for limit in limits if limit is not None]
    return min(given) if given else None


def _locate(key: str, tree: dict[str, Any], known: dict[str, Any]) -> str:
    """Where a ``--set`` key belongs: ``train.lr``, ``method.xi2``, or ``xi2`` where clear."""
    head, _, rest = key.partition(".")
    if head in {"method", "update", "crafting"} and rest:
        return key
    if head in TASK_SECTIONS and rest:
        return f"task.{key}"
    homes = [f"{section}.{key}" for section, fields in known.items() if head in fields]
    homes += [
        f"task.{section}.{key}"
        for section in TASK_SECTIONS
        if head in (tree["task"].get(section) or {})
    ]
    if key == "seed":
        homes.append("--seed")  # the run's, which is no key: never take the evaluation's for it
    if len(homes) == 1:
        return homes[0]
    if homes:
        shown = ", ".join(home.removeprefix("task.") for home in homes)
        raise UserError(f"--set {key}: which one? {shown}")
    every = [f"{section}.{name}" for section, fields in known.items() for name in fields]
    every += [f"crafting.{name}" for name in Crafting.model_fields]
    every += [
        f"{section}.{name}" for section in TASK_SECTIONS for name in tree["task"].get(section) or {}
    ]
    leaves = {name.split(".", 1)[1]: name for name in every}
    sections = ", ".join(("method", "update", "crafting", *TASK_SECTIONS))
    hint = did_you_mean(key, [*every, *leaves]) or f" Sections: {sections}."
    raise UserError(f"--set {key}: unknown key.{hint}")


def device_of(name: str | None) -> str:
    """The device of that name; None: a GPU where there is one.

    Raises:
        UserError: no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; try cpu or cuda") from None
    if kind not in {"cpu", "cuda"}:
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no CUDA device (aal-bench doctor)")
    if kind == "cuda" and (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices")
    return name


def _precision(device: str) -> str:
    from aal_bench.environment import has_fast_bf16

    return "bf16" if has_fast_bf16(device) else "fp32"
