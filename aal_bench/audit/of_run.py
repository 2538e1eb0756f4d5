"""From an adapter's test images and a run's evidence to what is audited: labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench.adapters.attack_stage import FAILURES
from aal_bench.audit.subject import Claim, Claims, Part, Subject
from aal_bench.audit.table import Budget
from aal_bench.config import Run
from aal_bench.data.subset import some
from aal_bench.errors import UserError

MOST_AT_ONCE = 256
"""Images in a batch: a task whose images are large asks for fewer."""
MOST = 1000
"""Images of a budget that names no number."""


class Beside(NamedTuple):
    """Networks that the audited one is compared with; all optional."""

    baseline: nn.Module | None = None
    undefended: nn.Module | None = None
    surrogates: tuple[tuple[str, nn.Module], ...] = ()


class Told(NamedTuple):
    """What a run says of itself; nothing of a bare checkpoint."""

    folder: Path | None = None
    evidence: Any = None
    """Its per-sample table, complete."""
    metrics: Any = None
    """Its `schema.Metrics`, or the tree of one."""
    training: dict[str, Any] | None = None
    """``run.json``'s record of training."""
    method_known: bool = False
    """A run's, or said by the file itself."""


ALONE = Beside()
NOTHING_TOLD = Told()


def audited(total: int, budget: Budget) -> np.ndarray:
    """Ascending rows of the test images that are audited, from everywhere among them."""
    return some(total, budget.images or MOST)


def subject_of(
    adapter: Any,
    model: nn.Module,
    budget: Budget,
    told: Told = NOTHING_TOLD,
    beside: Beside = ALONE,
) -> Subject:
    """The subject of a classification run: its network, its first images, its claims."""
    run: Run = adapter.run
    rows = audited(len(adapter.test), budget)
    device = torch.device(run.device)
    images = adapter.test.batches(
        torch.from_numpy(rows), len(rows), augment="none", pad=0, seed=0, device=device
    )
    batch = next(iter(images))
    answers(model, batch.x[:2], run.task.ways)
    return Subject(
        parts=(Part(model, batch.x.contiguous(), batch.y, rows),),
        network=model,
        claims=claims_of(told, rows),
        training_images=lambda count: _training(adapter, count, device),
        **common(run, beside),
    )


def answers(model: nn.Module, x: Tensor, classes: int) -> None:
    """Refuse a network that does not give one logit for each class.

    Raises:
        UserError: its forward raises on `x` (B,3,H,W), or what it returns is no (B, classes).
    """
    try:
        with torch.no_grad():
            found = model(x)
    except FAILURES as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the model's forward raises on {len(x)} images of {tuple(x.shape[1:])}:"
            f" {type(error).__name__}: {reason}"
        ) from None
    if not isinstance(found, Tensor) or found.shape != (len(x), classes):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"the model returns {got} for {len(x)} images, not logits {(len(x), classes)}"
        )


def common(run: Run, beside: Beside = ALONE) -> dict[str, Any]:
    """The fields of a `Subject` that do not depend on the family."""
    return {
        "threat": run.task.threat,
        "step": float(run.task.attack.step),
        "classes": run.task.ways,
        "batch_size": min(MOST_AT_ONCE, run.task.evaluation.batch_size),
        "seed": run.task.evaluation.seed,
        "task": run.task.name,
        "family": run.task.family,
        "method": run.method.name,
        "method_options": run.method.options,
        "dataset": run.task.paper.get("robustbench"),
        "architecture": run.model.name,
        "baseline": beside.baseline,
        "undefended": beside.undefended,
        "surrogates": beside.surrogates,
    }


def claims_of(told: Told, rows: np.ndarray) -> Claims:
    """What the evidence and the metrics say about the audited `rows`."""
    if told.evidence is None:
        return Claims(training=told.training, folder=told.folder, method_known=told.method_known)
    evidence, metrics = told.evidence, _tree(told.metrics)
    stages = tuple(
        Claim(name, evidence.column(name, "ok")[rows], evidence.column(name, "attacked")[rows])
        for name in evidence.stages
    )
    adversarials = None if told.folder is None else told.folder / "adversarials.npz"
    return Claims(
        stages=stages,
        clean=_value(metrics.get("clean")),
        robust=_value(metrics.get("robust")),
        autoattack=_value(metrics.get("autoattack")),
        per_stage={name: one["value"] for name, one in metrics.get("stages", {}).items()},
        adversarials=adversarials if adversarials is not None and adversarials.exists() else None,
        evidence=evidence,
        training=told.training,
        method_known=told.method_known,
        folder=told.folder,
    )


def _tree(metrics: Any) -> dict[str, Any]:
    if metrics is None:
        return {}
    return metrics if isinstance(metrics, dict) else metrics.model_dump(mode="json")


def _value(measure: dict[str, Any] | None) -> float | None:
    return None if measure is None else measure["value"]


def _training(adapter: Any, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`count` images of the training split, from everywhere in it, and their labels."""
    train = adapter.training_split()[0]
    rows = torch.from_numpy(some(len(train), count))
    x = train.pixels(rows).to(device).float() / 255
    return x, train.labels[rows].to(device)
