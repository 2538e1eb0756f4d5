"""``aal-bench audit``: of a finished run, or of a bare checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from aal_bench import paths, registry, results
from aal_bench.adapters.method import build_method
from aal_bench.audit import conduct, markdown, on_record
from aal_bench.audit.of_run import Beside, Told
from aal_bench.audit.record import Audit
from aal_bench.audit.table import Budget
from aal_bench.config import Run, parse, read_task
from aal_bench.errors import UserError
from aal_bench.evaluate import Source, prepare
from aal_bench.files import write_text
from aal_bench.hashing import sha256_file
from aal_bench.models.weights import describe
from aal_bench.resolve import Request, device_of
from aal_bench.run_folder import RunFolder
from aal_bench.runner import load_adapter, rebuild


class Wanted(NamedTuple):
    """What was typed."""

    target: Path
    """A run's folder, or a file of weights."""
    budget: Budget
    task: str | None = None
    model: str | None = None
    method: str | None = None
    normalise: str | None = None
    data_dir: Path | None = None
    device: str | None = None
    out: Path | None = None
    baseline: Path | None = None
    undefended: Path | None = None
    surrogates: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    classes: str | None = None


class Done(NamedTuple):
    """An audit and the folder that holds it."""

    audit: Audit
    folder: Path


def audit(wanted: Wanted) -> Done:
    """Audit a run's folder or a checkpoint.

    Raises:
        UserError: neither, an unfinished run, other images than the run's, or a network that does
            not fit the task.
    """
    if wanted.target.is_dir():
        return _of_run(wanted)
    if not wanted.target.is_file():
        raise UserError(f"{wanted.target}: neither a run's folder nor a file of weights")
    return _of_checkpoint(wanted)


# ---- a finished run --------------------------------------------------------------------------


def _of_run(wanted: Wanted) -> Done:
    typed = {
        "--task": wanted.task,
        "--normalise": wanted.normalise,
        "--set": wanted.settings,
        "--classes": wanted.classes,
    }
    surplus = [name for name, value in typed.items() if value]
    if surplus:
        raise UserError(f"{wanted.target} says this itself: omit {' and '.join(surplus)}")
    if wanted.out is not None:
        raise UserError(f"--out: the audit of a run goes into its folder {wanted.target}: omit it")
    folder = RunFolder(wanted.target)
    run = run_of(folder, wanted)
    weights = folder / "model.safetensors"
    data_dir = wanted.data_dir or _path(folder.record.get("data_dir"))
    adapter = load_adapter(run, data_dir)
    folder.same_data(adapter.fingerprint())
    model = rebuild(weights, adapter, build_method(run))
    evidence = results.TABLES[run.task.family].load(folder / "evidence.npz")
    result = results.read(folder / "result.json")
    digest = sha256_file(weights)
    if result.model.checkpoint is None or result.model.checkpoint.sha256 != digest:
        raise UserError(f"{weights}: is not what {folder / 'result.json'} was measured on")
    trained = folder.record.get("training")
    told = Told(folder.path, evidence, result.metrics, trained, method_known=True)
    found = conduct.conduct(
        adapter,
        model,
        wanted.budget,
        folder.path,
        digest,
        told,
        _beside(wanted, run),
        wanted.command,
    )
    _enter(folder, result, run, found)
    return Done(found, folder.path)


def run_of(folder: RunFolder, wanted: Wanted | None = None) -> Run:
    """The resolved configuration of a finished run that trained its own model.

    Raises:
        UserError: no run, an unfinished one, one of a foreign checkpoint, or one whose code is a
            file of the user's that was not named again.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"{folder.path}: not the folder of a run (no run.json in it); name the folder that"
            " holds run.json, or a file of weights with --task"
        )
    folder.record = folder.read()
    if folder.record["status"] != "success":
        raise UserError(
            f"{folder.path}: the run is not finished (status {folder.record['status']});"
            " finish it with --resume"
        )
    if folder.record.get("checkpoint") is not None:
        raise UserError(
            f"{folder.path}: evaluated somebody's checkpoint and holds no weights; audit the file:"
            " aal-bench audit FILE --task T --model NAME"
        )
    tree = dict(folder.record["identity"])
    name = tree["task"]["name"]
    known = registry.task_files().get(name)
    title, paper = name, {}
    if known is not None:
        task = read_task(known)
        title, paper = task.title, task.paper
    tree["task"] = {**tree["task"], "title": title, "paper": paper}
    for kind in ("model", "method"):
        typed = None if wanted is None else getattr(wanted, kind)
        tree[kind] = _named(tree[kind], kind, typed, folder.path)
    device = device_of(None if wanted is None else wanted.device)
    return parse(Run, {**tree, "seed": folder.record["seed"], "device": device}, "run.json")


def _named(choice: dict[str, Any], kind: str, typed: str | None, folder: Path) -> dict[str, Any]:
    """A registered name as it is; code of the user's own only as she types it."""
    name = choice["name"]
    if ":" not in name:
        if typed is not None and typed != name:
            raise UserError(f"{folder}: its {kind} is {name}: omit --{kind}")
        return choice
    if typed is None:
        raise UserError(f"{folder}: its {kind} is the code '{name}': say where with --{kind}")
    return {**choice, "name": typed}


