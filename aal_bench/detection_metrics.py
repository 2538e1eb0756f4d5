"""Mean average precision of a table, its bootstrap interval and its paired difference.

A share of images has a closed interval; a mean average precision has none, because a detection
ranks among those of all images. So images are drawn with replacement, as often as there are images,
and the middle 95 % of the values are the interval (percentile bootstrap, Efron 1979). Two runs are
compared on the same draws: what an image is hard for cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aal_bench import average_precision, coco_precision
from aal_bench.average_precision import Curve, Matched, Sort, curve
from aal_bench.config import Convention
from aal_bench.detection_evidence import DetectionEvidence, same_images
from aal_bench.errors import UserError

SAMPLES = 1000
SEED = 0
_BLOCK = 128
"""Resamples computed at once: their weights and curves stay in the processor's cache."""


class Estimate(NamedTuple):
    """A number in [0, 1] (a difference: in [-1, 1]) and its bootstrap interval."""

    value: float
    low: float
    """2.5th percentile, or the value where that is lower."""
    high: float
    """97.5th percentile, or the value where that is higher."""


class Precisions(NamedTuple):
    """What one stage of a table says, by convention."""

    means: dict[Convention, Estimate]
    """Mean over the classes that have objects; 0 where none has."""
    classes: dict[Convention, dict[str, float | None]]
    """Class -> AP; None: the class has no object that counts."""


class _Taken(NamedTuple):
    """How a convention is taken from a class's curves: at which IoUs, and how from each."""

    ious: slice
    value: Callable[[Curve], NDArray[np.float64]]


_TAKEN: Mapping[Convention, _Taken] = {
    "map50_voc11": _Taken(slice(1), lambda c: average_precision.average_precision(c, "11points")),
    "map50_area": _Taken(slice(1), lambda c: average_precision.average_precision(c, "area")),
    "map_coco": _Taken(slice(None), coco_precision.average_precision),
    "map50_coco": _Taken(slice(1), coco_precision.average_precision),
    "map75_coco": _Taken(slice(5, 6), coco_precision.average_precision),
}


def means(
    evidence: DetectionEvidence, stage: str, sort: Sort = "stable"
) -> dict[Convention, float]:
    """Mean average precision of a stage (or ``"clean"``) in each of the table's conventions.

    Args:
        evidence: the table.
        stage: complete.
        sort: order of equal scores of a VOC evaluator: the table's, or numpy's fastest, which is
            MMDetection's and the processor's.

    Raises:
        UserError: a row of the stage is missing.
    """
    found = _average(evidence.conventions, _matches(evidence, stage, sort), _once(evidence))
    values = _over_classes(found)[:, 0]
    return dict(zip(evidence.conventions, values.tolist(), strict=True))


def per_class(
    evidence: DetectionEvidence, stage: str, convention: Convention
) -> dict[str, float | None]:
    """AP of each class; None: it has no object that counts.

    Raises:
        UserError: a row of the stage is missing.
    """
    found = _average((convention,), _matches(evidence, stage), _once(evidence))
    return _named(evidence, found[0, :, 0])


def intervals(
    evidence: DetectionEvidence, stage: str, samples: int = SAMPLES, seed: int = SEED
) -> dict[Convention, tuple[float, float]]:
    """95 % bootstrap interval over images, by convention; it always contains the value.

    Raises:
        UserError: a row of the stage is missing.
    """
    found = precisions(evidence, stage, samples, seed).means
    return {name: (one.low, one.high) for name, one in found.items()}


def precisions(
    evidence: DetectionEvidence, stage: str, samples: int = SAMPLES, seed: int = SEED
) -> Precisions:
    """Values, intervals and classes of a stage at once: its detections are matched only once.

    Raises:
        UserError: a row of the stage is missing.
    """
    names, matches = evidence.conventions, _matches(evidence, stage)
    own = _average(names, matches, _once(evidence))
    drawn = _resampled(names, matches, len(evidence), samples, seed)
    values = _over_classes(own)[:, 0]
    return Precisions(
        {name: _estimate(*one) for name, *one in zip(names, values, drawn, strict=True)},
        {name: _named(evidence, one[:, 0]) for name, one in zip(names, own, strict=True)},
    )


