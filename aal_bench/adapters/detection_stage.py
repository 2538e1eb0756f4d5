"""One stage on a detector: every image attacked in pixel space, and what is detected then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench.adapters.attack_stage import FAILURES, exact_arithmetic
from aal_bench.adapters.throttled import Throttled
from aal_bench.attacks.detector import DetectorStage
from aal_bench.attacks.linf import attacking
from aal_bench.boxes import Detections
from aal_bench.detection.objective import Targets, targets_of
from aal_bench.detection.toolkit_metric import toolkit_means
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.detection_metrics import means
from aal_bench.errors import RunFailed
from aal_bench.progress import track
from aal_bench.threat import TOLERANCE
from aal_bench.training.passes import counting_passes

if TYPE_CHECKING:
    from aal_bench.adapters.detection import ObjectDetection

AGREE = {"voc": 1e-5, "coco": 5.1e-4}
"""How far MMDetection's mean and ours may differ: it sums in float32, and rounds COCO's to 1e-3."""


class DetectionBatch(NamedTuple):
    """Images as they are attacked, and their ground truth."""

    x: Tensor
    """(B, 3, H, W) in [0, 1], multiples of 1/255, in the network's channel order."""
    targets: Targets


def run(
    adapter: ObjectDetection,
    stage: DetectorStage,
    model: nn.Module,
    evidence: DetectionEvidence,
    saved: Throttled,
) -> None:
    """Run what `evidence` lacks of `stage`, in batches cut in index order.

    Raises:
        RunFailed: the attack raised, left the ball or the box, or the detector's outputs or
            gradients are not finite.
    """
    model.eval()
    size = adapter.task.evaluation.batch_size
    with track(stage.name, len(evidence)) as progress, exact_arithmetic():
        for first in range(0, len(evidence), size):
            rows = np.arange(first, min(first + size, len(evidence)))
            if evidence.done(stage.name)[rows].all():
                progress.skip(len(rows))
                continue
            began = time.perf_counter()
            try:
                violation = _batch(adapter, stage, model, evidence, rows)
            except FAILURES as error:
                reason = str(error).partition("\n")[0]
                raise RunFailed(
                    f"stage {stage.name} raised {type(error).__name__}: {reason}"
                ) from error
            saved(time.perf_counter() - began, violation)
            progress.advance(len(rows))


def _batch(
    adapter: ObjectDetection,
    stage: DetectorStage,
    model: Any,
    evidence: DetectionEvidence,
    rows: np.ndarray,
) -> dict[str, float]:
    batch = batch_of(adapter, model, adapter.rows[rows])
    x, targets = batch
    objective = adapter.objective(model)
    devices = [x.device] if x.device.type == "cuda" else []
    with counting_passes(model.backbone.conv1) as counted, torch.random.fork_rng(devices=devices):
        torch.manual_seed(stage.setting.seed)
        with attacking(model, bn="eval"):
            x_adv = stage.attack(objective, x, targets)
    # Without an object SSD's loss is zero, and so is its gradient: only the start would be left.
    objects = np.array([len(sample.gt_instances) for sample in targets.samples])
    attacked = (objects > 0) & (stage.asked.steps > 0)
    idle = torch.from_numpy(~attacked).to(x.device)[:, None, None, None]
    x_adv = torch.where(idle, x, targets.restored(x_adv, x))
    violation = stage.setting.threat.violation(x_adv, x)
    # Not ">": a NaN must fail too.
    if not (violation.norm <= TOLERANCE and violation.box <= TOLERANCE):
        raise RunFailed(
            f"stage {stage.name} left its bounds: eps exceeded by {violation.norm:.2e}, the box by"
            f" {violation.box:.2e} (tolerance {TOLERANCE:.0e})"
        )
    found = detections(model, objective.space.inputs(x_adv, targets.inside), targets)
    evidence.record(
        stage.name,
        rows,
        found,
        norm=stage.setting.threat.distance(x_adv, x).cpu().numpy(),
        forwards=counted["forward"] // len(rows) + 1,
        backwards=counted["backward"] // len(rows),
        attacked=attacked,
    )
    return violation._asdict()


def batch_of(adapter: ObjectDetection, model: Any, positions: np.ndarray) -> DetectionBatch:
    """The test images at `positions` of the split, on the model's device, with their objects."""
    items = [adapter.test[int(position)] for position in positions]
    data = {key: [item[key] for item in items] for key in ("inputs", "data_samples")}
    data = model.data_preprocessor(data, False)
    inputs, samples = data["inputs"], data["data_samples"]
    for sample in samples:
        # MMDetection tests against boxes in the file's coordinates; the loss is of the images fed.
        width, height = sample.metainfo["scale_factor"]
        boxes = sample.gt_instances.bboxes
        sample.gt_instances.bboxes = boxes * boxes.new_tensor([width, height, width, height])
    # The files hold whole numbers: what normalising and its inverse rounded is put right.
    x = (adapter.objective(model).space.pixels(inputs) * 255).round() / 255
    return DetectionBatch(x, targets_of(samples, inputs))


@torch.no_grad()
def detections(model: Any, inputs: Tensor, targets: Targets) -> list[Detections]:
    """What the detector finds, an entry per image, in the coordinates of the image files.

    Raises:
        RunFailed: scores or boxes are not finite: thresholds would hide them as "nothing found".
    """
    outputs = model.bbox_head(model.extract_feat(inputs))
    if not all(bool(level.isfinite().all()) for kind in outputs for level in kind):
        raise RunFailed("the detector's scores or boxes are not finite")
    metas = [sample.metainfo for sample in targets.samples]
    results = model.bbox_head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=True)
    return [
        Detections(
            found.bboxes.cpu().numpy().astype(np.float32),
            found.scores.cpu().numpy().astype(np.float32),
            found.labels.cpu().numpy().astype(np.int16),
        )
        for found in results
    ]


def agree(adapter: ObjectDetection, name: str, evidence: DetectionEvidence) -> None:
    """Hold the means of a complete stage to MMDetection's own metric.

    Raises:
        RunFailed: they differ.
    """
    theirs = toolkit_means(evidence, name, adapter.annotations if adapter.config.coco else None)
    # Equal scores in MMDetection's order, which is the processor's; ours is the table's.
    ours = means(evidence, name, sort="quicksort")
    tolerance = AGREE["coco" if adapter.config.coco else "voc"]
    for convention, value in theirs.items():
        if abs(ours[convention] - value) > tolerance:
            raise RunFailed(
                f"stage {name}: {convention} is {ours[convention]:.6f} by the evidence and"
                f" {value:.6f} by MMDetection"
            )
