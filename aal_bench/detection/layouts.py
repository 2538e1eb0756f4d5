"""Where a detection task's annotations and images lie, as configs of MMDetection's data sets."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from aal_bench.config import Task
from aal_bench.data import scenes
from aal_bench.data.layouts import contents
from aal_bench.detection import annotations, images
from aal_bench.errors import UserError, did_you_mean

PARTS = ("JPEGImages", "Annotations", "ImageSets/Main")
YEARS = ("VOC2007", "VOC2012")
"""Both are trained on; the first is tested on (Liu et al. 2016, SSD)."""
TITLES = {"voc0712": "VOC 2007 and 2012", "voc": "set of VOC's layout", "coco": "COCO file"}
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


class DetectionData(NamedTuple):
    """Configs of `checked`'s data sets, without pipeline; several of a split are concatenated."""

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    """One, or none where the task selects on no validation split."""
    test: list[dict[str, Any]]
    """One."""
    source: str
    """``embedded``, ``voc`` or ``coco``."""
    official: bool
    """Embedded: nobody's copy differs. There are no checksums of the others."""


def find(task: Task, data_dir: Path | None) -> DetectionData:
    """Find the splits that a detection task names; of annotations, reads only which images.

    Args:
        task: ``data.name`` is ``scenes`` (embedded), ``voc0712``, ``voc`` or ``coco``.
        data_dir: ``VOCdevkit``; or a folder of VOC's layout; or one with COCO files, whose paths
            within it are the task's splits. Each may also lie one folder deeper.

    Raises:
        UserError: the data is not there (says what was looked for and found), or two splits share
            an image.
    """
    if task.detection is None:
        raise ValueError(f"task {task.name} is no detection task")
    name = task.data.name
    if not task.detection.names:
        raise UserError(f"task {task.name}: no class list. Give --classes A,B,...")
    if name == "scenes":
        if data_dir is not None:
            raise UserError(f"task {task.name}: its images are embedded; omit --data-dir")
        return _voc(task, [scenes.ensure()], "embedded")
    if data_dir is None:
        raise UserError(
            f"task {task.name}: its images are not downloaded. Give --data-dir with "
            f"{_looked_for(task)}."
        )
    if not data_dir.is_dir():
        what = "is a file, not a folder" if data_dir.exists() else "no such folder"
        raise UserError(f"{data_dir}: {what} (--data-dir)")
    if name == "coco":
        return _coco(task, data_dir)
    years = YEARS if name == "voc0712" else ("",)
    inside = name == "voc0712" and data_dir.resolve().name in YEARS
    for root in _places(data_dir.resolve().parent if inside else data_dir):
        homes = [root / year for year in years]
        if all((home / part).is_dir() for home in homes for part in PARTS):
            return _voc(task, homes, "voc")
    raise UserError(_nothing(task, data_dir))


def _splits(task: Task) -> dict[str, str]:
    """Part of the run -> the task's name of the split."""
    named = task.detection
    assert named is not None
    splits = {"train": named.train, "test": named.test}
    if task.train.validation and named.validation is not None:
        splits["validation"] = named.validation
    return splits


def _places(data_dir: Path) -> Iterator[Path]:
    """The folder itself, then the folders in it."""
    yield data_dir
    yield from sorted(child for child in data_dir.iterdir() if child.is_dir())


def _voc(task: Task, homes: list[Path], source: str) -> DetectionData:
    """Configs over folders of VOC's layout; only training images come from others than the first.

    Raises:
        UserError: a split is not there, or two share an image.
    """
    found = DetectionData([], [], [], source, official=source == "embedded")
    names: dict[str, set[str]] = {}
    for part, split in _splits(task).items():
        names[part] = set()
        for home in homes if part == "train" else homes[:1]:
            listed = home / "ImageSets/Main" / f"{split}.txt"
            if not listed.is_file():
                there = sorted(file.stem for file in listed.parent.glob("*.txt"))
                raise UserError(_absent(listed, "split", split, there))
            getattr(found, part).append(
                {
                    "type": "CheckedVOC",
                    "data_root": str(home.absolute()),
                    "ann_file": f"ImageSets/Main/{split}.txt",
                    "data_prefix": {"sub_data_root": ""},
                    **_common(task, part),
                }
            )
            annotations.check_list(str(listed))
            stems = listed.read_text(encoding="utf-8").splitlines()
            files = images.listing(str(home / "JPEGImages"))
            names[part] |= _resolved(home / "JPEGImages", (files.get(one, one) for one in stems))
    _disjoint(names)
    return found