def differences(
    a: DetectionEvidence,
    b: DetectionEvidence,
    stage: str,
    samples: int = SAMPLES,
    seed: int = SEED,
) -> dict[Convention, Estimate]:
    """A - B on the same images and the same draws of them, in the conventions that both have.

    Raises:
        UserError: a row of the stage is missing, or the tables are of different images, objects or
            classes.
    """
    if not same_images(a, b):
        raise UserError("evidence of different images, objects or classes cannot be compared")
    names: tuple[Convention, ...] = tuple(name for name in a.conventions if name in b.conventions)
    if not names:
        raise UserError(f"no convention in common: {a.conventions[0]} and {b.conventions[0]}")
    matches = [_matches(table, stage) for table in (a, b)]
    one, two = (_over_classes(_average(names, found, _once(a)))[:, 0] for found in matches)
    first, second = (_resampled(names, found, len(a), samples, seed) for found in matches)
    return {
        name: _estimate(*found)
        for name, *found in zip(names, one - two, first - second, strict=True)
    }


def resamples(images: int, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn: blocks (images, up to 128) of columns that sum to `images`."""
    # Of numpy's generators only this one is promised never to change its numbers, and a record
    # must be recomputable.
    rng = np.random.RandomState(seed)
    for start in range(0, samples, _BLOCK):
        draws = [
            np.bincount(rng.randint(0, images, images, dtype=np.int64), minlength=images)
            for _ in range(min(_BLOCK, samples - start))
        ]
        yield np.stack(draws, axis=1).astype(np.float64)


def _matches(evidence: DetectionEvidence, stage: str, sort: Sort = "stable") -> list[list[Matched]]:
    """Of each class its matches at each IoU of the table's evaluator."""
    if evidence.conventions[0].endswith("coco"):
        return coco_precision.match(evidence, stage)
    return [[one] for one in average_precision.match(evidence, stage, sort=sort)]


def _average(
    names: Sequence[Convention], matches: list[list[Matched]], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AP (conventions, classes, s) under the weights (n,s); NaN where a class has no object."""
    out = np.empty((len(names), len(matches), weights.shape[1]))
    for label, by_iou in enumerate(matches):
        curves = [curve(one, weights) for one in by_iou]
        for place, name in enumerate(names):
            ious, value = _TAKEN[name]
            out[place, label] = np.mean([value(one) for one in curves[ious]], axis=0)
    return out


def _resampled(
    names: Sequence[Convention], matches: list[list[Matched]], images: int, samples: int, seed: int
) -> NDArray[np.float64]:
    """Mean AP (conventions, samples); NaN where a resample has no object at all."""
    blocks = (_average(names, matches, drawn) for drawn in resamples(images, samples, seed))
    return np.concatenate([_over_classes(block, np.nan) for block in blocks], axis=1)


def _over_classes(found: NDArray[np.float64], none: float = 0.0) -> NDArray[np.float64]:
    """Mean over the classes (axis 1) that have objects; `none` where no class has, as mmdet's 0."""
    known = ~np.isnan(found)
    total, count = np.where(known, found, 0.0).sum(1), known.sum(1)
    return np.where(count, np.minimum(total / np.maximum(count, 1), 1.0), none)


def _estimate(value: float, drawn: NDArray[np.float64]) -> Estimate:
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (value, value)
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def _once(evidence: DetectionEvidence) -> NDArray[np.float64]:
    return np.ones((len(evidence), 1))


def _named(evidence: DetectionEvidence, found: NDArray[np.float64]) -> dict[str, float | None]:
    values = (None if np.isnan(one) else min(float(one), 1.0) for one in found)
    return dict(zip(evidence.classes, values, strict=True))
