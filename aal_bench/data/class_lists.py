"""Which split a class belongs to, where a file beside the images says so.

``classes.csv`` with a column ``split`` (Omniglot: ``vinyals_split``) and the class as ``label``,
``name``, ``class`` or ``alphabet`` and ``character``; or ``train.txt``, ``val.txt`` and
``test.txt`` with a line ``Alphabet/character01/rot000`` for each class and rotation, as
jakesnell/prototypical-networks has them.
"""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from aal_bench.data.fewshot_splits import SPLITS, Listed, check_labels, few
from aal_bench.data.sources import Source
from aal_bench.errors import UserError

CSV = "classes.csv"
TEXTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
SPLIT_COLUMNS = ("vinyals_split", "split")
NAME_COLUMNS = ("name", "class")
K = TypeVar("K", str, int)


class ClassList(NamedTuple):
    """The split of every class, by name, by label or both."""

    file: str
    by_name: dict[str, str]
    by_label: dict[int, str]
    labels: dict[str, int]
    """Name to label, where the file has both."""


def look(*places: Path) -> ClassList | None:
    """Read the first class list that lies in one of `places`.

    Raises:
        UserError: it cannot be understood, or puts a class into two splits.
    """
    for place in places:
        if (place / CSV).is_file():
            return read_csv(place / CSV)
        if all((place / name).is_file() for name in TEXTS.values()):
            return read_texts(place)
    return None


def read_texts(folder: Path) -> ClassList:
    """Read ``train.txt``, ``val.txt`` and ``test.txt``; rotations of a class are one class."""
    by_name: dict[str, str] = {}
    for split, name in TEXTS.items():
        for line in _text(folder / name).splitlines():
            one = re.sub(r"/rot\d+$", "", line.strip())
            if one:
                _put(by_name, one, split, folder / name)
    return ClassList(f"{few(TEXTS.values())} in {folder}", by_name, {}, {})


def read_csv(file: Path) -> ClassList:
    """Read ``classes.csv``."""
    rows = list(csv.DictReader(_text(file).splitlines()))
    columns = set(rows[0]) if rows else set()
    split = next((one for one in SPLIT_COLUMNS if one in columns), None)
    name = next((one for one in NAME_COLUMNS if one in columns), None)
    pair = {"alphabet", "character"} <= columns
    if split is None or not (name or pair or "label" in columns):
        raise UserError(
            f"{file}: needs a column split, and label, name, class or alphabet and character. "
            f"Found: {', '.join(map(str, columns)) or 'nothing'}."
        )
    found = ClassList(str(file), {}, {}, {})
    for row in rows:
        home = {"val": "validation"}.get(row[split], row[split])
        if home not in SPLITS:
            raise UserError(f"{file}: {split} {row[split]!r} is none of {', '.join(SPLITS)}.")
        one = f"{row['alphabet']}/{row['character']}" if pair else row[name] if name else None
        if one is not None:
            _put(found.by_name, one, home, file)
        if "label" in columns:
            label = _label(row["label"], file)
            _put(found.by_label, label, home, file)
            if one is not None:
                found.labels[one] = label
    return found


def assign(
    source: Source, labels: np.ndarray, names: tuple[str, ...] | None, classes: ClassList
) -> dict[str, Listed]:
    """Divide the images of `source` among the splits by their classes.

    Raises:
        UserError: a class in no split, a listed class without an image, or other names for the
            labels than the images have.
    """
    check_labels(labels, names, classes.file)
    for name, label in classes.labels.items():
        if names is not None and names[label : label + 1] not in ((), (name,)):
            raise UserError(
                f"{classes.file}: label {label} is {name}, but the images' class {label} is "
                f"{names[label]}. Give the list that belongs to these images."
            )
    if names is None and not classes.by_label:
        raise UserError(f"{classes.file}: lists names, but the images' classes are numbers.")
    present = np.unique(labels).tolist()
    if names is not None and classes.by_name:
        homes = {label: classes.by_name.get(names[label]) for label in present}
        listed = set(classes.by_name) - {names[label] for label in present}
    else:
        homes = {label: classes.by_label.get(label) for label in present}
        listed = {str(label) for label in set(classes.by_label) - set(present)}
    shown = {label: names[label] if names is not None else str(label) for label in present}
    homeless = [shown[label] for label in present if homes[label] is None]
    if homeless:
        raise UserError(
            f"{classes.file}: {len(homeless)} of the images' {len(present)} classes are in no "
            f"split ({few(homeless)}). List them, or remove their images."
        )
    if listed:
        raise UserError(
            f"{classes.file}: no image of {len(listed)} of the classes that it lists "
            f"({few(sorted(listed))}). Complete the set."
        )
    home = np.array([SPLITS.index(homes[label] or "") for label in present])
    of_image = home[np.searchsorted(present, labels)]
    rows = {split: np.flatnonzero(of_image == k) for k, split in enumerate(SPLITS)}
    return {split: Listed(source, part, labels[part], names) for split, part in rows.items()}


def digest(classes: ClassList) -> str:
    """The sha256 of the sorted lines ``<split> <name>``: the same for every way to list them."""
    lines = sorted(f"{split} {name}\n" for name, split in classes.by_name.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}).") from None


def _put(homes: dict[K, str], one: K, split: str, file: Path) -> None:
    if homes.setdefault(one, split) != split:
        raise UserError(
            f"{file}: class {one} lies in {homes[one]} and in {split}. "
            "Few-shot splits share no class."
        )


def _label(text: str, file: Path) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise UserError(f"{file}: label {text!r} is no whole number.") from None
