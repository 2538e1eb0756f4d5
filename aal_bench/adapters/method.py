"""The method and the update of a run, from their registered names and resolved options."""

from __future__ import annotations

import torch

from aal_bench import registry
from aal_bench.config import Run
from aal_bench.data.augment import mixed_seed
from aal_bench.errors import UserError
from aal_bench.methods.base import Method, Threat
from aal_bench.methods.updates import Plain
from aal_bench.models.build import build


def build_method(run: Run, name: str | None = None) -> Method:
    """The run's method with its options and the task's training attack.

    Args:
        run: the resolved configuration.
        name: another method, with its default options: the teacher of the run's.
    """
    chosen = name or run.method.name
    method = registry.load(registry.method_row(chosen).target)
    if run.task.threat.norm != "Linf" and method.attacks:
        raise UserError(
            f"method {chosen} trains against Linf, the task's threat is"
            f" {run.task.threat.norm}: only 'standard' fits"
        )
    if method.attacks and method.plan is Method.plan and method.attack is Method.attack:
        raise UserError(f"method {chosen}: states no attack; give it plan(), or attacks = False")
    eps, step, steps = run.training_attack
    threat = Threat(float(eps), float(step), steps)
    options = run.method.options if name is None else {}
    return method(method.Options(**options), threat)


def join_companions(run: Run, method: Method) -> None:
    """Give a method the further networks it trains, initialised from seeds of their own.

    The generators stay where they are, so that the model begins and the batches are drawn as they
    are for every other method.
    """
    wanted = method.companions()
    task, made = run.task, {}
    for number, (name, companion) in enumerate(wanted.items(), 1):
        if companion.model is not None:
            _known(run, name, companion.model)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which reseeds every GPU as well; networks are built on the CPU.
            torch.default_generator.manual_seed(mixed_seed(run.seed, number))
            try:
                made[name] = build(
                    companion.model or run.model.name,
                    companion.outputs or task.data.classes,
                    task.data.size,
                    task.normalisation,
                )
            except UserError as error:
                raise UserError(f"its {name} network, --set method.{name}=: {error}") from None
    if wanted:
        method.join(made)


def _known(run: Run, name: str, model: str) -> None:
    """A companion is a registered network: code of a user's own would be in no hash."""
    if ":" in model:
        raise UserError(f"method.{name} is a registered model, not {model} (aal-bench list models)")
    found = registry.find("model", model)
    registry.fits(found.row, model, run.task.family)


def build_update(run: Run) -> Plain:
    """What happens around the run's optimiser step."""
    update = registry.load(registry.find("update", run.update.name).row.target)
    return update(update.Options(**run.update.options))
