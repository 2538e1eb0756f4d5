"""The pictures of a detection run: curves, detections with and without an attack, every mAP."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench import figures
from aal_bench.aal.kernels import upsample
from aal_bench.adapters.pictures import identity, is_selective, metrics
from aal_bench.attacks.linf import attacking
from aal_bench.boxes import Detections
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.figures.detections import Shown, detections
from aal_bench.figures.precisions import Bar, precisions
from aal_bench.methods.base import Batch, Method

if TYPE_CHECKING:
    from aal_bench.adapters.detection import ObjectDetection
    from aal_bench.adapters.detection_stage import DetectionBatch
    from aal_bench.attacks.detector import DetectorStage

SHOWN = 3
"""Images in the picture of the detections."""


def draw(adapter: ObjectDetection, method: Method, model: nn.Module, folder: Path) -> list[str]:
    """Draw into ``figures/``; returns the paths relative to `folder`.

    ``evidence.npz`` and ``result.json`` are there already.
    """
    target, told = folder / "figures", identity(adapter.run)
    target.mkdir(exist_ok=True)
    evidence = DetectionEvidence.load(folder / "evidence.npz")
    measured = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    _precisions(adapter, measured, target / "map.png", told)
    drawn = ["figures/map.png"]
    stage = strongest(adapter, evidence)
    rows = chosen(evidence)
    if stage is not None and len(rows):
        # A copy: a method that crafts in train mode moves the running statistics.
        shown = pictured(adapter, method, deepcopy(model), evidence, stage, rows)
        eps = stage.setting.threat.radius
        detections(shown, evidence.classes, target / "detections.png", stage.name, eps, told)
        drawn.append("figures/detections.png")
    epochs = metrics(folder / "metrics.jsonl")
    if epochs:
        figures.training_curves(epochs, target / "training.png", told)
        drawn.append("figures/training.png")
    return drawn


def strongest(adapter: ObjectDetection, evidence: DetectionEvidence) -> DetectorStage | None:
    """The stage of the largest budget, of those one on the whole loss, of those the longest."""
    stages = [adapter.stage(name) for name in evidence.stages]

    def strength(stage: DetectorStage) -> tuple[Any, ...]:
        return stage.asked.eps, stage.asked.part == "total", stage.asked.steps

    return max(stages, key=strength, default=None)


def chosen(evidence: DetectionEvidence) -> np.ndarray:
    """Rows of up to `SHOWN` images with objects, from everywhere in the set."""
    rows = np.unique(evidence.objects.image[~evidence.objects.ignore])
    places = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round()
    return rows[places.astype(np.intp)]


def pictured(
    adapter: ObjectDetection,
    method: Method,
    model: nn.Module,
    evidence: DetectionEvidence,
    stage: DetectorStage,
    rows: np.ndarray,
) -> list[Shown]:
    """These rows of the table as they are drawn, attacked anew: the table keeps no images.

    Args:
        adapter: of the run.
        method: what the model was trained with.
        model: may be changed.
        evidence: the table.
        stage: the attack to show.
        rows: (s,) of the table.
    """
    from aal_bench.adapters.detection_stage import batch_of
    from aal_bench.adapters.detection_stage import detections as detected

    model.eval()
    batch = batch_of(adapter, model, adapter.rows[rows])
    space = adapter.objective(model).space
    devices = [batch.x.device] if batch.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stage.setting.seed)
        x_adv = _attacked(adapter, stage, model, batch)
        found = [
            detected(model, space.inputs(x, batch.targets.inside), batch.targets)
            for x in (batch.x, x_adv)
        ]
        masks = _masks(adapter, method, model, batch)
    shown = []
    for place, (row, sample) in enumerate(zip(rows, batch.targets.samples, strict=True)):
        height, width = sample.metainfo["img_shape"][:2]
        clean, attacked = (scaled(each[place], sample.metainfo["scale_factor"]) for each in found)
        image, changed = (
            space.rgb(x[place : place + 1])[0, :, :height, :width].detach().cpu().numpy()
            for x in (batch.x, x_adv)
        )
        mask = None if masks is None else masks[place, 0, :height, :width].numpy()
        boxes = sample.gt_instances.bboxes.cpu().numpy()
        name = Path(evidence.images[row]).name
        shown.append(Shown(name, image, changed, boxes, clean, attacked, mask))
    return shown


def scaled(found: Detections, factors: tuple[float, float]) -> Detections:
    """Detections in the file's coordinates in those of the image fed: (width, height) times."""
    return found._replace(boxes=found.boxes * np.array([*factors, *factors], np.float32))


def _attacked(
    adapter: ObjectDetection, stage: DetectorStage, model: nn.Module, batch: DetectionBatch
) -> Tensor:
    with attacking(model, bn="eval"):
        x_adv = stage.attack(adapter.objective(model), batch.x, batch.targets)
    return batch.targets.restored(x_adv, batch.x)


def _masks(
    adapter: ObjectDetection, method: Any, model: nn.Module, clean: DetectionBatch
) -> Tensor | None:
    """M^a (B, 1, H, W) of the method's own attack, which needs the labels; None: it has none."""
    if not is_selective(method, model):
        return None
    x, lr = clean.x, adapter.task.train.lr
    batch = Batch(x=x, targets=clean.targets, idx=torch.arange(len(x)), progress=1.0, lr=lr)
    method.attack(model, batch, adapter.objective(model))
    size = (x.shape[-2], x.shape[-1])
    return upsample(method.association.Ma, size).detach().float().cpu()


def _precisions(adapter: ObjectDetection, measured: dict[str, Any], path: Path, told: str) -> None:
    stages = {"clean": measured["clean"], **measured["stages"]}
    bars = [
        Bar(
            name,
            "clean" if name == "clean" else adapter.stage(name).asked.part,
            one["value"],
            *one["ci95"],
        )
        for name, one in stages.items()
    ]
    n = measured["clean"]["n"]
    title = f"{told}\nMean average precision, {n:,} images"
    precisions(bars, path, adapter.config.metric, title)
