"""Average precision by COCO's own evaluator, pycocotools, of any number of resamples at once.

pycocotools decides which detection finds which object; its per-image verdicts are accumulated here
under weights, as `average_precision` does for VOC. It is imported only when it is called.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aal_bench.average_precision import Curve, Matched, sampled
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.errors import UserError

RECALLS = np.linspace(0.0, 1.0, 101)
"""COCO's recall thresholds."""
IOUS = 10
"""COCO's IoU thresholds: 0.50, 0.55, ..., 0.95."""


def match(evidence: DetectionEvidence, stage: str) -> list[list[Matched]]:
    """Of each class its matches at each of the ten IoUs; all areas, 100 detections per class.

    Raises:
        UserError: a row of the stage is missing, or pycocotools is not installed.
    """
    evaluator, ids = _evaluator(evidence, stage)
    with redirect_stdout(io.StringIO()):
        evaluator.evaluate()
    row = {number: place for place, number in enumerate(ids)}
    by_class: list[list[dict[str, Any]]] = [[] for _ in evidence.classes]
    for one in evaluator.evalImgs:  # class after class, images in the order of their ids
        if one is not None:
            by_class[one["category_id"] - 1].append(one)
    return [_matched(found, row, len(ids)) for found in by_class]


def average_precision(found: Curve) -> NDArray[np.float64]:
    """COCO's AP (s,) at one IoU: the mean precision at 101 recalls; NaN where no object counts."""
    return np.where(found.objects > 0, sampled(found, RECALLS), np.nan)


def _matched(found: list[dict[str, Any]], row: dict[int, int], images: int) -> list[Matched]:
    """One class's verdicts at each IoU, joined and sorted as `COCOeval.accumulate` does."""
    wanted = np.zeros(images, np.int64)
    for one in found:
        wanted[row[one["image_id"]]] = np.count_nonzero(one["gtIgnore"] == 0)
    scores = np.concatenate([np.zeros(0), *(one["dtScores"] for one in found)])
    order = np.argsort(-scores, kind="stable")
    counts = [len(one["dtScores"]) for one in found]
    places = np.array([row[one["image_id"]] for one in found], np.int32)
    image = np.repeat(places, counts)[order]
    empty = np.zeros((IOUS, 0), np.bool_)
    hit = np.concatenate([empty, *(one["dtMatches"] > 0 for one in found)], axis=1)[:, order]
    ignored = np.concatenate([empty, *(one["dtIgnore"] for one in found)], axis=1)[:, order]
    return [
        Matched(image, a & ~b, ~a & ~b, wanted)
        for a, b in zip(hit, ignored.astype(np.bool_), strict=True)
    ]


def _evaluator(evidence: DetectionEvidence, stage: str) -> tuple[Any, list[int]]:
    """A `COCOeval` fed in memory, and the id that each row has in it."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UserError(
            "COCO's metric needs pycocotools: pip install 'aal-bench[detection]'"
        ) from None
    ids = _ids(evidence.images)
    rows, found = evidence.detections(stage)
    objects = evidence.objects
    truth = _annotations(ids, objects.image, objects.boxes, objects.labels)
    for one, area, crowd in zip(truth, objects.areas, objects.ignore, strict=True):
        one |= {"area": float(area), "iscrowd": int(crowd)}
    guesses = _annotations(ids, rows, found.boxes, found.labels)
    for one, score in zip(guesses, found.scores.tolist(), strict=True):
        width, height = one["bbox"][2:]
        one |= {"area": width * height, "iscrowd": 0, "score": score}
    sides: list[Any] = [COCO(), COCO()]
    for side, boxes in zip(sides, (truth, guesses), strict=True):
        side.dataset = {
            "images": [{"id": number} for number in ids],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(evidence.classes)],
            "annotations": boxes,
        }
        with redirect_stdout(io.StringIO()):
            side.createIndex()
    evaluator = COCOeval(sides[0], sides[1], "bbox")
    # Small, medium and large would treble the work.
    evaluator.params.areaRng = evaluator.params.areaRng[:1]
    evaluator.params.areaRngLbl = ["all"]
    return evaluator, ids


def _annotations(
    ids: list[int], rows: NDArray[Any], boxes: NDArray[Any], labels: NDArray[Any]
) -> list[dict[str, Any]]:
    # Widths in double precision, as mmdet and pycocotools take them from a file's numbers.
    return [
        {
            "id": number,
            "image_id": ids[row],
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        for number, (row, (x1, y1, x2, y2), label) in enumerate(
            zip(rows.tolist(), boxes.tolist(), labels.tolist(), strict=True), start=1
        )
    ]


def _ids(images: tuple[str, ...]) -> list[int]:
    """COCO's own image numbers, whose order decides between equal scores; else the rows."""
    if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in images):
        numbers = list(map(int, images))
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(len(images)))
