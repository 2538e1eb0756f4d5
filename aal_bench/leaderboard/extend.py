"""What happens to an entry after its submission: a stage is added, or a level is reached. No torch.

A re-attack or a challenge is appended to the evidence as a stage of its own, ``reattack-<n>`` or
``challenge-<n>``, that attacked whatever still stood. So every number stays recomputable:
``metrics.robust`` is the AND of all stages, AutoAttack's own number does not change, and
``external`` is the lower one. ``run_hash`` stays that of the run: over the protocol's stages only.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aal_bench.attacks.parameters import closing
from aal_bench.config import parse
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.leaderboard.entries import Entry
from aal_bench.metrics import METRICS
from aal_bench.record import Result, percent
from aal_bench.results import evidence_file, sealed
from aal_bench.schema import Code, Event, Implementation, MaxViolation, StageRecord, Verification

Kind = Literal["challenge", "reattack"]
EXTRA = re.compile(r"(challenge|reattack)-[1-9]\d{0,3}", re.ASCII)
"""Names of stages that were added to an entry after its submission."""
CAP = 1
"""The level beyond which code that nobody can look up does not get."""

CHALLENGED = 4
"""The level of an entry that was attacked again, and then brought down by somebody."""


class Attacked(NamedTuple):
    """What was attacked after the submission, and with what result: all arrays (n,)."""

    kind: Kind
    implementation: dict[str, Any]
    """Fields of `schema.Implementation`."""
    params: dict[str, Any]
    """What is needed to repeat it."""
    rows: NDArray[np.intp]
    """Distinct positions in the evidence; of those that have fallen already nothing is recorded."""
    pred: ArrayLike
    """Class predicted on x'."""
    norm: ArrayLike
    """|x' - x| in pixel units."""
    forwards: ArrayLike = 0
    """Passes spent on the row; 0 where nobody knows."""
    backwards: ArrayLike = 0
    seed: int = 0
    seconds: float = 0.0
    violation: MaxViolation = MaxViolation(norm=0, box=0)


class Verified(NamedTuple):
    """Who verified, to which level, and what is to be remembered of it."""

    by: str
    level: int | None
    """1..4, the level that is reached; None: none is, and only what happened is recorded."""
    seed: int | None = None
    """Of the re-attack that reached it."""
    report_sha256: str | None = None
    """Of the findings as canonical JSON."""
    note: str = ""
    """One sentence."""


class Extended(NamedTuple):
    """An entry after the event."""

    result: Result
    """Sealed anew."""
    evidence: Evidence
    """Saved, it has the sha256 that `result` states."""
    fallen: NDArray[np.intp]
    """Positions of the rows that stood before and fell now, ascending."""


def is_extra(stage: str) -> bool:
    """Whether a stage was added after the submission."""
    return EXTRA.fullmatch(stage) is not None


def protocol_stages(evaluation: Iterable[StageRecord]) -> list[StageRecord]:
    """The stages that the submitted run had: what `results.run_hash` covers."""
    return [stage for stage in evaluation if not is_extra(stage.attack)]


def beyond(evaluation: Iterable[StageRecord]) -> list[StageRecord]:
    """The stages that attacked what everything before them had left, and so make ``external``.

    The run's own adaptive attacks, and what was added after the submission.
    """
    return [stage for stage in evaluation if closing(stage.attack) or is_extra(stage.attack)]


def stood(stage: StageRecord) -> int:
    """How many of the images of a board's stage were still classified correctly after it."""
    assert stage.n_out is not None  # only a detector's stages lack it, and they have no board
    return stage.n_out


def capped(result: Result) -> str | None:
    """Why an entry cannot get beyond level 1; None: it can."""
    codes = [("evaluated", result.environment.aal_bench)]
    if result.training is not None:
        codes.append(("trained", result.training.code))
    return next((f"was {verb} by {why}" for verb, code in codes if (why := _unknown(code))), None)


