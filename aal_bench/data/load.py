"""From a task and a ``--data-dir`` to splits ready for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aal_bench.config import Data, Task
from aal_bench.data import digits, layouts, torchvision_native
from aal_bench.data.decode import decode_all
from aal_bench.data.fingerprint import fingerprint
from aal_bench.data.on_disk import OnDisk
from aal_bench.data.sources import Found, Origin, Pixels, Source
from aal_bench.data.splits import InMemory, Split
from aal_bench.data.subset import balanced
from aal_bench.errors import UserError
from aal_bench.paths import cache_folder


@dataclass(frozen=True)
class ImageData:
    """A task's images."""

    train: Split
    test: Split
    """The task's test set: the subset where the task fixes one."""
    class_names: tuple[str, ...]
    source: Origin
    official: bool
    """Read by the toolkit's own loader with its checksums; else label rows by the fingerprint."""
    fingerprint: dict[str, str]
    """Of `test`: ``pixels`` and ``labels`` (hex sha256) and ``count``."""


def load(task: Task, data_dir: Path | None) -> ImageData:
    """Read a task's images from `data_dir`, or embedded or downloaded without one.

    Raises:
        UserError: the data is missing, incomplete, damaged, or other than the task's.
    """
    found = _find(task, data_dir)
    where = str(data_dir) if data_dir is not None else task.data.name
    _check_classes(found, task, where)
    train, test = (_split(part, task.data, where) for part in (found.train, found.test))
    if task.data.subset is not None:
        chosen = balanced(test.labels.numpy(), task.data.subset.count, task.data.subset.seed)
        test = test.subset(torch.from_numpy(chosen))
    return ImageData(
        train, test, found.class_names, found.source, found.official, fingerprint(test)
    )


def _find(task: Task, data_dir: Path | None) -> Found:
    name = task.data.name
    if name == "digits":
        if data_dir is not None:
            raise UserError(f"task {task.name}: its images are embedded; omit --data-dir")
        return digits.read(task.data.size)
    if data_dir is not None:
        return layouts.read(data_dir, task.data)
    if name in torchvision_native.CIFAR_FOLDERS:
        return torchvision_native.download_cifar(cache_folder() / "torchvision", name)
    raise UserError(
        f"task {task.name}: {layouts.TITLES.get(name, name)} cannot be downloaded. "
        f"Give --data-dir with one of {layouts.looked_for(name)}."
    )


def _check_classes(found: Found, task: Task, where: str) -> None:
    names, wanted = found.class_names, task.data.classes
    if len(names) != wanted:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"{where}: {len(names)} classes ({shown}), but task {task.name} has {wanted}. "
            "Give that set's folder, or choose another task."
        )
    for split, part in (("train", found.train), ("test", found.test)):
        labels = part.labels
        if not len(labels):
            raise UserError(f"{where}: the {split} split holds no images")
        if labels.min() < 0 or labels.max() >= wanted:
            raise UserError(
                f"{where}: {split} labels run from {labels.min()} to {labels.max()}, but task "
                f"{task.name} has classes 0 to {wanted - 1}. Unlabelled images (-1) cannot be used."
            )
    absent = np.setdiff1d(np.arange(wanted), found.train.labels)
    if len(absent):
        raise UserError(
            f"{where}: no training image of {len(absent)} of {wanted} classes "
            f"({names[absent[0]]}, ...). Complete the set, or choose another task."
        )


def _split(part: Source | Pixels, data: Data, where: str) -> Split:
    if not isinstance(part, Pixels):
        if data.resize is not None:
            return OnDisk(part, data.size, data.resize)
        part = decode_all(part, data.size)
    side = part.images.shape[-1]
    if side != data.size:
        raise UserError(
            f"{where}: {side}x{side} images, but the task takes {data.size}x{data.size}. "
            "Set data.size to that."
        )
    return InMemory(torch.from_numpy(part.images), torch.from_numpy(part.labels))
