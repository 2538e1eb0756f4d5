"""A detector under audit: batches of test images that hold objects, its threat and its claims."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn

from aal_bench.aal.options import Kernel, Selective
from aal_bench.audit.of_run import ALONE, NOTHING_TOLD, Beside, Told
from aal_bench.audit.table import Budget
from aal_bench.data.subset import some
from aal_bench.errors import UserError
from aal_bench.threat import Threat

if TYPE_CHECKING:
    from aal_bench.adapters.detection import ObjectDetection
    from aal_bench.adapters.detection_stage import DetectionBatch

BATCH = 4
"""Images at once: a backward pass keeps every activation of large images."""


class DetectorClaim(NamedTuple):
    """An attack whose mean average precision is claimed."""

    stage: str
    eps: float
    """Its budget, which is in its name where it is not the task's."""
    norm: np.ndarray
    """(n,) |x' - x| of every test image that was attacked, as the evidence says it."""


@dataclass(frozen=True)
class DetectionSubject:
    """What is audited of a detector."""

    model: Any
    """MMDetection's single-stage detector."""
    batches: tuple[DetectionBatch, ...]
    """Images in [0, 1] and their targets; every image has an object."""
    threat: Threat
    """The task's threat; Linf."""
    step: float
    """The task's step of multi-step attacks, in pixel units."""
    seed: int = 0
    kernel: Kernel = "m"
    """k of the method, for a detector with a gate."""
    claims: tuple[DetectorClaim, ...] = ()
    undefended: nn.Module | None = None
    """A detector of the same task trained without attack."""

    @property
    def eps(self) -> float:
        """The budget in pixel units."""
        return self.threat.radius

    @cached_property
    def size(self) -> int:
        """Audited images N."""
        return sum(len(batch.x) for batch in self.batches)


def subject_of(
    adapter: ObjectDetection,
    model: nn.Module,
    budget: Budget,
    told: Told = NOTHING_TOLD,
    beside: Beside = ALONE,
) -> DetectionSubject:
    """The subject of a detection run, on test images from everywhere in the split.

    Images without objects have no loss that could rise, and are passed over.

    Raises:
        UserError: no test image has an object, or networks are given that no check of detectors
            looks at.
    """
    from aal_bench.adapters.detection_stage import batch_of

    if beside.baseline is not None or beside.surrogates:
        raise UserError(
            "an audit of a detector compares with an undefended one at most: omit --baseline and"
            " --surrogate"
        )
    run = adapter.run
    chosen = _with_objects(adapter, min(budget.detector_images, budget.images or len(adapter.rows)))
    batches = [
        batch_of(adapter, model, chosen[first : first + BATCH])
        for first in range(0, len(chosen), BATCH)
    ]
    return DetectionSubject(
        model=model,
        batches=tuple(batches),
        threat=run.task.threat,
        step=float(run.task.attack.step),
        seed=run.task.evaluation.seed,
        kernel=_kernel(run.method.name, run.method.options),
        claims=_claims(adapter, told),
        undefended=beside.undefended,
    )


def _with_objects(adapter: ObjectDetection, count: int) -> np.ndarray:
    """Positions in the test split of up to `count` images that have an object to be found."""
    objects = adapter.new_evidence().objects
    full = np.unique(objects.image[~objects.ignore])
    chosen = adapter.rows[full[some(len(full), count)]]
    # The metric of COCO counts objects that MMDetection leaves out of the loss.
    held = [len(adapter.test[int(at)]["data_samples"].gt_instances) > 0 for at in chosen]
    if not any(held):
        raise UserError(
            f"task {adapter.run.task.name}: no test image has an object, so there is no loss that"
            " an attack could raise"
        )
    return chosen[np.array(held)]


def _kernel(method: str, options: dict[str, Any]) -> Kernel:
    """The k of the method that trained it; M itself of a foreign gate."""
    if not method.startswith("aal"):
        return "m"
    return options.get("kernel", Selective.model_fields["kernel"].default)


def _claims(adapter: ObjectDetection, told: Told) -> tuple[DetectorClaim, ...]:
    if told.evidence is None:
        return ()
    evidence = told.evidence
    return tuple(
        DetectorClaim(
            name,
            adapter.stage(name).setting.threat.radius,
            evidence.column(name, "norm")[evidence.column(name, "attacked")],
        )
        for name in evidence.stages
    )
