"""The per-image table of a detection run: what every mean average precision is recomputed from.

One row per test image, with the detections on the clean image and under every attack in the
coordinates of the original file, and beside them the objects that were to be found. A detection is
right or wrong only among all others, so that a row has no verdict. numpy only, as `evidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aal_bench import npz
from aal_bench.boxes import (
    Detections,
    Objects,
    checked_detections,
    checked_objects,
    no_detections,
    whole,
)
from aal_bench.config import Convention, Family
from aal_bench.errors import UserError
from aal_bench.evidence import NORM_DECIMALS, STAGE_NAME
from aal_bench.files import replacing

FORMAT = "aal-bench detection evidence 1"
"""Format and version, as a file states them."""
STAGE = np.dtype(
    [
        ("recorded", np.bool_),  # the row is done
        ("attacked", np.bool_),  # false: the detections are those on the clean image
        ("count", np.int32),  # detections on the image
        ("norm", np.float32),  # |x' - x| in pixel units
        ("forwards", np.int32),  # passes spent on this image
        ("backwards", np.int32),
    ]
)
"""One row of a stage, the clean one included; its detections are stored image after image."""
_LARGEST = 1 << 31
"""Bytes beyond which a file is no table: 5,000 images with 200 detections take 27 MB a stage."""
_STAGES = (npz.MEMBERS - 10) // 4
"""Most stages of a file, the clean one included: each has four arrays, and the table ten."""


class DetectionEvidence:
    """Images, classes, objects, and of each stage a `STAGE` block and the detections.

    Rows are addressed by position 0..n-1; `index` is the position in the whole test split.
    """

    family: Family = "detection"
    """The task family whose units the rows are."""
    format = FORMAT
    """Format and version of the file."""

    def __init__(
        self,
        index: ArrayLike,
        images: Sequence[str],
        classes: Sequence[str],
        conventions: Sequence[str],
        objects: Objects,
    ) -> None:
        """Start an empty table.

        Args:
            index: (n,) positions in the test split, distinct.
            images: n names, as the data set gives them.
            classes: K names in the order of the labels.
            conventions: of the mean average precision, the headline first; of one evaluator.
            objects: ground truth, which no later change of the arrays given reaches.

        Raises:
            ValueError: lengths differ, a name or an index occurs twice, or an object is none:
                not finite, its corners swapped, of no image or class.
        """
        self.index = whole(index, np.int32, "index").reshape(-1)
        if len(np.unique(self.index)) != len(self.index):
            raise ValueError("an index occurs twice: every image has exactly one row")
        self.images = _names(images, "images")
        if len(self.images) != len(self.index):
            raise ValueError(f"{len(self.index)} indices, but {len(self.images)} images")
        self.classes = _names(classes, "classes")
        self.conventions = _conventions(conventions)
        self.objects = checked_objects(objects, len(self.images), len(self.classes))
        self._blocks: dict[str, NDArray[Any]] = {}
        self._found: dict[str, list[Detections]] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def stages(self) -> tuple[str, ...]:
        """The attack stages in the order in which they were begun; `clean` is not among them."""
        return tuple(stage for stage in self._blocks if stage != "clean")

    def column(self, stage: str, name: str) -> NDArray[Any]:
        """A copy of one column (n,) of a stage or ``"clean"``; the names are those of `STAGE`."""
        if stage not in self._blocks:
            raise UserError(f"evidence has no stage '{stage}': {', '.join(self._blocks) or 'none'}")
        return self._blocks[stage][name].copy()

    def record(
        self,
        stage: str,
        rows: ArrayLike,
        detections: Sequence[Detections],
        *,
        norm: ArrayLike = 0.0,
        forwards: ArrayLike = 0,
        backwards: ArrayLike = 0,
        attacked: ArrayLike = True,
    ) -> None:
        """Record a batch of images; scalars serve every one of them.

        Args:
            stage: its name; ``"clean"`` uses nothing but `detections`, and counts one forward pass.
            rows: (b,) positions, none recorded before.
            detections: b, one per row.
            norm: (b,) |x' - x| in pixel units.
            forwards: (b,) forward passes spent on the image.
            backwards: (b,) backward passes spent on the image.
            attacked: (b,) false: these are the detections on the clean image.

        Raises:
            ValueError: a row twice; a box, score or norm that is not a finite number (a detector
                with NaN has failed, it has not found nothing); corners swapped; a score outside
                [0, 1]; a label that is no class; a norm of an image that was not attacked.
        """
        where = self._fresh(stage, rows)
        if len(detections) != len(where):
            raise ValueError(f"{len(where)} rows, but detections of {len(detections)} images")
        found = [checked_detections(*one, len(self.classes)) for one in detections]
        batch = np.zeros(len(where), STAGE)
        batch["recorded"] = True
        batch["count"] = [len(one.scores) for one in found]
        if stage == "clean":
            batch["forwards"] = 1
        else:
            batch["attacked"] = attacked
            batch["norm"] = np.round(np.asarray(norm, np.float64), NORM_DECIMALS)
            batch["forwards"] = whole(forwards, np.int32, "forwards")
            batch["backwards"] = whole(backwards, np.int32, "backwards")
        _consistent(stage, batch)
        self._block(stage)[where] = batch
        for row, one in zip(where, found, strict=True):
            self._found[stage][row] = one

    def done(self, stage: str) -> NDArray[np.bool_]:
        """Which rows (n,) of `stage` (or ``"clean"``) are recorded; all false before it began."""
        if stage not in self._blocks:
            return np.zeros(len(self), np.bool_)
        return self._blocks[stage]["recorded"].copy()

    def detections(self, stage: str) -> tuple[NDArray[np.int32], Detections]:
        """Rows (D,) and detections of all images of a stage (or ``"clean"``), in image order.

        Raises:
            UserError: a row of the stage is missing.
        """
        if stage not in self._blocks and self._blocks:
            raise UserError(f"evidence has no stage '{stage}': {', '.join(self._blocks)}")
        missing = int((~self.done(stage)).sum())
        if missing or stage not in self._blocks:
            raise UserError(
                f"evidence: stage '{stage}' lacks {missing} of {len(self)} rows; a missing image"
                " is no image without detections: finish the evaluation (--resume)"
            )
        counts = self._blocks[stage]["count"]
        return np.repeat(np.arange(len(self), dtype=np.int32), counts), self._flat(stage)

    def columns(self) -> list[str]:
        """Names of the stored columns, as a submission lists them."""
        parts = (*(STAGE.names or ()), *Detections._fields)
        staged = [f"{stage}.{name}" for stage in self._blocks for name in parts]
        objects = [f"objects.{name}" for name in Objects._fields]
        return ["index", "images", "classes", "conventions", *objects, *staged]

    def save(self, path: Path) -> None:
        """Write the table as a compressed npz, whole or not at all; equal tables, equal bytes."""
        arrays: dict[str, NDArray[Any]] = {"index": self.index}
        for name in ("images", "classes", "conventions"):
            arrays[name] = np.array(getattr(self, name), np.str_)
        arrays |= {f"objects/{name}": part for name, part in self.objects._asdict().items()}
        for stage, block in self._blocks.items():
            arrays[f"stage/{stage}"] = block
            found = self._flat(stage)._asdict()
            arrays |= {f"{name}/{stage}": part for name, part in found.items()}
        with replacing(path) as handle:
            np.savez_compressed(handle, allow_pickle=False, format=np.array(self.format), **arrays)

    @classmethod
    def load(cls, path: Path, largest: int = _LARGEST) -> DetectionEvidence:
        """Read a table without unpickling anything.

        Args:
            path: of the file.
            largest: most bytes of the file, packed and unpacked.

        Raises:
            UserError: no such file, a damaged one, or one that contradicts itself.
        """
        arrays = npz.read(path, largest, "evidence table")
        try:
            return cls._from_arrays(arrays)
        except (ValueError, UserError) as error:
            raise UserError(f"{path}: not a readable evidence table ({error})") from None

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> DetectionEvidence:
        written = arrays.pop("format", None)
        if written is None or not np.array_equal(written, FORMAT):
            raise ValueError(f"format is {str(written)[:60]!r}, not {FORMAT!r}")
        index = npz.take(arrays, "index", np.int32, None)
        images, classes, conventions = (
            _strings(arrays, name) for name in ("images", "classes", "conventions")
        )
        objects = Objects(
            npz.take(arrays, "objects/image", np.int32, None),
            npz.take(arrays, "objects/boxes", np.float64, None, 4),
            npz.take(arrays, "objects/labels", np.int16, None),
            npz.take(arrays, "objects/ignore", np.bool_, None),
            npz.take(arrays, "objects/areas", np.float64, None),
        )
        table = cls(index, images, classes, conventions, objects)
        for name in [name for name in arrays if name.startswith("stage/")]:
            table._take(arrays, name.removeprefix("stage/"))
        if arrays:
            raise ValueError(f"{next(iter(arrays))!r} is no column")
        return table

    def _take(self, arrays: dict[str, NDArray[Any]], stage: str) -> None:
        block = npz.take(arrays, f"stage/{stage}", STAGE, len(self))
        _consistent(stage, block)
        size = int(block["count"].sum(dtype=np.int64))
        found = checked_detections(
            npz.take(arrays, f"boxes/{stage}", np.float32, size, 4),
            npz.take(arrays, f"scores/{stage}", np.float32, size),
            npz.take(arrays, f"labels/{stage}", np.int16, size),
            len(self.classes),
        )
        ends = np.cumsum(block["count"], dtype=np.int64)[:-1]
        parts = zip(*(np.split(part, ends) for part in found), strict=True)
        self._block(stage)[:] = block
        self._found[stage] = [Detections(*part) for part in parts] if len(self) else []

    def _flat(self, stage: str) -> Detections:
        found = self._found[stage]
        return Detections(*map(np.concatenate, zip(no_detections(), *found, strict=True)))

    def _block(self, stage: str) -> NDArray[Any]:
        if stage not in self._blocks:
            if not STAGE_NAME.fullmatch(stage):
                raise UserError(f"a stage's name is up to 40 of a-z 0-9 . -, not {stage[:60]!r}")
            if len(self._blocks) == _STAGES:
                raise UserError(f"a table holds {_STAGES} stages: name fewer attacks")
            self._blocks[stage] = np.zeros(len(self), STAGE)
            self._found[stage] = [no_detections()] * len(self)
        return self._blocks[stage]

    def _fresh(self, stage: str, rows: ArrayLike) -> NDArray[np.intp]:
        where = np.asarray(rows, np.intp).reshape(-1)
        if where.size and not 0 <= where.min() <= where.max() < len(self):
            raise ValueError(f"stage '{stage}': rows are positions 0..{len(self) - 1}")
        if len(np.unique(where)) != len(where) or self.done(stage)[where].any():
            raise ValueError(f"stage '{stage}': a row is recorded twice")
        return where


def same_images(a: DetectionEvidence, b: DetectionEvidence) -> bool:
    """Whether both are about the same images in the same order, classes and objects."""
    return (
        (a.images, a.classes) == (b.images, b.classes)
        and np.array_equal(a.index, b.index)
        and all(map(np.array_equal, a.objects, b.objects))
    )


def _consistent(stage: str, block: NDArray[Any]) -> None:
    if not (np.isfinite(block["norm"]) & (block["norm"] >= 0)).all():
        raise ValueError(f"stage '{stage}': norm must be finite and >= 0")
    for name in ("count", "forwards", "backwards"):
        if block[name].min(initial=0) < 0:
            raise ValueError(f"stage '{stage}': {name} must be >= 0")
    if (block[~block["recorded"]] != np.zeros(1, STAGE)).any():
        raise ValueError(f"stage '{stage}': a row that is not recorded holds numbers")
    if (~block["attacked"] & (block["norm"] > 0)).any():
        raise ValueError(f"stage '{stage}': a row that was not attacked has a norm")
    clean = block[block["recorded"]]
    passes = (clean["forwards"] == 1) & (clean["backwards"] == 0)
    if stage == "clean" and (clean["attacked"] | ~passes).any():
        raise ValueError("stage 'clean' is one forward pass, and no attack")


def _conventions(names: Sequence[str]) -> tuple[Convention, ...]:
    chosen = _names(names, "conventions")
    known = get_args(Convention)
    found = tuple(name for name in known if name in chosen)
    if len(found) != len(chosen) or len({name.endswith("coco") for name in found}) != 1:
        raise ValueError(f"conventions are some of VOC's or of COCO's: {', '.join(known)}")
    return tuple(name for _, name in sorted((chosen.index(name), name) for name in found))


def _names(given: Sequence[str], what: str) -> tuple[str, ...]:
    names = tuple(map(str, given))
    if len(set(names)) != len(names):
        raise ValueError(f"a name occurs twice in {what}")
    if not all(name and name.isprintable() for name in names):
        raise ValueError(f"{what}: a name is empty or cannot be printed")
    return names


def _strings(arrays: dict[str, NDArray[Any]], name: str) -> list[str]:
    array = arrays.pop(name, None)
    if array is None or array.dtype.kind != "U" or array.ndim != 1:
        raise ValueError(f"{name} is missing or no list of names")
    return array.tolist()
