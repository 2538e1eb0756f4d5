"""Omniglot: its author's folders and Parquet shards, the split's lists, and the download."""

import functools
import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import Omniglot

from aal_bench.data import omniglot
from aal_bench.data.fewshot import load
from aal_bench.errors import UserError

CLASSES = {
    "Alpha/character01": ("images_background", "train"),
    "Alpha/character02": ("images_background", "val"),
    "Zed/character01": ("images_evaluation", "train"),
    "Zed/character02": ("images_evaluation", "test"),
}
EACH = 3
SIZE = 12


@pytest.fixture
def task(task):
    def make(classes: int = 2, **more):
        made = task(classes=classes, size=SIZE, **more)
        data = made.data.model_copy(update={"name": "omniglot"})
        return made.model_copy(update={"data": data})

    return make


@pytest.fixture
def drawings() -> dict[str, list[Image.Image]]:
    """Black strokes on white, 45x45 px of one bit."""
    rng = np.random.default_rng(0)
    return {
        name: [Image.fromarray(rng.random((45, 45)) > 0.2) for _ in range(EACH)] for name in CLASSES
    }


@pytest.fixture
def write_native(drawings):
    def write(folder: Path) -> Path:
        for name, images in drawings.items():
            home = folder / CLASSES[name][0] / name
            home.mkdir(parents=True)
            for i, image in enumerate(images):
                image.save(home / f"0001_{i:02}.png")
        return folder

    return write


def write_lists(folder: Path) -> Path:
    """Write the three text files as jakesnell/prototypical-networks has them."""
    for split in ("train", "val", "test"):
        names = [name for name, (_, home) in CLASSES.items() if home == split]
        lines = [f"{name}/rot{turn:03}" for name in names for turn in (0, 90, 180, 270)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def message(task, folder: Path | None) -> str:
    with pytest.raises(UserError) as error:
        load(task, folder)
    return str(error.value)


def check(data) -> None:
    assert data.class_names == {
        "train": ("Alpha/character01", "Zed/character01"),
        "validation": ("Alpha/character02",),
        "test": ("Zed/character02",),
    }


def test_folders_and_shards_of_the_same_images_are_the_same_set(
    tmp_path: Path, task, drawings, write_native, write_shard
) -> None:
    native = load(task(), write_lists(write_native(tmp_path / "a")))
    unpacked = write_native(tmp_path / "b" / "omniglot-py").parent
    shards = tmp_path / "c"
    for k, (part, names) in enumerate(
        (("background", list(CLASSES)[:2]), ("evaluation", list(CLASSES)[2:]))
    ):
        files = [
            file.read_bytes()
            for name in names
            for file in sorted((tmp_path / "a" / f"images_{part}" / name).iterdir())
        ]
        labels = np.repeat(np.arange(2 * k, 2 * k + 2), EACH)
        write_shard(shards / f"{part}-00000-of-00001.parquet", files, labels, names=CLASSES)
    rows = [
        f"{i},{name.replace('/', ',')},{part},{split}"
        for i, (name, (part, split)) in enumerate(CLASSES.items())
    ]
    header = "label,alphabet,character,part,vinyals_split"
    (shards / "classes.csv").write_text("\n".join([header, *rows]))
    shutil.copy(shards / "classes.csv", unpacked)
    for data in (native, load(task(), unpacked), load(task(), shards)):
        check(data)
        assert data.fingerprint == native.fingerprint
    (shards / "classes.csv").unlink()
    assert "Add classes.csv or train.txt, val.txt, test.txt, or omit" in message(task(), shards)
    assert load(task(), write_lists(shards)).fingerprint == native.fingerprint


def test_strokes_are_ones_on_zeros_resized_as_learn2learns_tasks_are(
    tmp_path: Path, task, drawings, write_native
) -> None:
    data = load(task(), write_lists(write_native(tmp_path)))
    resize = transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.LANCZOS)
    pipeline = transforms.Compose([resize, transforms.ToTensor(), lambda x: 1.0 - x])
    expected = torch.stack([pipeline(one.convert("L")) for one in drawings["Zed/character02"]])
    pixels = data.test.pixels(torch.arange(EACH)).float() / 255
    torch.testing.assert_close(pixels, expected.expand(-1, 3, -1, -1))
    assert pixels.mean() < 0.5
    assert data.notes == ("12 drawings resized to 12x12 px (Lanczos) and inverted: strokes are 1",)


