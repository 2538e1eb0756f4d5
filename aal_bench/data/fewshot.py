"""From a few-shot task and a ``--data-dir`` to three splits with classes of their own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aal_bench.config import Task
from aal_bench.data import fewshot_decode, fewshot_hub, fewshot_layouts, glyphs, omniglot
from aal_bench.data.fewshot_layouts import Layout
from aal_bench.data.fewshot_splits import SPLITS, Part, few, number
from aal_bench.data.fingerprint import fingerprint
from aal_bench.data.sources import Origin, Pixels
from aal_bench.data.splits import InMemory
from aal_bench.errors import UserError
from aal_bench.paths import cache_folder
from aal_bench.progress import track

TURNS = 4
"""Quarter turns, 0 included, that make a class four (Santoro et al. 2016)."""


@dataclass(frozen=True)
class FewShotData:
    """A few-shot task's images; labels are 0..C-1 within each split, images lie class by class."""

    train: InMemory
    validation: InMemory
    test: InMemory
    class_names: dict[str, tuple[str, ...]]
    """Of ``train``, ``validation`` and ``test``; no name is in two of them."""
    source: Origin
    official: bool
    """The embedded set; else label rows by the fingerprint."""
    fingerprint: dict[str, str]
    """Of `test`: ``pixels`` and ``labels`` (hex sha256) and ``count``."""
    notes: tuple[str, ...]
    """What was converted, one line each, to be told once."""


def load(task: Task, data_dir: Path | None) -> FewShotData:
    """Read a task's three splits from `data_dir`, or embedded or downloaded without one.

    Raises:
        UserError: the data is missing, incomplete, damaged, or other than the task's.
    """
    name, size = task.data.name, task.data.size
    for unused in ("resize", "subset"):
        if getattr(task.data, unused) is not None:
            raise UserError(f"task {task.name}: a few-shot task has no data.{unused}; remove it")
    turns = TURNS if task.episodes is not None and task.episodes.rotations else 1
    notes: tuple[str, ...] = ()
    source: Origin = "embedded"
    if name == "glyphs":
        if data_dir is not None:
            raise UserError(f"task {task.name}: its images are embedded; omit --data-dir")
        names = glyphs.names()
        _check_classes(names["train"], turns, task, name)
        pixels = glyphs.read(size)
    else:
        where = str(data_dir) if data_dir is not None else name
        listed, source = _find(task, data_dir)
        parts, notes = number(listed, where)
        names = {split: parts[split].names for split in SPLITS}
        _check_classes(names["train"], turns, task, where)
        pixels, converted = _decode(parts, name, size)
        notes += converted
    splits = {}
    for split in SPLITS:
        turned, names[split] = rotate(pixels.pop(split), names[split], turns)
        splits[split] = InMemory(torch.from_numpy(turned.images), torch.from_numpy(turned.labels))
    return FewShotData(
        **splits,
        class_names=names,
        source=source,
        official=source == "embedded",
        fingerprint=fingerprint(splits["test"]),
        notes=notes,
    )


def rotate(pixels: Pixels, names: tuple[str, ...], turns: int) -> tuple[Pixels, tuple[str, ...]]:
    """Make each class `turns` classes: itself, and its images turned by 90, 180, ... degrees.

    Anticlockwise; class k turned q times is class ``q C + k``, ``name/rot090`` for q = 1.
    """
    if turns == 1:
        return pixels, names
    count, classes = len(pixels.labels), len(names)
    images = np.empty((turns * count, *pixels.images.shape[1:]), np.uint8)
    for q in range(turns):
        images[q * count : (q + 1) * count] = np.rot90(pixels.images, q, (2, 3))
    labels = np.concatenate([pixels.labels + q * classes for q in range(turns)])
    turned = (f"{name}/rot{90 * q:03}" for q in range(1, turns) for name in names)
    return Pixels(images, labels), (*names, *turned)


def enough(
    labels: Tensor | np.ndarray,
    names: tuple[str, ...],
    ways: int,
    shots: int,
    queries: int,
    where: str,
    keys: tuple[str, str, str] = ("episodes.ways", "episodes.shots", "episodes.queries"),
) -> None:
    """Make sure that every episode of `ways` classes can be drawn from a split.

    Args:
        labels: int64 (N,), 0..C-1.
        names: of the C classes.
        ways: classes of an episode.
        shots: support images of each class.
        queries: query images of each class.
        where: names the split, and opens the error: ``test split``.
        keys: what ways, shots and queries are called where they are set.

    Raises:
        UserError: fewer classes than `ways`, or a class with fewer than shots + queries images.
    """
    if len(names) < ways:
        raise UserError(
            f"{where}: {len(names)} classes, but an episode has {ways}. Lower {keys[0]}."
        )
    counts = np.bincount(np.asarray(labels), minlength=len(names))
    short = np.flatnonzero(counts < shots + queries)
    if len(short):
        shown = few(f"{names[i]}: {counts[i]}" for i in short)
        raise UserError(
            f"{where}: {len(short)} of {len(names)} classes have fewer than {shots + queries} "
            f"images ({shown}). Lower {keys[1]} or {keys[2]}."
        )


def _find(task: Task, data_dir: Path | None) -> Layout:
    name = task.data.name
    if data_dir is not None:
        return fewshot_layouts.read(data_dir, name)
    if name == "omniglot":
        return Layout(omniglot.download(cache_folder() / "torchvision"), "torchvision")
    if name in fewshot_hub.HOMES:
        return fewshot_layouts.read(fewshot_hub.fetch(name), name)
    raise UserError(
        f"task {task.name}: {name} cannot be downloaded. "
        f"Give --data-dir with one of {fewshot_layouts.looked_for(name)}."
    )


def _check_classes(names: tuple[str, ...], turns: int, task: Task, where: str) -> None:
    found, wanted = len(names) * turns, task.data.classes
    if found != wanted:
        times = f", {turns} times each by episodes.rotations" if turns > 1 else ""
        raise UserError(
            f"{where}: {found:,} training classes ({few(names)}{times}), but task {task.name} has "
            f"{wanted:,}. Give that set's folder, or set data.classes."
        )


def _decode(
    parts: dict[str, Part], name: str, size: int
) -> tuple[dict[str, Pixels], tuple[str, ...]]:
    convert = fewshot_decode.drawing if name == "omniglot" else fewshot_decode.photograph
    pixels: dict[str, Pixels] = {}
    counts: Counter[str] = Counter()
    with track("images", sum(len(part.labels) for part in parts.values())) as progress:
        for split, part in parts.items():
            images, converted = fewshot_decode.decode(part, size, convert, progress.advance)
            pixels[split] = Pixels(images, part.labels)
            counts.update(converted)
    return pixels, fewshot_decode.notes(counts, size)