def _coco(task: Task, data_dir: Path) -> DetectionData:
    """Configs over COCO files, each with the folder that holds its images.

    Raises:
        UserError: a file or its images are not there, or two files share an image.
    """
    splits = _splits(task)
    roots = [root for root in _places(data_dir) if (root / splits["test"]).is_file()]
    if not roots:
        raise UserError(_nothing(task, data_dir))
    root = roots[0]
    found = DetectionData([], [], [], "coco", official=False)
    names: dict[str, set[str]] = {}
    for part, split in splits.items():
        path = root / split
        if not path.is_file():
            there = sorted(str(file.relative_to(root)) for file in path.parent.glob("*.json"))
            raise UserError(_absent(path, "file", split, there))
        listed = file_names(path)
        folder = _image_folder(root, split, listed[0])
        getattr(found, part).append(
            {
                "type": "CheckedCoco",
                "data_root": str(root.absolute()),
                "ann_file": split,
                "data_prefix": {"img": folder},
                **_common(task, part),
            }
        )
        names[part] = _resolved(root / folder, listed)
    _disjoint(names)
    return found


def _common(task: Task, part: str) -> dict[str, Any]:
    assert task.detection is not None
    config: dict[str, Any] = {"metainfo": {"classes": task.detection.names}}
    # SSD's loss needs an object; a test without empty images would hide what is seen in them.
    extra = {"filter_cfg": {"filter_empty_gt": True}} if part == "train" else {"test_mode": True}
    return config | extra


def file_names(path: Path) -> list[str]:
    """The names of a COCO file's images; COCO's own takes a second, and half a minute to parse.

    Raises:
        UserError: it is no COCO file, or lists no image.
    """
    with path.open("rb") as handle:
        if handle.read(1 << 12).lstrip()[:1] != b"{":
            raise annotations.another_format(str(path), "COCO's is JSON")
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as text:
            names = [json.loads(found) for found in FILE_NAME.findall(text)]
    if not names:
        raise annotations.another_format(str(path), "COCO's names images by file_name, this none")
    return names


def _image_folder(root: Path, split: str, image: str) -> str:
    """The folder within `root` that holds `image`: ``train2017`` for ``instances_train2017.json``.

    Raises:
        UserError: none of those looked in does.
    """
    stem = Path(split).stem
    beside = os.path.dirname(split)
    candidates = (stem.rpartition("_")[2], stem, "images", "JPEGImages", "", beside)
    for folder in candidates:
        if (root / folder / image).is_file():
            return folder
    shown = ", ".join(f"{folder or '.'}/" for folder in dict.fromkeys(candidates))
    raise UserError(f"{root}: no {image}, the first image of {split}. Looked in {shown}")


def _resolved(folder: Path, names: Iterable[str]) -> set[str]:
    """The files that these names lead to, links followed."""
    base = os.path.realpath(folder)
    try:
        links = {entry.name for entry in os.scandir(base) if entry.is_symlink()}
    except OSError:
        links = set()
    return {
        os.path.realpath(os.path.join(base, name))
        if name in links or os.sep in name
        else os.path.join(base, name)
        for name in names
    }


def _disjoint(names: dict[str, set[str]]) -> None:
    """Refuse two splits with one image: results on what was trained on say nothing."""
    for one, other in combinations(names, 2):
        shared = names[one] & names[other]
        if shared:
            raise UserError(
                f"{min(shared)}: an image of the {one} split and of the {other} split "
                f"({len(shared)} such). Name splits that share none."
            )


def _looked_for(task: Task) -> str:
    splits = _splits(task).values()
    if task.data.name == "coco":
        return f"{', '.join(dict.fromkeys(splits))}, and the images"
    files = ",".join(dict.fromkeys(splits))
    layout = f"JPEGImages/, Annotations/, ImageSets/Main/{{{files}}}.txt"
    return layout if task.data.name == "voc" else f"{' and '.join(YEARS)}, each with {layout}"


def _nothing(task: Task, data_dir: Path) -> str:
    entries = [entry for entry in sorted(data_dir.iterdir()) if not entry.name.startswith(".")]
    other = ", or set detection.train and detection.test to its files"
    return (
        f"{data_dir}: no {TITLES.get(task.data.name, task.data.name)} found. Looked for "
        f"{_looked_for(task)}. Found: {contents(entries)}. Give the folder that holds these"
        f"{other if task.data.name == 'coco' else ''}."
    )


def _absent(path: Path, what: str, name: str, there: list[str]) -> str:
    shown = ", ".join(there) or "none"
    return f"{path}: no such {what}. There are: {shown}.{did_you_mean(name, there)}"
