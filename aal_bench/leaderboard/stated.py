"""Level 0, the stages: those of the protocol, as the task asks them, in figures that fit. No torch.

Only the record is looked at. Whether its figures are those of the evidence is level 1's question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aal_bench import registry
from aal_bench.attacks import parameters as known
from aal_bench.attacks.parameters import PARTITION
from aal_bench.config import Task
from aal_bench.errors import UserError
from aal_bench.leaderboard import episodes
from aal_bench.leaderboard.extend import beyond, is_extra, protocol_stages, stood
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import differing, rule, same, shown
from aal_bench.metrics import measure
from aal_bench.record import Result, whole_autoattack
from aal_bench.schema import Measure, StageRecord
from aal_bench.threat import format_fraction

LONGEST = 400
"""Characters of a protocol that is a list of stages."""


def findings(record: Result, task: Task) -> list[Finding]:
    """The rules about stages and metrics; where the stages are others, nothing more is judged."""
    ran = f"{len(record.evaluation)} stages"
    protocol = rule(0, "protocol", _protocol(record), f"{record.protocol}: {ran}, in order")
    if not protocol.ok:
        return [protocol]
    rules = [
        protocol,
        rule(0, "parameters", _parameters(record, task), _unknown(record) or "the task's"),
        rule(0, "arithmetic", _arithmetic(record, task), "the task's batches and seed, fp32"),
    ]
    faults, whole = _autoattack(record), "standard, all four, on the whole test set"
    if task.family == "fewshot":
        faults, whole = episodes.autoattack(record), episodes.attacked(record)
    return [
        *rules,
        rule(0, "autoattack", faults, whole),
        rule(0, "order", _order(record), _survivors(record)),
        rule(0, "counts", _counts(record), "metrics are the stages' counts"),
        rule(0, "budget", _budget(record, task), "survivors cost what their attacks cost"),
    ]


def extra(record: Result) -> list[StageRecord]:
    """The stages that verifications have added."""
    return [stage for stage in record.evaluation if is_extra(stage.attack)]


def expected(protocol: str) -> tuple[str, ...]:
    """The stages of a protocol's name, without one that too few classes do not allow.

    Raises:
        UserError: no such protocol.
    """
    if len(protocol) > LONGEST:
        raise UserError(f"a protocol of {len(protocol):,} characters")
    name, _, left_out = protocol.partition("-no-")
    return tuple(stage for stage in registry.protocol(name) if stage != left_out)


def _protocol(record: Result) -> Iterator[str]:
    try:
        stages = expected(record.protocol)
    except UserError as error:
        yield str(error)
        return
    names = [stage.attack for stage in record.evaluation]
    if tuple(names[: len(stages)]) != stages:
        yield f"stages are {shown(','.join(names))}, the protocol's {shown(','.join(stages))}"
        return
    added = names[len(stages) :]
    if added[:1] == [registry.ADAPTIVE] and set(registry.AUTOATTACK) <= set(stages):
        del added[0]  # the run's own
    if added and record.task.episodes is not None:
        yield f"stage {shown(added[0])}: nothing is added to few-shot entries yet"
        return
    for position, name in enumerate(added):
        kind, _, number = name.partition("-")
        before = sum(other.startswith(f"{kind}-") for other in added[:position])
        if not is_extra(name) or number != str(before + 1):
            yield f"stage {shown(name)} follows the protocol's: challenge-1, reattack-1, ... may"
            return


def _parameters(record: Result, task: Task) -> Iterator[str]:
    environment = record.environment
    versions = {"aal-bench": environment.aal_bench.version, **environment.packages}
    for stage in record.evaluation:
        params = _known_parameters(stage.attack, task)
        if params is not None:
            faults = list(differing(stage.params, params, f"{stage.attack}.params"))
            if not faults and not same(stage.params, params):
                surplus = sorted(stage.params.keys() - params.keys())
                faults = [f"{stage.attack}.params has {shown(surplus[0])} besides"]
            yield from faults
            own = known.package(stage.attack)
            if stage.implementation.package != own:
                yield f"{stage.attack} is run by {shown(stage.implementation.package)}, not {own}"
        elif stage.params.get("eps") not in (None, format_fraction(task.threat.eps)):
            yield f"{stage.attack}.params.eps is {shown(stage.params['eps'])}"
    for stage in protocol_stages(record.evaluation):
        installed = versions.get(stage.implementation.package)
        if installed is not None and stage.implementation.version not in (None, installed):
            yield f"{stage.attack}: its package is another version than the environment's"


def budget_of(stage: str, task: Task) -> known.Budget | None:
    """What an image that stands costs in a stage under this task; None: not known."""
    params = _known_parameters(stage, task)
    return None if params is None else known.budget(stage, params)


def _known_parameters(stage: str, task: Task) -> dict[str, Any] | None:
    threat = task.threat
    return known.parameters(stage, threat.norm, threat.eps, task.attack.step, task.ways)


def _unknown(record: Result) -> str:
    names = [
        stage.attack
        for stage in protocol_stages(record.evaluation)
        if known.package(stage.attack) is None
    ]
    return f"the task's; not ours to judge: {', '.join(names)}" if names else ""


def _arithmetic(record: Result, task: Task) -> Iterator[str]:
    for stage in record.evaluation:
        wanted: dict[str, object] = {"dtype": "float32", "tf32": False, "deterministic": True}
        if is_extra(stage.attack):
            wanted["partition"] = PARTITION[True]
        else:
            wanted |= {"seed": task.evaluation.seed}
            wanted |= known.batches(task, known.sequential(stage.attack))
            if stage.attack == "clean":
                wanted["max_violation"] = {"norm": 0.0, "box": 0.0}
        stated = stage.model_dump(mode="json", include=set(wanted))
        yield from differing(stated, wanted, stage.attack)


def _autoattack(record: Result) -> Iterator[str]:
    if not whole_autoattack(record):
        yield "not AutoAttack's four standard attacks on the whole test set"
    elif record.autoattack_acc is None:
        yield "autoattack_acc is missing"


def _order(record: Result) -> Iterator[str]:
    """Which images each stage must have attacked, as far as counts tell."""
    standing, all_of_it = record.task.rows, None
    clean = None
    for place, stage in enumerate(record.evaluation):
        if stage.attack == "clean":
            wanted, clean = standing, stood(stage)
        elif known.closing(stage.attack) or is_extra(stage.attack):
            # How many stood under all independent stages together only the rows tell.
            wanted = all_of_it
            if wanted is None and stage.n_in > min(map(stood, record.evaluation[:place])):
                yield f"{stage.attack} attacked {stage.n_in}, more than stood"
            all_of_it = stood(stage)
        elif known.sequential(stage.attack):
            suite, before = registry.follows(stage.attack), record.evaluation[:place]
            wanted = next((stood(one) for one in before[::-1] if one.attack in suite), clean)
        else:
            wanted = clean
        if wanted is not None and stage.n_in != wanted:
            yield f"{stage.attack} attacked {stage.n_in}, but {wanted} stood before it"


def _survivors(record: Result) -> str:
    shown = [f"{stage.attack} {stood(stage)}" for stage in record.evaluation]
    return f"of {record.task.rows}: {', '.join(shown)}"


def _counts(record: Result) -> Iterator[str]:
    metrics = record.metrics
    if metrics is None or not record.evaluation:
        yield "no metrics"
        return
    stages = {stage.attack: stood(stage) for stage in record.evaluation}
    if len(stages) < len(record.evaluation):
        yield "a stage occurs twice"
        return
    stated: dict[str, Measure] = {"clean": metrics.clean, **metrics.stages}
    if stated.keys() != stages.keys():
        yield f"metrics of {shown(','.join(stated))}, stages {shown(','.join(stages))}"
        return
    if metrics.autoattack is not None:
        stated["autoattack"] = metrics.autoattack
        stages["autoattack"] = stages.get("square", 0)
    if faults := list(episodes.spreads(record)):
        yield from faults
        return
    for name, measured in stated.items():
        yield from _measured(record, name, measured, stages[name])
    if metrics.robust is not None:
        yield from _robust(record, metrics.robust)


def _measured(record: Result, name: str, stated: Measure, k: int) -> Iterator[str]:
    if record.task.episodes is not None:
        yield from episodes.measured(record, name, stated, k)
        return
    n = record.task.examples
    if k > n:
        yield f"{name}: {k} of {n} stand"
    elif not same(stated.model_dump(mode="json"), measure(k, n)):
        yield f"metrics of {name} are not those of {k} of {n}"


def _robust(record: Result, stated: Measure) -> Iterator[str]:
    """All stages together: exact after one that had the rest, bounded by Bonferroni before."""
    last, own, n = beyond(record.evaluation), protocol_stages(record.evaluation), record.task.rows
    if last:
        yield from _measured(record, "robust", stated, stood(last[-1]))
        return
    k = round(stated.value * n)
    yield from _measured(record, "robust", stated, k)
    fallen = sum(stage.n_in - stood(stage) for stage in own if stage.attack != "clean")
    least, most = stood(own[0]) - fallen, min(stood(stage) for stage in own)
    if not least <= k <= most:
        yield f"robust is {k} of {n}; the stages leave {max(least, 0)} to {most}"


def _budget(record: Result, task: Task) -> Iterator[str]:
    for stage in protocol_stages(record.evaluation):
        budget = budget_of(stage.attack, task)
        if budget is None:
            continue
        for way, most in (("forwards", budget.forwards), ("backwards", budget.backwards)):
            yield from _passes(stage, way, most)


def _passes(stage: StageRecord, way: str, most: int) -> Iterator[str]:
    spent = float(getattr(stage, way))
    if stage.n_in == 0:
        least = most = 0
    else:
        least = most * (stood(stage) / stage.n_in)
    # A mean of whole numbers; what a survivor costs is exact, what a fallen image cost is not.
    if not least * (1 - 1e-12) <= spent <= most:
        allowed = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        yield f"{stage.attack} spent {spent:g} {way} per image; its attack costs {allowed}"
