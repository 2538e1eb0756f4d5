"""Which layout of a few-shot set a ``--data-dir`` holds, and what to say when it holds none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from aal_bench.data import class_lists, folders, omniglot, parquet
from aal_bench.data.fewshot_splits import SPLITS, Listed, whole
from aal_bench.data.layouts import ARCHIVES, contents
from aal_bench.data.sources import Origin
from aal_bench.errors import UserError

TITLES = {
    "omniglot": "Omniglot",
    "mini-imagenet": "mini-ImageNet",
    "tiered-imagenet": "tiered-ImageNet",
    "cifar-fs": "CIFAR-FS",
}
NAMES = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
"""What a split is called; the first found counts."""
PICKLES = {".pkl", ".pickle", ".plk"}


class Layout(NamedTuple):
    """The three splits as found, and by which reader."""

    splits: dict[str, Listed]
    source: Origin


def read(data_dir: Path, name: str) -> Layout:
    """Read the set `name` from `data_dir`, in whichever layout.

    Parquet shards of three splits, then class folders of three splits, then the parts of Omniglot,
    then any Parquet shards with a list of the classes (`class_lists`).

    Raises:
        UserError: no such folder, a split missing, or another layout: says what was looked for,
            what was found and the mend; and as the layout's reader.
    """
    if not data_dir.is_dir():
        what = "is a file, not a folder" if data_dir.exists() else "no such folder"
        raise UserError(f"{data_dir}: {what} (--data-dir)")
    places = [place for place in (data_dir, data_dir / "data") if place.is_dir()]
    for place in places:
        shards = {split: _shards(place, split) for split in SPLITS}
        if all(shards.values()):
            opened = {
                split: parquet.read_split(files, parquet.StreamedRows)
                for split, files in shards.items()
            }
            return Layout({split: whole(*one) for split, one in opened.items()}, "parquet")
    for place in places:
        homes = {split: _folder(place, split) for split in SPLITS}
        if all(homes.values()):
            opened = {split: folders.read_split(home) for split, home in homes.items() if home}
            return Layout({split: whole(*one) for split, one in opened.items()}, "folders")
    root = omniglot.native(data_dir) if name == "omniglot" else None
    if root is not None:
        return Layout(omniglot.read(root, data_dir), "torchvision")
    for place in places:
        classes = class_lists.look(data_dir, place)
        files = _all_shards(place)
        if classes is not None and files:
            source, names = parquet.read_split(files, parquet.StreamedRows)
            listed = class_lists.assign(source, source.labels, names, classes)
            return Layout(listed, "parquet")
    raise UserError(_nothing(data_dir, places, name))


def looked_for(name: str) -> str:
    """List the accepted layouts of a set in one line."""
    three = "{train,validation,test}-*.parquet, {train,val,test}/<class>/"
    native = ", images_background/ with images_evaluation/" if name == "omniglot" else ""
    return f"{three}{native}, *.parquet with {class_lists.CSV}"


def _shards(place: Path, split: str) -> list[Path]:
    found = (parquet.shards(place, name) for name in NAMES[split])
    return next((files for files in found if files), [])


def _folder(place: Path, split: str) -> Path | None:
    homes = (place / name for name in NAMES[split])
    return next((home for home in homes if folders.has_classes(home)), None)


def _all_shards(place: Path) -> list[Path]:
    files = sorted(place.glob("*.parquet"))
    for prefix in {m[1] for file in files if (m := re.match(r"(.+?)-\d+-of-\d+\.", file.name))}:
        parquet.shards(place, prefix)  # raises where one is missing
    return files


def _nothing(data_dir: Path, places: list[Path], name: str) -> str:
    title = TITLES.get(name, name)
    entries = [entry for entry in sorted(data_dir.iterdir()) if not entry.name.startswith(".")]
    found = contents(entries)
    for kind, look in (("shards", _shards), ("class folders", _folder)):
        for place in places:
            there = {split: bool(look(place, split)) for split in SPLITS}
            if any(there.values()):
                missing = " and no ".join(split for split in SPLITS if not there[split])
                return (
                    f"{place}: {kind}, but no {missing} split of {title}. Looked for "
                    f"{looked_for(name)}. Found: {found}. Give all three splits."
                )
    if any(entry.suffix.lower() in PICKLES for entry in entries):
        mend = "Pickles are never opened, because unpickling runs code: save the images as files"
    elif any(entry.suffix.lower() in ARCHIVES for entry in entries):
        mend = "Unpack them"
    elif name == "omniglot" and _all_shards(data_dir):
        mend = f"Add {class_lists.CSV} or {', '.join(class_lists.TEXTS.values())}"
    else:
        mend = "Give the folder that holds one of these"
    otherwise = ", or omit --data-dir to download." if name in TITLES else "."
    return (
        f"{data_dir}: no {title} found. Looked for {looked_for(name)}. "
        f"Found: {found}. {mend}{otherwise}"
    )
