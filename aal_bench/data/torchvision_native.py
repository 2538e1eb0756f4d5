"""Reader of torchvision's own layouts, by torchvision's own loaders and checksums.

The CIFAR files are pickles. They are unpickled by torchvision, after their md5 matched the one in
its source; nothing else that a user supplies is ever unpickled.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aal_bench.data.folders import ImageFiles
from aal_bench.data.sources import Found, Pixels
from aal_bench.errors import UserError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
IMAGENET_META = "meta.bin"
"""Written by `torchvision.datasets.ImageNet` when it unpacks the devkit."""
STALL = 30.0
"""Seconds without a byte after which a download is given up."""


def cifar_root(data_dir: Path, name: str) -> Path | None:
    """Return torchvision's ``root`` when `data_dir` holds or is the folder of the pickles."""
    folder = CIFAR_FOLDERS.get(name)
    if folder is None:
        return None
    if (data_dir / folder).is_dir():
        return data_dir
    return data_dir.parent if data_dir.resolve().name == folder else None


def _cifar_class(name: str) -> type[CIFAR10]:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def read_cifar(root: Path, name: str) -> Found:
    """Read CIFAR's pickles below `root`, every file checked first.

    Raises:
        UserError: a file is missing or is not the published one; names it.
    """
    from torchvision.datasets.utils import check_integrity

    loader = _cifar_class(name)
    meta = [loader.meta["filename"], loader.meta["md5"]]
    for file, md5 in [*loader.train_list, *loader.test_list, meta]:
        path = root / loader.base_folder / file
        if not path.is_file():
            raise UserError(f"{path}: missing. Unpack {loader.filename} again.")
        if not check_integrity(str(path), md5):
            raise UserError(
                f"{path}: not the published file (md5 differs), so it is not opened. "
                f"Unpack {loader.filename} again."
            )
    train, test = (loader(str(root), train=part) for part in (True, False))
    return Found(_pixels(train), _pixels(test), tuple(train.classes), "torchvision", official=True)


def _pixels(dataset: CIFAR10) -> Pixels:
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return Pixels(images, np.array(dataset.targets, np.int64))


def download_cifar(root: Path, name: str) -> Found:
    """Read CIFAR from `root`, downloaded by torchvision when it is not (completely) there.

    A broken download is no set: torchvision compares the archive's md5, and every file is compared
    again before it is read.

    Raises:
        UserError: it cannot be downloaded or written; says what was tried and what to put where.
    """
    loader = _cifar_class(name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with impatient():
            loader(str(root), download=True)
    except (OSError, EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name} could not be downloaded from {loader.url} to {root} ({reason}).\n"
            f"Unpack {loader.filename} there, or give --data-dir with {loader.base_folder}/, "
            "{train,test}-*.parquet or {train,test}/<class>/."
        ) from None
    return read_cifar(root, name)


@contextmanager
def impatient() -> Iterator[None]:
    """Let a silent connection fail: torchvision sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def is_imagenet(data_dir: Path) -> bool:
    """Tell whether `torchvision.datasets.ImageNet` unpacked its archives here."""
    return all((data_dir / part).exists() for part in (IMAGENET_META, "train", "val"))


def read_imagenet(data_dir: Path) -> Found:
    """Read ImageNet as `torchvision.datasets.ImageNet` unpacked it.

    Not ``official``: the checksums are of the archives, and nothing vouches for the files since.

    Raises:
        UserError: the folders or their list of names are damaged.
    """
    import pickle

    from torchvision.datasets import ImageNet

    try:
        train, val = (ImageNet(str(data_dir), part) for part in ("train", "val"))
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{data_dir}: not what torchvision.datasets.ImageNet unpacks ({reason}). "
            f"Remove {IMAGENET_META} to read train/ and val/ as class folders."
        ) from None
    names = tuple(
        f"{wnid} {words[0]}" for wnid, words in zip(train.wnids, train.classes, strict=True)
    )
    files = [ImageFiles(data_dir / s.split, s.samples) for s in (train, val)]
    return Found(files[0], files[1], names, "torchvision")
