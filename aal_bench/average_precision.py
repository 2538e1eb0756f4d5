"""Average precision as MMDetection's ``eval_map`` takes it, of any number of resamples at once.

The one permitted second copy: MMDetection needs torch, and whoever recomputes a number does not.
Which detection is right is decided image by image, before any resampling: an image that a
bootstrap draws twice counts twice. So a resample is a weight per image, and all of them are one
product of a sparse matrix with the weights. numpy and scipy only.

VOC's rules as `mmdet.evaluation.functional.mean_ap` has them: IoU >= 0.5 in pixels that count both
ends (w = x2 - x1 + 1), the best-overlapping object or none, difficult objects do not count.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aal_bench.boxes import Detections, Objects
from aal_bench.detection_evidence import DetectionEvidence

ELEVEN = np.arange(0, 1 + 1e-3, 0.1)
"""VOC 2007's recalls, by mmdet's own arithmetic: 3 of 10 objects do not reach its 0.3."""
Mode = Literal["area", "11points"]
Sort = Literal["stable", "quicksort"]
"""Order of detections with equal scores. numpy's default, ``quicksort``, which mmdet takes, leaves
it to the processor (numpy 2 sorts by AVX2 or AVX-512); a record must say the same everywhere."""


class Matched(NamedTuple):
    """The detections of one class, best score first, and how many objects it has on each image."""

    image: NDArray[np.int32]
    """(d,) rows."""
    tp: NDArray[np.bool_]
    """(d,) right: the first to find its object."""
    fp: NDArray[np.bool_]
    """(d,) wrong; a detection of an ignored object is neither."""
    objects: NDArray[np.int64]
    """(n,) objects to be found."""


class Curve(NamedTuple):
    """Recall and precision at each right detection, of each of s resamples."""

    recall: NDArray[np.float64]
    """(t,s), never decreasing along t."""
    precision: NDArray[np.float64]
    """(t,s), the best at this recall or a higher one."""
    objects: NDArray[np.float64]
    """(s,) objects to be found."""


def match(
    evidence: DetectionEvidence, stage: str, iou: float = 0.5, sort: Sort = "stable"
) -> list[Matched]:
    """Decide for every detection of a stage whether it is right; one entry per class.

    Raises:
        UserError: a row of the stage is missing.
    """
    image, found = evidence.detections(stage)
    objects, matched = evidence.objects, []
    for label in range(len(evidence.classes)):
        here, there = found.labels == label, objects.labels == label
        wanted = np.bincount(objects.image[there & ~objects.ignore], minlength=len(evidence))
        own = found.at(here)
        tp, fp = _judge(image[here], own, objects.at(there), iou, sort)
        order = np.argsort(-own.scores, kind=sort)
        matched.append(Matched(image[here][order], tp[order], fp[order], wanted))
    return matched


def _judge(
    image: NDArray[np.int32], found: Detections, objects: Objects, iou: float, sort: Sort
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of one class's detections, in image order, are right and which wrong."""
    tp, fp = np.zeros(len(image), np.bool_), np.ones(len(image), np.bool_)
    for row in np.unique(objects.image[np.isin(objects.image, image)]):
        start, stop = np.searchsorted(image, (row, row + 1))
        there = np.arange(*np.searchsorted(objects.image, (row, row + 1)))
        # mmdet lists the ignored behind the others, and takes the first of equal overlaps.
        there = there[np.argsort(objects.ignore[there], kind="stable")]
        here = start + np.argsort(-found.scores[start:stop], kind=sort)
        overlap = overlaps(found.boxes[here], objects.boxes[there])
        hit = overlap.max(1) >= iou
        here, best = here[hit], there[overlap[hit].argmax(1)]
        fp[here[objects.ignore[best]]] = False
        counted = ~objects.ignore[best]
        here, best = here[counted], best[counted]
        first = here[np.unique(best, return_index=True)[1]]
        tp[first], fp[first] = True, False
    return tp, fp


def overlaps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Intersection over union (n,m) of boxes (n,4) and (m,4) whose widths count both end pixels."""
    a, b = a.astype(np.float32)[:, None], b.astype(np.float32)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = np.maximum(sides, 0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2] + 1).prod(-1) for box in (a, b))
    return (common / np.maximum(area_a + area_b - common, 1e-6)).astype(np.float32, copy=False)


def curve(matched: Matched, weights: NDArray[Any]) -> Curve:
    """Recall and precision of one class under each column of `weights` (n,s): draws of each image.

    Only right detections are kept: precision falls at a wrong one, recall stays.
    """
    from scipy.sparse import csr_array

    weights = weights.astype(np.float64, copy=False)
    right = np.flatnonzero(matched.tp)
    wrong = np.flatnonzero(matched.fp)
    before = np.searchsorted(wrong, right)  # wrong ones ahead of each right one
    wrong = wrong[: before[-1] if len(before) else 0]
    shape = (len(right), len(weights))
    ahead = csr_array(
        (np.ones(len(wrong)), matched.image[wrong], np.concatenate(([0], before))), shape=shape
    )
    tp = np.cumsum(weights[matched.image[right]], axis=0)
    fp = np.cumsum(ahead @ weights, axis=0)
    total = matched.objects.astype(np.float64) @ weights
    eps = np.finfo(np.float32).eps
    precision = tp / np.maximum(tp + fp, eps)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return Curve(tp / np.maximum(total, eps), best, total)


def average_precision(found: Curve, mode: Mode) -> NDArray[np.float64]:
    """AP (s,) of each resample, in [0, 1]; NaN where the class has no object.

    Args:
        found: of one class.
        mode: ``area`` under the curve (VOC 2010 on), or its mean at ``11points`` (VOC 2007).
    """
    if mode == "area":
        steps = np.diff(found.recall, axis=0, prepend=0.0)
        value = (steps * found.precision).sum(0)
    else:
        value = sampled(found, ELEVEN)
    return np.where(found.objects > 0, value, np.nan)


def sampled(found: Curve, recalls: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean (s,) of the precision at the first point that reaches each of `recalls`; 0 beyond."""
    past = np.zeros((1, len(found.objects)))
    columns = zip(found.recall.T, np.concatenate((found.precision, past)).T, strict=True)
    return np.array([best[np.searchsorted(recall, recalls)].mean() for recall, best in columns])
