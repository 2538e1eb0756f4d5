"""A result's numbers beside what was claimed and published for the same question. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aal_bench.config import Task
from aal_bench.leaderboard import robustbench
from aal_bench.leaderboard.conventions import CONVENTIONS
from aal_bench.leaderboard.reported import Claim, claims
from aal_bench.leaderboard.robustbench import Neighbours
from aal_bench.record import Result
from aal_bench.registry import ADAPTIVE, AUTOATTACK
from aal_bench.schema import Measure

NONE = "-"
"""What stands where there is no number."""
PARTS = {"cls": "on the classes' loss", "loc": "on the boxes' loss"}
"""Part of a detector's loss that an attack maximises -> how a label says so."""


class Line(NamedTuple):
    """One row of the result table."""

    stage: str
    """``clean``, a stage's name, ``autoattack`` or ``robust``."""
    label: str
    """The stage, its eps, and which part of a detector's loss it maximises."""
    measure: Measure
    paper: float | None
    """The claim in [0, 1]; None: no claim."""
    reference: float | None
    """The nearest RobustBench row's number in [0, 1]; None: none."""


def marks(result: Result) -> list[str]:
    """What keeps the numbers from being a result: SMOKE, LIMITED; empty for a real run."""
    found = ["SMOKE"] if result.smoke else []
    if result.limit is not None:
        n = result.metrics.clean.n if result.metrics else min(result.limit, result.task.examples)
        found.append(f"LIMITED to {n} of {result.task.examples}")
    return found


def is_fewshot(result: Result) -> bool:
    """Whether its units are episodes."""
    return result.task.episodes is not None


def is_detection(result: Result) -> bool:
    """Whether its numbers are mean average precisions."""
    return result.task.family == "detection"


def title(result: Result) -> str:
    """The heading of table and report: marks first, then what was run."""
    method = result.training.method if result.training else "checkpoint"
    if result.training is None and result.model.surgery is not None:
        method = f"checkpoint of {result.model.surgery['name']}"
    seed = f"seed {result.training.seeds[0]}" if result.training and result.training.seeds else ""
    status = [] if result.status == "success" else [result.status.upper()]
    doubt = ["UNRELIABLE"] if result.unreliable else []
    parts = [*_question(result), method, result.model.architecture, seed, _episodes(result)]
    return " · ".join([*marks(result), *status, *doubt, *(part for part in parts if part)])


def _question(result: Result) -> list[str]:
    """Task and threat; a few-shot run without attack has no threat."""
    task, threat = result.task, f"{result.threat.norm} {result.eps}"
    if task.episodes is None:
        return [task.id, threat]
    ways, shots = task.episodes.ways, task.episodes.shots
    name = task.id.removesuffix(f"-{ways}w{shots}s")
    attacked = any(stage.attack != "clean" for stage in result.evaluation)
    return [f"{name} {ways}-way {shots}-shot", *([threat] if attacked else [])]


def _episodes(result: Result) -> str:
    if result.task.queries is None:
        return ""
    n = result.metrics.clean.n if result.metrics else result.limit or result.task.examples
    return f"{n:,} episodes x {result.task.queries} queries"


def lines(result: Result, task: Task) -> list[Line]:
    """The rows of the result table; AutoAttack's four attacks are one row where all four ran."""
    if result.metrics is None:
        return []
    claimed = {
        stage: value
        for claim in relevant_claims(result, task)[::-1]
        for stage, value in claim.values.items()
    }
    near = neighbours(result, task).rows
    reference = {"clean": near[0].clean, "autoattack": near[0].robust} if near else {}
    measured = _measured(result)
    return [
        Line(stage, label, measure, claimed.get(stage), reference.get(stage))
        for stage, label, measure in measured
    ]


def captions(result: Result, task: Task) -> list[str]:
    """What the columns `paper` and `reference` are, one line each."""
    if result.error is not None:
        return [f"{result.status}: {result.error.stage}: {result.error.message}"]
    relevant = relevant_claims(result, task)
    star = "* " if other_backbone(relevant) else ""
    rows = _precision(result)
    rows += [f"{star}paper: {claim}" for claim in relevant]
    if result.external is not None:
        rows.append(f"external {result.external} %: the worst case of each image over all of them")
    near = neighbours(result, task)
    if near.rows:
        row = near.rows[0]
        rows.append(f"reference: RobustBench {row.entry}, {row.architecture}, {row.venue}")
    else:
        rows.append(f"no reference: {near.reason}")
    if result.evidence is not None:
        digest = result.evidence.dataset_fingerprint.get("pixels", "")
        if digest in task.data.fingerprints:
            rows.append(f"pixels {digest[:8]}: {task.data.fingerprints[digest]}")
    return rows


def _precision(result: Result) -> list[str]:
    """What a mean average precision and its interval are."""
    found = result.metrics.detection if result.metrics else None
    if found is None:
        return []
    headline = found.conventions[0]
    draws = f"{found.samples:,} draws of the images (bootstrap, seed {found.seed})"
    return [f"mAP: {headline}, {CONVENTIONS[headline]}", f"interval: 95 % of {draws}"]


def relevant_claims(result: Result, task: Task) -> list[Claim]:
    """Claims for this network; where there are none, the first for another, which is then named."""
    found = claims(task, method_of(result), result.model.name)
    return [claim for claim in found if claim.same_backbone] or found[:1]


def other_backbone(relevant: Sequence[Claim]) -> bool:
    """Whether any of these claims is for another network."""
    return any(not claim.same_backbone for claim in relevant)


def neighbours(result: Result, task: Task) -> Neighbours:
    """The nearest RobustBench rows."""
    clean = result.metrics.clean.value if result.metrics else None
    return robustbench.nearest(task, result.model.name, result.model.parameters, clean=clean)


def method_of(result: Result) -> str:
    """The method's name; empty for somebody else's checkpoint."""
    return result.training.method if result.training else ""


def points(share: float | None, decimals: int) -> str:
    """A share in percent; `NONE` where there is none."""
    return NONE if share is None else f"{100 * share:.{decimals}f} %"


def _measured(result: Result) -> list[tuple[str, str, Measure]]:
    metrics = result.metrics
    assert metrics is not None
    records = {stage.attack: stage for stage in result.evaluation}
    found = [("clean", "clean", metrics.clean)]
    closing: list[tuple[str, str, Measure]] = []
    for stage, measure in metrics.stages.items():
        if metrics.autoattack is not None and stage in AUTOATTACK:
            continue
        params = records[stage].params if stage in records else {}
        told = [params.get("eps", ""), PARTS.get(params.get("loss", ""), "")]
        last = closing if stage == ADAPTIVE else found
        last.append((stage, f"{stage}  {' '.join(map(str, told))}".rstrip(), measure))
    if metrics.autoattack is not None:
        found.append(("autoattack", "autoattack", metrics.autoattack))
    found += closing
    if len(found) > 2 and metrics.robust is not None:
        found.append(("robust", "all of them", metrics.robust))
    return found
