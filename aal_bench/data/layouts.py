"""Which layout a ``--data-dir`` holds, and what to say when it holds none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from aal_bench.config import Data
from aal_bench.data import folders, parquet, torchvision_native
from aal_bench.data.sources import Found, Origin
from aal_bench.errors import UserError

TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "imagenet100": "ImageNet-100",
}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar", ".zst"}


class Layout(NamedTuple):
    """What `detect` found: who reads it, from where, and the test split's name there."""

    kind: Origin
    root: Path
    test_split: str


def test_splits(name: str) -> tuple[str, ...]:
    """Names under which a set's test images may lie, the first found counts.

    ImageNet's ``test`` has no public labels, so its validation split is everybody's test set.
    """
    labelled = ("val", "validation")
    return (*labelled, "test") if name.startswith("imagenet") else ("test", *labelled)


def detect(data_dir: Path, data: Data) -> Layout:
    """Find the layout: torchvision's own before Parquet shards before class folders.

    Raises:
        UserError: no such folder, an empty one, or another layout; says what was looked for, what
            was found and the mend.
    """
    if not data_dir.is_dir():
        what = "is a file, not a folder" if data_dir.exists() else "no such folder"
        raise UserError(f"{data_dir}: {what} (--data-dir)")
    root = torchvision_native.cifar_root(data_dir, data.name)
    if root is not None:
        return Layout("torchvision", root, "test")
    if data.name == "imagenet" and torchvision_native.is_imagenet(data_dir):
        return Layout("torchvision", data_dir, "val")
    for place in (data_dir, data_dir / "data"):
        for split in test_splits(data.name):
            if parquet.shards(place, "train") and parquet.shards(place, split):
                return Layout("parquet", place, split)
    for split in test_splits(data.name):
        if folders.has_classes(data_dir / "train") and folders.has_classes(data_dir / split):
            return Layout("folders", data_dir, split)
    raise UserError(_nothing(data_dir, data.name))


def read(data_dir: Path, data: Data) -> Found:
    """Read the set that `data_dir` holds, in whichever layout.

    Raises:
        UserError: as `detect`, or as the layout's reader.
    """
    layout = detect(data_dir, data)
    if layout.kind == "parquet":
        return parquet.read(layout.root, layout.test_split, in_memory=data.resize is None)
    if layout.kind == "folders":
        return folders.read(layout.root, layout.test_split)
    if data.name == "imagenet":
        return torchvision_native.read_imagenet(layout.root)
    return torchvision_native.read_cifar(layout.root, data.name)


def looked_for(name: str) -> str:
    """List the accepted layouts of a set in one line."""
    native = torchvision_native.CIFAR_FOLDERS.get(name)
    if name.startswith("imagenet"):
        return "{train,validation}-*.parquet, {train,val}/<class>/"
    both = "{train,test}-*.parquet, {train,test}/<class>/"
    return f"{native}/, {both}" if native else both


def _nothing(data_dir: Path, name: str) -> str:
    entries = [entry for entry in sorted(data_dir.iterdir()) if not entry.name.startswith(".")]
    downloadable = name in torchvision_native.CIFAR_FOLDERS
    otherwise = ", or omit --data-dir to download." if downloadable else "."
    if any(entry.suffix.lower() in ARCHIVES for entry in entries):
        mend = "Unpack them"
    elif any((data_dir / split).is_dir() for split in ("train", *test_splits(name))):
        mend = "Give both splits, each with one folder of images per class"
    else:
        mend = "Give the folder that holds one of these"
    return (
        f"{data_dir}: no {TITLES.get(name, name)} found. Looked for {looked_for(name)}. "
        f"Found: {contents(entries)}. {mend}{otherwise}"
    )


def contents(entries: list[Path]) -> str:
    """Summarise a folder: its folders, and its files by kind (by name when there is one)."""
    directories = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    parts = directories[:4]
    if len(directories) > 4:
        parts.append(f"{len(directories) - 4} more folders")
    for suffix, count in Counter(file.suffix for file in files).most_common(4):
        same = [file.name for file in files if file.suffix == suffix]
        parts.append(same[0] if count == 1 else f"{count} {suffix or 'other'} files")
    return ", ".join(parts) or "nothing, it is empty"
