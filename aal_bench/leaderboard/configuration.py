"""Level 0, the training: what the record says of it agrees with its own configuration. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aal_bench.config import Normalisation, Run, Task, parse
from aal_bench.errors import UserError
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.robustbench import same_architecture
from aal_bench.leaderboard.rules import differing, rule, same, shown
from aal_bench.record import Result
from aal_bench.results import method_name, selection_metric
from aal_bench.schema import Selection, Training

NAMED = re.compile(r".*-seed(\d{1,10})-([0-9a-f]{8})", re.ASCII | re.DOTALL)
"""The name that a run gives itself: its seed, and the first digits of its run_hash."""


def findings(record: Result, task: Task) -> list[Finding]:
    """The rules about model, training and seed, for a record of this task."""
    model = rule(0, "model", _model(record), record.model.architecture)
    if record.training is None:
        return [model, rule(0, "training", [], "somebody else's checkpoint")]
    fine = f"{record.training.method}, {record.training.epochs} epochs"
    return [
        model,
        rule(0, "training", _training(record, record.training, task), fine),
        rule(0, "seed", _seed(record, record.training), f"{record.training.seeds}"),
        rule(0, "siblings", _siblings(record.training), "none stated: boards find them"),
    ]


def _model(record: Result) -> Iterator[str]:
    model = record.model
    if ":" not in model.name and not same_architecture(model.architecture, model.name):
        yield f"architecture is {shown(model.architecture)}, name {shown(model.name)}"
    gpu, count = record.environment.gpu, record.environment.gpu_count
    if (gpu is None) != (count == 0):
        yield f"environment.gpu_count is {count}, gpu {shown(gpu)}"


def _training(record: Result, training: Training, task: Task) -> Iterator[str]:
    try:
        run = _resolved(training)
    except UserError as error:
        yield str(error)
        return
    if not same(_common(run.identity(), training.config), training.config):
        yield "training.config is not written as a run resolves it"
    if record.evidence is not None:
        asked = run.task.hash(record.evidence.dataset_fingerprint)
        if asked != record.task.hash:
            yield "training.config is about another question than task.hash"
    if run.smoke or run.limits.eval is not None:
        yield "training.config is that of a smoke run or has a limit on evaluation"
    stated = {
        "method": training.method.rpartition("/")[2],
        "model": record.model.name.rpartition("/")[2],
        "protocol": record.protocol,
        "task": task.name,
    }
    wanted = {
        "method": method_name(run),
        "model": run.model.name,
        "protocol": run.protocol,
        "task": run.task.name,
    }
    yield from differing(stated, wanted, "the record's")
    yield from _schedule(training, run)
    yield from _built(record, training, run)


def _resolved(training: Training) -> Run:
    """The configuration as a typed run; the title and the seed are no part of it."""
    config, where = training.config, "training.config"
    task = config.get("task")
    if not isinstance(task, dict) or "title" in task or {"seed", "device"} & config.keys():
        raise UserError(f"{where} is no resolved configuration")
    return parse(Run, config | {"task": task | {"title": ""}}, where)


def _common(whole: object, part: object) -> object:
    """`whole` without the keys that `part` lacks: fields that are younger than the record."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return {key: _common(value, part[key]) for key, value in whole.items() if key in part}
    return whole


def _schedule(training: Training, run: Run) -> Iterator[str]:
    train = run.task.train
    chosen = train.select == "best"
    wanted = {
        "epochs": train.epochs,
        "selection": Selection(
            split="validation" if chosen else "last",
            metric=selection_metric(run.task) if chosen else None,
            size=train.validation,
        ).model_dump(mode="json"),
    }
    own = [source for source in training.data if source.role == "train"]
    images = sum(source.count for source in own)
    if run.task.episodes is not None:
        yield from _passes_of_epochs(training)
    elif len(own) == len(training.data):
        wanted["steps"] = train.epochs * -(-images // train.batch_size)
    stated = training.model_dump(mode="json", include=set(wanted))
    yield from differing(stated, wanted, "training")
    if [source.name for source in own] != [run.task.data.name]:
        yield f"training.data is not the task's {run.task.data.name}"
    # Episodes of a shorter epoch are still drawn from all images.
    limit = run.limits.train if run.task.episodes is None else None
    if limit is not None and images > limit:
        yield f"training.data counts {images:,} images, the limit is {limit:,}"


def _passes_of_epochs(training: Training) -> Iterator[str]:
    """An epoch of episodes is as long as its method makes it; all of them are as long."""
    steps, epochs = training.steps or 0, training.epochs or 0
    if steps < epochs or (epochs and steps % epochs):
        yield f"training.steps is {shown(training.steps)}, no multiple of {epochs} epochs"


def _built(record: Result, training: Training, run: Run) -> Iterator[str]:
    """What the model block repeats of the configuration, and what ran it."""
    plain = run.task.normalisation == Normalisation()
    normalisation = None if plain else run.task.normalisation.model_dump(mode="json")
    model = record.model.model_dump(mode="json", include={"normalisation", "surgery"})
    yield from differing(model, {"normalisation": normalisation}, "model")
    if model["surgery"] is not None:
        yield from differing(model, {"surgery": training.config["method"]}, "model")
    if (training.gpu is None) != (training.gpu_count == 0):
        yield f"training.gpu is {shown(training.gpu)}, gpu_count {training.gpu_count}"
    if training.code != record.environment.aal_bench:
        yield "training.code is not the environment's aal_bench"
    if training.method_version != training.code.version:
        yield f"training.method_version is {shown(training.method_version)}"


def _seed(record: Result, training: Training) -> Iterator[str]:
    """One seed, the one in the command and in the run's own name, where these state one."""
    if len(training.seeds) != 1:
        yield f"training.seeds is {shown(training.seeds)}: an entry is one seed"
        return
    stated = {"training.seeds": str(training.seeds[0])}
    for word, following in zip(record.command, [*record.command[1:], ""], strict=True):
        if word == "--seed":
            stated["command"] = following
        elif word.startswith("--seed="):
            stated["command"] = word.partition("=")[2]
    named = NAMED.fullmatch(record.submission_id)
    if named:
        stated["submission_id"] = named[1]
        if record.run_hash is not None and named[2] != record.run_hash[:8]:
            yield f"submission_id ends in another run's hash than {record.run_hash[:8]}"
    if len(set(stated.values())) > 1:
        yield "seeds differ: " + ", ".join(f"{key} {value}" for key, value in stated.items())


def _siblings(training: Training) -> Iterator[str]:
    """Boards group seeds by config_hash; a list in each entry would be stale with the next."""
    if training.siblings:
        yield f"training.siblings is {shown(training.siblings)}, an entry's is empty"
