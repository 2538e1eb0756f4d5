"""MMDetection's readers of VOC and COCO annotations, in which nothing is lost without a word.

MMDetection parses. It also passes over objects of other classes, takes boxes without area, stops at
a truncated image in the midst of training and numbers COCO's classes by the file: here each of
these is an error that names the file, before anything runs, or is counted in `Dropped`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from typing import Any, NamedTuple

from mmdet.datasets import BaseDetDataset, CocoDataset, XMLDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from aal_bench.detection import annotations, images
from aal_bench.errors import UserError


class Dropped(NamedTuple):
    """What the annotations held and the data set does not."""

    no_area: int = 0
    """Boxes without area (COCO: narrower than a pixel), dropped."""
    outside: int = 0
    """Boxes beside their image, dropped."""
    ignored: int = 0
    """COCO's objects marked ``ignore``, dropped as MMDetection does."""
    clipped: int = 0
    """Boxes that crossed the border of their image, cut there."""
    left_out: int = 0
    """Images without objects, not trained on."""
    small: int = 0
    """Images below the ``min_size`` of the data set's ``filter_cfg``, not trained on."""
    empty: int = 0
    """Images without objects that are kept: a detection there is a false one."""


def dropped(dataset: Any) -> Dropped:
    """Sum the counts over a data set and what it wraps or concatenates."""
    if isinstance(dataset, _Checked):
        return dataset.dropped
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    counts = [dropped(one) for one in inner if one is not None]
    return Dropped(*map(sum, zip(*counts, strict=True))) if counts else Dropped()


def sentence(split: str, counts: Dropped) -> str | None:
    """Say the counts in one line, ``train: 1 box without area dropped, ...``; None: all zero."""
    phrases = (
        (counts.no_area, "{} without area dropped", "box"),
        (counts.outside, "{} outside the image dropped", "box"),
        (counts.ignored, "{} marked ignore dropped", "box"),
        (counts.clipped, "{} clipped to the image", "box"),
        (counts.left_out, "{} without objects left out", "image"),
        (counts.small, "{} too small left out", "image"),
        (counts.empty, "{} without objects", "image"),
    )
    plural = {"box": "boxes", "image": "images"}
    said = [
        phrase.format(f"{count:,} {noun if count == 1 else plural[noun]}")
        for count, phrase, noun in phrases
        if count
    ]
    return f"{split}: {', '.join(said)}" if said else None


class _Checked(BaseDetDataset):
    """What both readers share: boxes fitted into the image, and the count of what was dropped."""

    dropped = Dropped()

    def _fit(self, instances: list[dict[str, Any]], width: int, height: int) -> list[dict]:
        """Keep the instances with area within the image, cut at its border."""
        kept = []
        for instance in instances:
            x1, y1, x2, y2 = instance["bbox"]
            if x2 <= x1 or y2 <= y1:
                self._counts["no_area"] += 1
                continue
            if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
                cut = [max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)]
                if cut[2] <= cut[0] or cut[3] <= cut[1]:
                    self._counts["outside"] += 1
                    continue
                instance["bbox"] = cut
                self._counts["clipped"] += 1
            kept.append(instance)
        return kept

    def load_data_list(self) -> list[dict]:
        self._counts: Counter[str] = Counter()
        found = super().load_data_list()
        if not found:
            raise UserError(f"{self.ann_file}: lists no images")
        return found

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not self.test_mode and (self.filter_cfg or {}).get("filter_empty_gt"):
            # MMDetection's COCO reader keeps an image whose every box it passed over.
            kept = [info for info in kept if info["instances"]]
        if not kept:
            raise UserError(f"{self.ann_file}: no image with an object to train on")
        empty = sum(not info["instances"] for info in self.data_list)
        self._counts["empty"] = sum(not info["instances"] for info in kept)
        self._counts["left_out"] = empty - self._counts["empty"]
        self._counts["small"] = len(self.data_list) - len(kept) - self._counts["left_out"]
        self.dropped = Dropped(**self._counts)
        return kept


