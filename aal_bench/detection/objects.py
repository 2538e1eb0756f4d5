"""The objects of a test set, as the metric of its format counts them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from aal_bench.boxes import Objects


def objects_of(dataset: Any, positions: np.ndarray) -> tuple[list[str], Objects]:
    """Names of the images at `positions` of a VOC set, and every object in them.

    Difficult objects are ignored ones.
    """
    names: list[str] = []
    image, boxes, labels, ignore = [], [], [], []
    for row, position in enumerate(positions):
        info = dataset.get_data_info(int(position))
        names.append(str(info["img_id"]))
        for instance in info["instances"]:
            image.append(row)
            boxes.append(instance["bbox"])
            labels.append(instance["bbox_label"])
            ignore.append(bool(instance["ignore_flag"]))
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    return names, _objects(image, corners, labels, ignore, sides.prod(1))


def coco_objects_of(
    dataset: Any, positions: np.ndarray, file: str, classes: tuple[str, ...]
) -> tuple[list[str], Objects]:
    """The same of a COCO set, from its file: COCO's metric counts what training leaves out.

    Crowds are ignored ones; areas are the annotated ones, of the masks.
    """
    from mmdet.datasets.api_wrappers import COCO

    from aal_bench.detection.quiet import quiet

    with quiet():
        api = COCO(file)
    labels_of = {number: label for label, number in enumerate(_categories(api, classes))}
    names: list[str] = []
    image, boxes, labels, ignore, areas = [], [], [], [], []
    for row, position in enumerate(positions):
        number = dataset.get_data_info(int(position))["img_id"]
        names.append(str(number))
        for found in api.load_anns(api.get_ann_ids(img_ids=[number])):
            if found["category_id"] not in labels_of:
                continue
            x, y, width, height = found["bbox"]
            image.append(row)
            boxes.append((x, y, x + width, y + height))
            labels.append(labels_of[found["category_id"]])
            ignore.append(bool(found.get("iscrowd", 0)))
            areas.append(found["area"])
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return names, _objects(image, corners, labels, ignore, np.asarray(areas, np.float64))


def objects_sha256(objects: Objects) -> str:
    """Hex sha256 of every object, in order."""
    digest = hashlib.sha256()
    for column in objects:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _categories(api: Any, classes: tuple[str, ...]) -> list[int]:
    return [api.get_cat_ids(cat_names=[name])[0] for name in classes]


def _objects(image: Any, boxes: Any, labels: Any, ignore: Any, areas: Any) -> Objects:
    return Objects(
        np.asarray(image, np.int32),
        boxes,
        np.asarray(labels, np.int16),
        np.asarray(ignore, bool),
        areas,
    )
