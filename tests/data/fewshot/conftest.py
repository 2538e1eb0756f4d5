"""One small few-shot set of lossless images, written in each of the layouts that are accepted."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from aal_bench.config import Episodes

NAMES = {"train": ("ape", "bat", "cat"), "validation": ("dog", "eel"), "test": ("fox", "gnu")}
EACH = 4


class Toy(NamedTuple):
    """Of each split uint8 (N, 3, 8, 8), class by class, its classes, and the label of the first."""

    images: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]
    first: dict[str, int]


@pytest.fixture
def toy() -> Toy:
    rng = np.random.default_rng(0)
    images = {
        split: rng.integers(0, 256, (EACH * len(names), 3, 8, 8), dtype=np.uint8)
        for split, names in NAMES.items()
    }
    return Toy(images, NAMES, {"train": 0, "validation": 3, "test": 5})


@pytest.fixture
def task(make_task):
    def make(classes: int = 3, size: int = 8, rotations: bool = False, **data):
        made = make_task("toy-fs", classes, size, **data)
        episodes = Episodes(rotations=rotations)
        return made.model_copy(update={"family": "fewshot", "episodes": episodes})

    return make


@pytest.fixture
def write_class_folders(encode):
    def write(folder: Path, toy: Toy, validation: str = "val") -> Path:
        for split, images in toy.images.items():
            home = folder / {"validation": validation}.get(split, split)
            for i, image in enumerate(images):
                file = home / toy.names[split][i // EACH] / f"{i:02}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode(image))
        return folder

    return write


@pytest.fixture
def write_three_shards(encode, write_shard):
    """Write ``<split>-*.parquet``, rows in turn; labels count on from split to split, or anew."""

    def write(folder: Path, toy: Toy, *, counted="on", names=True, validation="validation") -> Path:
        everyone = sum(toy.names.values(), ())
        for split, images in toy.images.items():
            labels = np.arange(len(images)) // EACH + (toy.first[split] if counted == "on" else 0)
            mixed = np.argsort(np.arange(len(images)) % EACH, kind="stable")
            known = everyone if counted == "on" else toy.names[split]
            file = {"validation": validation}.get(split, split)
            for k, part in enumerate(np.array_split(mixed, 2)):
                write_shard(
                    folder / f"{file}-{k:05}-of-00002.parquet",
                    [encode(images[i]) for i in part],
                    labels[part],
                    image="image",
                    names=known if names else None,
                )
        return folder

    return write
