"""Small folders of VOC's and of COCO's layout: noise, with a red or blue rectangle an object."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from aal_bench.config import Task

NAMES = ("cat", "dog")
SIZE = (96, 64)
SPLITS = {"train": 4, "val": 2, "test": 3}


class Thing(NamedTuple):
    """An object: class, box from 0 with its right and lower edge excluded, VOC's ``difficult``."""

    name: str
    box: Sequence[float]
    difficult: int = 0


def picture(things: Sequence[Thing], size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(90, 160, (size[1], size[0], 3), dtype=np.uint8)
    for name, (x1, y1, x2, y2), _ in things:
        colour = (220, 30, 30) if name == NAMES[0] else (30, 30, 220)
        pixels[max(0, int(y1)) : int(y2), max(0, int(x1)) : int(x2)] = colour
    return Image.fromarray(pixels)


def scene(size: tuple[int, int], seed: int) -> list[Thing]:
    """One or two objects of at least a quarter of the side, whole within the image."""
    rng = np.random.default_rng(seed)
    found = []
    for name in NAMES[: 1 + seed % 2] if seed % 3 else NAMES[1:]:
        wide, high = (int(rng.integers(side // 4, side // 2)) for side in size)
        x, y = int(rng.integers(size[0] - wide)), int(rng.integers(size[1] - high))
        found.append(Thing(name, (x, y, x + wide, y + high)))
    return found


def voc_xml(things: Sequence[Thing], size: tuple[int, int] | None = SIZE) -> str:
    """VOC counts from 1 and includes both ends: 0..10 excluded is 1..10 included."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, (x1, y1, x2, y2), difficult in things
    )
    stated = "" if size is None else "<size><width>{}</width><height>{}</height></size>"
    return f"<annotation>{stated.format(*(size or ()))}{objects}</annotation>"


@pytest.fixture
def write_voc() -> Callable[..., Path]:
    """``write_voc(folder, "a", [Thing, ...], split="train")``: an image, its XML, a line."""

    def write(
        folder: Path,
        name: str,
        things: Sequence[Thing],
        split: str = "train",
        size: tuple[int, int] = SIZE,
        seed: int = 0,
    ) -> Path:
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        picture(things, size, seed).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(things, size))
        with (folder / "ImageSets/Main" / f"{split}.txt").open("a") as listed:
            listed.write(f"{name}\n")
        return folder

    return write


@pytest.fixture
def voc_folder(write_voc) -> Callable[..., Path]:
    """``voc_folder(folder, {"train": 4, ...}, size=(96, 64), seed=0)``: clean, of VOC's layout."""

    def make(
        folder: Path,
        splits: dict[str, int] = SPLITS,
        size: tuple[int, int] = SIZE,
        seed: int = 0,
    ) -> Path:
        number = 100 * seed
        for split, count in splits.items():
            for i in range(count):
                write_voc(folder, f"{split}{i}", scene(size, number), split, size, number)
                number += 1
        return folder

    return make


def coco_tree(images: dict[str, Sequence[Thing]], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A COCO file's content; ids of categories have a gap, as COCO's have."""
    numbers = {name: 3 * i + 1 for i, name in enumerate(NAMES)}
    pairs = [(i, thing) for i, things in enumerate(images.values()) for thing in things]
    return {
        "images": [
            {"id": i, "file_name": name, "width": size[0], "height": size[1]}
            for i, name in enumerate(images)
        ],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [
            {
                "id": k,
                "image_id": i,
                "category_id": numbers[thing.name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for k, (i, thing) in enumerate(pairs)
            for x1, y1, x2, y2 in [thing.box]
        ],
    }


@pytest.fixture
def coco_folder() -> Callable[..., Path]:
    """``coco_folder(folder, {"train": 4, ...}, size=(96, 64), seed=0)``: clean, COCO's layout."""

    def make(
        folder: Path,
        splits: dict[str, int] = SPLITS,
        size: tuple[int, int] = SIZE,
        seed: int = 0,
    ) -> Path:
        number = 100 * seed
        (folder / "annotations").mkdir(parents=True)
        for split, count in splits.items():
            (folder / f"{split}2017").mkdir()
            images = {f"{split}{i}.jpg": scene(size, number + i) for i in range(count)}
            for i, (name, things) in enumerate(images.items()):
                picture(things, size, number + i).save(folder / f"{split}2017" / name, quality=95)
            number += count
            path = folder / "annotations" / f"instances_{split}2017.json"
            path.write_text(json.dumps(coco_tree(images, size)))
        return folder

    return make


@pytest.fixture
def coco_json() -> Callable[..., dict[str, Any]]:
    """`coco_tree`."""
    return coco_tree


@pytest.fixture
def thing() -> type[Thing]:
    """`Thing`."""
    return Thing


@pytest.fixture
def xml() -> Callable[..., str]:
    """`voc_xml`."""
    return voc_xml


@pytest.fixture
def detection_task() -> Callable[..., Task]:
    """``detection_task("voc", train="train", test="test", names=("cat", "dog"), size=96)``."""

    def make(
        name: str = "voc",
        train: str = "train",
        test: str = "test",
        validation: str | None = None,
        names: Sequence[str] = NAMES,
        size: int = 96,
    ) -> Task:
        metric = "map_coco" if name == "coco" else "map50_area"
        return Task.model_validate(
            {
                "name": "toy",
                "title": "toy",
                "family": "detection",
                "data": {"name": name, "classes": len(names) or 2, "size": size},
                "threat": {"eps": "8/255"},
                "attack": {"step": "2/255"},
                "train": {"epochs": 1, "lr": 0.1, "augment": "ssd", "validation": 1},
                "model": "ssd512-resnet34",
                "detection": {
                    "names": list(names),
                    "metric": metric,
                    "config": "voc0712",
                    "train": train,
                    "validation": validation,
                    "test": test,
                },
            }
        )

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache out of the tests and the tests out of it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AAL_BENCH_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def scope() -> None:
    """Let configs name what MMDetection registers, as MMEngine's Runner does."""
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """The module `small`; its ``__file__`` is also a program."""
    path = Path(__file__).with_name("small.py")
    spec = importlib.util.spec_from_file_location("detection_small", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_detector(small) -> Callable[..., Any]:
    """`small.detector`."""
    return small.detector


@pytest.fixture(scope="session")
def make_batch(small) -> Callable[..., Any]:
    """`small.batch`."""
    return small.batch


@pytest.fixture
def small_networks(small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of ``ssd512-resnet34`` train the small network."""
    from aal_bench.detection import mmconfig

    whole = mmconfig.plain
    monkeypatch.setattr(mmconfig, "plain", lambda *names: small.shrink(whole(*names)))


@pytest.fixture(scope="session")
def server(small) -> Iterator[Any]:
    """`small.Server`."""
    command = [sys.executable, small.__file__]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        yield small.Server(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