def test_with_rotations_there_are_four_times_as_many_classes(
    tmp_path: Path, task, write_native
) -> None:
    data = load(task(classes=8, rotations=True), write_lists(write_native(tmp_path)))
    assert len(data.train) == 4 * 2 * EACH
    assert data.class_names["test"][3] == "Zed/character02/rot270"


def test_a_part_or_the_lists_are_missing(tmp_path: Path, task, write_native) -> None:
    folder = write_native(tmp_path)
    assert message(task(), folder) == (
        f"{folder}: Omniglot's images, but no list of the split's classes. Put train.txt, val.txt, "
        "test.txt there (jakesnell/prototypical-networks, data/omniglot/splits/vinyals/)."
    )
    write_lists(folder)
    shutil.rmtree(folder / "images_evaluation" / "Zed" / "character02")
    assert "no image of 1 of the classes that it lists (Zed/character02)" in message(task(), folder)
    shutil.rmtree(folder / "images_evaluation")
    assert "no images_evaluation/<alphabet>/<character>/. Unpack images_evaluation.zip" in message(
        task(), folder
    )


def test_a_class_and_its_rotation_in_two_splits(tmp_path: Path, task, write_native) -> None:
    folder = write_lists(write_native(tmp_path))
    with (folder / "test.txt").open("a") as file:
        file.write("Alpha/character01/rot090\n")
    assert "class Alpha/character01 lies in train and in test" in message(task(), folder)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, write_native, monkeypatch) -> Iterator[Path]:
    """Serve archives and lists over HTTP where torchvision and we look for them."""
    folder = tmp_path / "served"
    source = write_native(tmp_path / "source")
    write_lists(folder.parent / "source")
    folder.mkdir()
    for name in ("train.txt", "val.txt", "test.txt"):
        shutil.copy(source / name, folder)
    md5 = {}
    for part in ("images_background", "images_evaluation"):
        archive = shutil.make_archive(str(folder / part), "zip", source, part)
        md5[part] = hashlib.md5(Path(archive).read_bytes()).hexdigest()
    names = {"train": "train", "val": "validation", "test": "test"}
    lines = sorted(f"{names[split]} {name}\n" for name, (_, split) in CLASSES.items())
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(Omniglot, "download_url_prefix", url)
        monkeypatch.setattr(Omniglot, "zips_md5", md5)
        monkeypatch.setattr(omniglot, "LISTS", f"{url}/")
        monkeypatch.setattr(
            omniglot, "VINYALS", hashlib.sha256("".join(lines).encode()).hexdigest()
        )
        yield folder
        server.shutdown()
        thread.join()


def test_the_set_is_downloaded_once(served: Path, task, tmp_path: Path) -> None:
    data = load(task(), None)
    check(data)
    assert data.source == "torchvision"
    assert not data.official
    assert data.fingerprint == load(task(), tmp_path / "source").fingerprint
    shutil.rmtree(served)
    assert load(task(), None).fingerprint == data.fingerprint


def test_an_interrupted_unpacking_is_mended_by_the_next_attempt(
    served: Path, task, cache: Path
) -> None:
    whole = load(task(), None).fingerprint
    home = cache / "torchvision" / "omniglot-py" / "images_evaluation" / "Zed" / "character02"
    (home / "0001_00.png").unlink()
    (home / "0001_01.png").write_bytes((home / "0001_01.png").read_bytes()[:20])
    assert load(task(), None).fingerprint == whole


@pytest.mark.parametrize("wrong", ["Alpha/character09/rot000\n", "Zed/character02/rot000\n"])
def test_lists_that_are_not_the_published_split_are_not_kept(
    served: Path, task, cache: Path, wrong: str
) -> None:
    right = (served / "val.txt").read_text()
    (served / "val.txt").write_text(wrong)
    assert "the lists of classes are not the published split" in message(task(), None)
    assert not (cache / "torchvision" / "omniglot-py" / "val.txt").exists()
    (served / "val.txt").write_text(right)
    check(load(task(), None))


def test_without_a_network_the_error_says_what_was_tried_and_what_to_put_where(
    task, monkeypatch, cache: Path
) -> None:
    url = "http://127.0.0.1:9"  # the discard port: nobody listens
    monkeypatch.setattr(Omniglot, "download_url_prefix", url)
    first, second = message(task(), None).splitlines()
    folder = cache / "torchvision" / "omniglot-py"
    assert first.startswith(f"omniglot could not be downloaded from {url} and {omniglot.LISTS} ")
    assert f"to {folder} (" in first
    assert second == (
        "Put images_background.zip and images_evaluation.zip and train.txt, val.txt, test.txt "
        "there, or give --data-dir with them unpacked."
    )