def _enter(folder: RunFolder, result: results.Result, run: Run, audit: Audit) -> None:
    """Write the audit's flags and block into the run's record, and the report anew."""
    from aal_bench import report

    kept = [flag for flag in result.flags if not flag.code.startswith(on_record.PREFIX)]
    flags = [*kept, *on_record.flags(audit)]
    tree = result.model_dump(mode="json")
    tree |= {
        "flags": [flag.model_dump(mode="json") for flag in flags],
        "audit": on_record.block(audit, folder / conduct.FILE).model_dump(mode="json"),
        "unreliable": any(flag.severity == "unreliable" for flag in flags),
    }
    marked = parse(results.Result, tree, "result.json")
    if result.seal is not None:
        marked = results.sealed(marked)
    results.write(folder / "result.json", marked)
    own = set(audit.figures)
    drawn = [
        name
        for path in sorted((folder.path / "figures").glob("*.png"))
        if (name := path.relative_to(folder.path).as_posix()) not in own
    ]
    write_text(folder / "report.md", report.markdown(marked, run.task, drawn, audit))


# ---- a bare checkpoint -----------------------------------------------------------------------


def _of_checkpoint(wanted: Wanted) -> Done:
    if wanted.task is None:
        raise UserError(f"{wanted.target}: say what it is asked with --task (list tasks)")
    request = Request(
        task=wanted.task,
        method=wanted.method or "standard",
        model=wanted.model,
        device=wanted.device,
        settings=wanted.settings,
        classes=wanted.classes,
    )
    run, foreign = prepare(request, Source(wanted.target, None, wanted.normalise))
    adapter = load_adapter(run, wanted.data_dir)
    name = f"audit-{wanted.target.stem}"
    out = wanted.out or paths.run_folder(
        run.task.id, name, f"{foreign.sha256[:8]}{wanted.budget.name}{run.hash()}", run.seed
    )
    if (out / "run.json").exists():
        raise UserError(f"--out {out}: holds a run; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    found = conduct.conduct(
        adapter,
        foreign.model,
        wanted.budget,
        out,
        foreign.sha256,
        Told(method_known=foreign.described or wanted.method is not None),
        _beside(wanted, run),
        wanted.command,
    )
    write_text(out / "report.md", markdown.page(found))
    return Done(found, out)


# ---- networks beside it ----------------------------------------------------------------------


def _beside(wanted: Wanted, run: Run) -> Beside:
    def network(path: Path | None, option: str) -> nn.Module | None:
        return None if path is None else _network(path, run, wanted, option)

    return Beside(
        baseline=network(wanted.baseline, "--baseline"),
        undefended=network(wanted.undefended, "--undefended"),
        surrogates=tuple(
            (name, _network(path, run, wanted, "--surrogate"))
            for name, path in zip(names_of(wanted.surrogates), wanted.surrogates, strict=True)
        ),
    )


def names_of(paths: tuple[Path, ...]) -> list[str]:
    """A unique name for each network: the file's; where two share it its folder's too, or a number.

    Raises:
        UserError: one of them is given twice.
    """
    real = [path.resolve() for path in paths]
    if twice := next((path for path in paths if real.count(path.resolve()) > 1), None):
        raise UserError(f"--surrogate {twice}: is given twice: omit one")
    names = [path.stem if path.is_file() else path.name for path in real]
    names = [
        f"{path.parent.name}-{name}" if names.count(name) > 1 else name
        for path, name in zip(real, names, strict=True)
    ]
    return [
        f"{name}-{names[:at].count(name) + 1}" if names.count(name) > 1 else name
        for at, name in enumerate(names)
    ]


def _network(path: Path, run: Run, wanted: Wanted, option: str) -> nn.Module:
    """Another network of the same task: a run's, a file that describes itself, or bare weights.

    Bare weights are taken for the audited model's architecture, fed as that one is.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{option} {path}: neither a run's folder with a model nor a file")
    task = wanted.task or run.task.name
    if wanted.task is None and task not in registry.task_files():
        raise UserError(f"{option}: the run's task file is not known here; audit the file instead")
    request = Request(task=task, device=run.device, classes=wanted.classes)
    if describe(file) is not None:
        _, foreign = prepare(request, Source(file, None, None))
        return foreign.model.to(run.device).eval().requires_grad_(False)
    alike = request._replace(model=run.model.name)
    try:
        _, foreign = prepare(alike, Source(file, None, _normalise(run)))
    except UserError as error:
        raise UserError(
            f"{option} {file}: does not describe itself, so it was taken for '{alike.model}' like"
            f" the audited model: {error}"
        ) from None
    return foreign.model.to(run.device).eval().requires_grad_(False)


def _normalise(run: Run) -> str | None:
    """The audited model's input layer as in ``--normalise``; None: a detector's config says."""
    given = run.task.normalisation
    if run.task.detection is not None:
        return None
    return "/".join(",".join(repr(value) for value in side) for side in (given.mean, given.std))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