@DATASETS.register_module()
class CheckedVOC(_Checked, XMLDataset):
    """`mmdet.datasets.XMLDataset` that reads images of any ending and checks what it reads.

    Sizes are the images' own. Coordinates count from 0, as MMDetection's do.

    Raises:
        UserError: annotations of another format, an object of no class of the list, an image that
            is missing, truncated or no image, or one listed twice; names the file.
    """

    def load_data_list(self) -> list[dict]:
        annotations.check_list(str(self.ann_file))
        self._folders: dict[str, dict[str, str]] = {}
        return super().load_data_list()

    def parse_data_info(self, raw_data_info: dict) -> dict:  # pyright: ignore[reportIncompatibleMethodOverride]
        stem, xml = raw_data_info["img_id"], raw_data_info["xml_path"]
        root: Any = annotations.read_xml(xml, self.cat2label)
        path = self._image(stem)
        width, height = images.check(path, annotations.size(root))
        try:
            instances = self._parse_instance_info(root, minus_one=True)
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise UserError(
                f"{xml}: an object without xmin, ymin, xmax, ymax as numbers in <bndbox>. Mend or "
                "remove it."
            ) from None
        return {
            "img_path": path,
            "img_id": stem,
            "xml_path": xml,
            "height": height,
            "width": width,
            "instances": self._fit(instances, width, height),
        }

    def _image(self, stem: str) -> str:
        """The image's file; as MMDetection names it where there is none."""
        base = os.path.join(self.sub_data_root, self.img_subdir, stem)
        folder, name = os.path.split(base)
        if folder not in self._folders:
            self._folders[folder] = images.listing(folder)
        return os.path.join(folder, self._folders[folder].get(name, f"{name}.jpg"))


@DATASETS.register_module()
class CheckedCoco(_Checked, CocoDataset):
    """`mmdet.datasets.CocoDataset` that checks what it reads; sizes are the images' own.

    Raises:
        UserError: annotations of another format, other classes than those of the list or in another
            order, an image that is missing, truncated or no image, or an annotation that
            contradicts the others; names the file.
    """

    def COCOAPI(self, path: str) -> COCO:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Open the annotations; MMDetection's `load_data_list` calls this as it would the class."""
        coco = _open(path)
        tree: Any = coco.dataset
        annotations.check_json(path, tree, tuple(self.metainfo["classes"]))
        for image in tree["images"]:
            file = os.path.join(self.data_prefix["img"], image["file_name"])
            annotated = (image.get("width", 0), image.get("height", 0))
            image["width"], image["height"] = images.check(file, annotated)
        if any("area" not in one for one in tree["annotations"]):
            raise UserError(
                f"{path}: an annotation has no 'area', which COCO's metric needs; add its width"
                " times its height"
            )
        return coco

    def parse_data_info(self, raw_data_info: dict) -> dict:
        data: Any = super().parse_data_info(raw_data_info)
        raw = raw_data_info["raw_ann_info"]
        if len(data["instances"]) != len(raw):
            self._counts.update(kind for kind in map(_passed_over, raw) if kind)
            reasons = sum(_passed_over(one) is not None for one in raw)
            self._counts["outside"] += len(raw) - len(data["instances"]) - reasons
        data["instances"] = self._fit(data["instances"], data["width"], data["height"])
        return data


def _passed_over(annotation: dict[str, Any]) -> str | None:
    """Why MMDetection passes over an annotation, whatever its image."""
    if annotation.get("ignore", False):
        return "ignored"
    thin = min(annotation["bbox"][2:]) < 1 or annotation["area"] <= 0
    return "no_area" if thin else None


def _open(path: str) -> COCO:
    """Open a COCO file, without the lines that pycocotools prints."""
    try:
        with open(path, "rb") as handle:
            opening = handle.read(1 << 12).lstrip()[:1]
        if opening != b"{":
            raise annotations.another_format(path, "COCO's is JSON")
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}. Is it complete?") from None
    except (KeyError, TypeError, AssertionError):
        raise annotations.another_format(path, "not COCO's JSON of instances") from None
    return coco
