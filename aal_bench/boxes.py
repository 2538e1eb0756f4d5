"""Boxes of an image with their classes, detected and true, and what makes them none. numpy only.

A detector that returns NaN has failed: it must never look like one that has found nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray


class Detections(NamedTuple):
    """What a detector found, in the coordinates of the original image file."""

    boxes: NDArray[np.float32]
    """(d,4) corners x1, y1, x2, y2 in pixels."""
    scores: NDArray[np.float32]
    """(d,) in [0, 1]."""
    labels: NDArray[np.int16]
    """(d,) classes 0..K-1."""

    def at(self, which: NDArray[Any]) -> Detections:
        """Those at positions or a mask."""
        return Detections(self.boxes[which], self.scores[which], self.labels[which])


class Objects(NamedTuple):
    """The ground truth of all images, image after image."""

    image: NDArray[np.int32]
    """(g,) row of the table, never decreasing."""
    boxes: NDArray[np.float64]
    """(g,4) corners x1, y1, x2, y2 in pixels."""
    labels: NDArray[np.int16]
    """(g,) classes 0..K-1."""
    ignore: NDArray[np.bool_]
    """(g,) VOC's difficult, COCO's crowd: neither to be found nor wrong to find."""
    areas: NDArray[np.float64]
    """(g,) COCO's own area (of the mask); VOC: of the box."""

    def at(self, which: NDArray[Any]) -> Objects:
        """Those at positions or a mask."""
        image, boxes, labels = self.image[which], self.boxes[which], self.labels[which]
        return Objects(image, boxes, labels, self.ignore[which], self.areas[which])


def no_detections() -> Detections:
    """Of an image on which nothing was found."""
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int16))


def checked_detections(
    boxes: ArrayLike, scores: ArrayLike, labels: ArrayLike, classes: int
) -> Detections:
    """Copies of (d,4), (d,) and (d,) with their types.

    Raises:
        ValueError: shapes that do not match, a number that is not finite, x2 < x1 or y2 < y1, a
            score outside [0, 1] or a label outside 0..classes - 1.
    """
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
        found = Detections(
            np.array(boxes, np.float32), np.array(scores, np.float32), _labels(labels, classes)
        )
    count = len(found.labels)
    if found.boxes.shape != (count, 4) or found.scores.shape != (count,):
        raise ValueError(
            f"boxes {found.boxes.shape}, scores {found.scores.shape} and labels ({count},) do not"
            " match"
        )
    _ordered(found.boxes, "a detected box")
    if not ((found.scores >= 0) & (found.scores <= 1)).all():  # NaN is neither
        raise ValueError("a score is outside [0, 1] or no number")
    return found


def checked_objects(given: Objects, images: int, classes: int) -> Objects:
    """Copies with their types.

    Raises:
        ValueError: as of detections; a row outside 0..images - 1 or out of order; a negative area.
    """
    made = Objects(
        whole(given.image, np.int32, "objects' image"),
        np.array(given.boxes, np.float64),
        _labels(given.labels, classes),
        np.array(given.ignore, np.bool_),
        np.array(given.areas, np.float64),
    )
    count = len(made.labels)
    if [part.shape for part in made] != [(count,), (count, 4), *[(count,)] * 3]:
        raise ValueError(f"objects' columns {[part.shape for part in made]} do not match")
    if made.image.max(initial=-1) >= images or (np.diff(made.image) < 0).any():
        raise ValueError(f"objects' image is a row 0..{images - 1}, in order")
    _ordered(made.boxes, "an object's box")
    if not (np.isfinite(made.areas) & (made.areas >= 0)).all():
        raise ValueError("an object's area is negative or no finite number")
    return made


def _ordered(boxes: NDArray[Any], what: str) -> None:
    if not np.isfinite(boxes).all():
        raise ValueError(f"{what} is no finite number")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"{what} has x2 < x1 or y2 < y1")


def _labels(values: ArrayLike, classes: int) -> NDArray[np.int16]:
    labels = whole(values, np.int16, "labels")
    if labels.ndim != 1 or labels.max(initial=0) >= classes:
        raise ValueError(f"labels are classes 0..{classes - 1}, one per box")
    return labels


def whole(values: ArrayLike, kind: DTypeLike, name: str) -> NDArray[Any]:
    """A copy of whole numbers >= 0 as `kind`; a ValueError where they are none or do not fit."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, got {array.dtype}")
    limit = np.iinfo(np.dtype(kind).name).max
    if array.size and not 0 <= array.min() <= array.max() <= limit:
        raise ValueError(f"{name} must be 0..{limit}")
    return array.astype(kind)
