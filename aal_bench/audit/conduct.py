"""One audit from its subject to ``audit.json`` and the figures, of any task family."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from aal_bench import environment
from aal_bench.adapters.attack_stage import FAILURES
from aal_bench.adapters.pictures import identity
from aal_bench.audit import of_episodes, of_run
from aal_bench.audit.adaptive import worst_case
from aal_bench.audit.bank import Bank
from aal_bench.audit.examine import examine
from aal_bench.audit.of_run import ALONE, NOTHING_TOLD, Beside, Told
from aal_bench.audit.pictures import draw
from aal_bench.audit.record import Audit, Cost, Examined, WorstCase
from aal_bench.audit.table import Budget
from aal_bench.config import parse
from aal_bench.errors import RunFailed, UserError
from aal_bench.files import write_text
from aal_bench.schema import Environment

FILE = "audit.json"


def conduct(
    adapter: Any,
    model: nn.Module,
    budget: Budget,
    folder: Path,
    checkpoint: str | None,
    told: Told = NOTHING_TOLD,
    beside: Beside = ALONE,
    command: Sequence[str] = (),
) -> Audit:
    """Audit `model` on the adapter's test images; writes ``audit.json`` and figures to `folder`.

    Args:
        adapter: of the task, with its data.
        model: the network, weights loaded.
        budget: `table.QUICK` or `table.FULL`.
        folder: of the run, or of the audit.
        checkpoint: sha256 of the weights.
        told: what a run says of itself; the default: nothing is claimed.
        beside: networks to compare with.
        command: as typed; empty: part of a run.

    Raises:
        UserError: the threat is none that the checks are made for.
    """
    run = adapter.run
    if run.task.threat.norm != "Linf":
        raise UserError(f"the audit's attacks are Linf; task {run.task.name} is {run.task.threat}")
    model = model.to(run.device).eval().requires_grad_(False)
    done = _examined(adapter, model, budget, told, beside)
    audit = Audit(
        **done.examined.model_dump(),
        subject={
            "task": run.task.id,
            "threat": str(run.task.threat),
            "model": run.model.name,
            "method": run.method.name,
            "checkpoint": checkpoint,
            "seed": run.task.evaluation.seed,
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=list(command),
        environment=parse(Environment, environment.describe(), "environment"),
        worst_case=done.worst,
    )
    # Before the figures: whatever befalls them, the verdict is there.
    write_text(folder / FILE, dumps(audit))
    if done.bank is None:
        return audit
    began = time.perf_counter()
    figures = draw(done.bank, folder, identity(run), done.worst, run.task.attack.steps)
    # Anew: the worst case and the loss surface sent images through the network as well.
    seconds = audit.cost.seconds + time.perf_counter() - began
    cost = Cost.of(done.bank.spent, done.bank.naive(), seconds)
    audit = audit.model_copy(update={"figures": figures, "cost": cost})
    write_text(folder / FILE, dumps(audit))
    return audit


class _Done(NamedTuple):
    examined: Examined
    worst: WorstCase | None = None
    bank: Bank | None = None
    """With everything that was made on the way; None for a detector, of which nothing is drawn."""


def _examined(adapter: Any, model: nn.Module, budget: Budget, told: Told, beside: Beside) -> _Done:
    family = adapter.run.task.family
    if family == "detection":
        from aal_bench.audit.detection.examine import examine_detector
        from aal_bench.audit.detection.subject import subject_of as detector_of

        return _Done(examine_detector(detector_of(adapter, model, budget, told, beside), budget))
    make = of_episodes.subject_of if family == "fewshot" else of_run.subject_of
    began = time.perf_counter()
    examined, bank = examine(make(adapter, model, budget, told, beside), budget)
    try:
        worst = worst_case(bank)
    except FAILURES as error:
        reason = str(error).partition("\n")[0]
        told_ = f"audit: an adaptive attack raised {type(error).__name__}: {reason}"
        raise RunFailed(told_) from error
    cost = examined.cost.model_copy(update={"seconds": round(time.perf_counter() - began, 2)})
    return _Done(examined.model_copy(update={"cost": cost}), worst, bank)


def dumps(audit: Audit) -> str:
    """The audit as the text of its file."""
    return json.dumps(audit.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def read(path: Path) -> Audit:
    """Read an ``audit.json``.

    Raises:
        UserError: no such file, or none of an audit.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if isinstance(tree, dict):
        tree.pop("unreliable", None)  # computed
    return parse(Audit, tree, str(path))
