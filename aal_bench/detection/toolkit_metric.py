"""MMDetection's own metrics on what a stage detected: what the evidence's numbers are held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from aal_bench.boxes import Detections, Objects
from aal_bench.config import Convention
from aal_bench.detection.quiet import quiet
from aal_bench.detection_evidence import DetectionEvidence

MODES: dict[Convention, str] = {"map50_voc11": "11points", "map50_area": "area"}


def toolkit_means(
    evidence: DetectionEvidence, stage: str, annotations: str | None = None
) -> dict[Convention, float]:
    """Mean average precision of a complete stage as MMDetection computes it.

    Args:
        evidence: the table.
        stage: ``clean`` or an attack.
        annotations: COCO: the file of the whole test split.
    """
    found = _by_image(evidence, stage)
    if annotations is not None:
        # Its AP at one IoU is of up to 1,000 detections on an image, COCO's and ours of 100.
        return {"map_coco": _coco(evidence, found, annotations)}
    truth = _objects_by_image(evidence)
    return {c: _voc(evidence, found, truth, mode) for c, mode in MODES.items()}


def _voc(
    evidence: DetectionEvidence, found: list[Detections], truth: list[Objects], mode: str
) -> float:
    from mmdet.evaluation import VOCMetric

    metric = VOCMetric(metric="mAP", eval_mode=mode)
    metric.dataset_meta = {"classes": evidence.classes}
    samples = [
        {
            "pred_instances": _tensors(own),
            "gt_instances": _truth(objects, ignored=False),
            "ignored_instances": _truth(objects, ignored=True),
        }
        for own, objects in zip(found, truth, strict=True)
    ]
    metric.process({}, samples)
    with quiet():
        return float(metric.compute_metrics(metric.results)["mAP"])


def _coco(evidence: DetectionEvidence, found: list[Detections], file: str) -> float:
    from mmdet.evaluation import CocoMetric

    if not any(len(own.scores) for own in found):
        return 0.0  # of nothing detected it says nothing
    with quiet():
        metric = CocoMetric(ann_file=file, metric="bbox")
        metric.dataset_meta = {"classes": evidence.classes}
        metric.img_ids = [int(name) for name in evidence.images]  # a limit is no miss
        samples = [
            {"img_id": int(name), "ori_shape": (0, 0), "pred_instances": _tensors(own)}
            for name, own in zip(evidence.images, found, strict=True)
        ]
        metric.process({}, samples)
        return float(metric.compute_metrics(metric.results)["bbox_mAP"])


def _by_image(evidence: DetectionEvidence, stage: str) -> list[Detections]:
    image, flat = evidence.detections(stage)
    return [flat.at(image == row) for row in range(len(evidence))]


def _objects_by_image(evidence: DetectionEvidence) -> list[Objects]:
    objects = evidence.objects
    return [objects.at(objects.image == row) for row in range(len(evidence))]


def _tensors(found: Detections) -> dict[str, Any]:
    return {
        "bboxes": torch.from_numpy(found.boxes),
        "scores": torch.from_numpy(found.scores),
        "labels": torch.from_numpy(found.labels.astype(np.int64)),
    }


def _truth(objects: Objects, ignored: bool) -> dict[str, Any]:
    chosen = objects.ignore == ignored
    return {
        "bboxes": torch.from_numpy(objects.boxes[chosen].astype(np.float32)),
        "labels": torch.from_numpy(objects.labels[chosen].astype(np.int64)),
    }