def extend(entry: Entry, attacked: Attacked, verified: Verified) -> Extended:
    """Append a stage to an entry's evidence and record, and what it changes.

    Every row that stood until now counts as attacked; what the stage does not hold stands. Nothing
    is written.

    Args:
        entry: as it lies on disk now.
        attacked: the rows and what became of them.
        verified: by whom; an entry that is `capped` keeps its level.

    Raises:
        UserError: the entry has no metrics, or its evidence is damaged.
    """
    result, evidence = entry.result, entry.evidence()
    if result.evidence is None or result.metrics is None:
        raise UserError(f"{entry.path}: has no evidence to extend")
    name = _next(attacked.kind, [stage.attack for stage in result.evaluation])
    standing = evidence.robust()
    _append(evidence, name, standing, attacked)
    stages = [*(stage.attack for stage in result.evaluation), name]
    metrics = METRICS[result.task.family](evidence, stages)
    fallen = np.flatnonzero(standing & ~evidence.column(name, "ok"))
    tree = result.model_dump(mode="json")
    tree["metrics"] = metrics
    tree["evaluation"].append(_record(name, evidence, attacked, result).model_dump(mode="json"))
    tree["evidence"] = _evidence_block(entry, evidence)
    if len(fallen) or result.external is not None:
        tree["external"] = percent(metrics["robust"]["value"])
    event = _event(result, verified, stage=name, fallen=len(fallen))
    event["event"] = "challenged" if attacked.kind == "challenge" else "reattacked"
    return Extended(_after(tree, event, verified), evidence, fallen)


def confirm(entry: Entry, verified: Verified) -> Result:
    """The entry's record after a verification that changed none of its numbers."""
    event = _event(entry.result, verified) | {"event": "verified"}
    return _after(entry.result.model_dump(mode="json"), event, verified)


def _unknown(code: Code) -> str | None:
    if code.commit is None:
        return "code without a commit"
    if code.dirty is None:
        return "code of which nobody knows whether it had uncommitted changes"
    return "code with uncommitted changes" if code.dirty else None


def _next(kind: Kind, stages: Sequence[str]) -> str:
    return f"{kind}-{1 + sum(stage.startswith(f'{kind}-') for stage in stages)}"


def _append(evidence: Evidence, name: str, standing: NDArray[np.bool_], attacked: Attacked) -> None:
    """Record the stage: what fell or was tried as it was, all else that stood as standing."""
    use = standing[attacked.rows]
    columns: dict[str, NDArray[Any]] = {
        "pred": evidence.label.copy(),
        "norm": np.zeros(len(evidence), np.float32),
        "forwards": np.zeros(len(evidence), np.int64),
        "backwards": np.zeros(len(evidence), np.int64),
    }
    for column, values in columns.items():
        given = np.broadcast_to(np.asarray(getattr(attacked, column)), attacked.rows.shape)
        values[attacked.rows[use]] = given[use]
    rows = np.flatnonzero(standing)
    evidence.record(name, rows, **{column: values[rows] for column, values in columns.items()})
    evidence.skip(name, np.flatnonzero(~standing))


def _record(name: str, evidence: Evidence, attacked: Attacked, result: Result) -> StageRecord:
    held = evidence.column(name, "attacked")
    count = int(held.sum())

    def mean(column: str) -> float:
        return float(evidence.column(name, column)[held].mean()) if count else 0.0

    return StageRecord(
        attack=name,
        implementation=Implementation(**attacked.implementation),
        params=attacked.params,
        seed=attacked.seed,
        batch_size=result.evaluation[0].batch_size,
        partition="survivors-in-index-order",
        n_in=count,
        n_out=int(evidence.column(name, "ok").sum()),
        wall_seconds=round(attacked.seconds, 4),
        forwards=mean("forwards"),
        backwards=mean("backwards"),
        max_violation=attacked.violation,
    )


def _evidence_block(entry: Entry, evidence: Evidence) -> dict[str, Any]:
    assert entry.result.evidence is not None
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / entry.evidence_path.name
        evidence.save(path)  # equal tables are equal bytes: the entry's file will have this sha256
        block = evidence_file(path, evidence, entry.result.evidence.dataset_fingerprint)
    return block.model_dump(mode="json")


def _event(result: Result, verified: Verified, **more: Any) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": verified.by,
        "level": _level(result, verified),
        "run_hash": result.run_hash,
        "external": result.external,
        "note": verified.note,
        **more,
    }


def _level(result: Result, verified: Verified) -> int:
    """No event takes back a level; none lifts an entry over its cap.

    A challenge lifts only what was attacked again before: nobody climbs by challenging his own.
    """
    held = result.verification.level
    if verified.level is None:
        return held
    climbs = verified.level < CHALLENGED or held >= CHALLENGED - 1
    return max(held, verified.level) if climbs and not capped(result) else held


def _after(tree: dict[str, Any], event: dict[str, Any], verified: Verified) -> Result:
    """The record with the event in its history; what a higher level says of itself is kept."""
    held = tree["verification"]
    if event["level"] == verified.level:
        held |= {
            "level": verified.level,
            "by": verified.by,
            "date": event["at"],
            "seed": verified.seed,
            "report_sha256": verified.report_sha256,
        }
    held["history"].append(Event(**event).model_dump(mode="json"))
    tree["verification"] = parse(Verification, held, "verification").model_dump(mode="json")
    return sealed(parse(Result, tree, "entry"))
