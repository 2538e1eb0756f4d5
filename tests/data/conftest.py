"""One small set of lossless images, written in each of the layouts that are accepted."""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from aal_bench.config import Task

CLASSES = ("ant", "bee", "cow")
SIDE = 32


class Small(NamedTuple):
    """uint8 (N, 3, 32, 32) and int64 (N,), sorted by class so that all layouts keep one order."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


@pytest.fixture
def small() -> Small:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (15 + 9, 3, SIDE, SIDE), dtype=np.uint8)
    return Small(images[:15], np.repeat(np.arange(3), 5), images[15:], np.repeat(np.arange(3), 3))


@pytest.fixture
def make_task():
    def make(name: str = "cifar10", classes: int = 3, size: int = SIDE, **data) -> Task:
        return Task.model_validate(
            {
                "name": "toy",
                "title": "toy",
                "data": {"name": name, "classes": classes, "size": size, **data},
                "threat": {"eps": "8/255"},
                "attack": {"step": "2/255"},
                "train": {"epochs": 1, "lr": 0.1},
                "model": "cnn4",
            }
        )

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache out of the tests and the tests out of it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AAL_BENCH_CACHE", str(folder))
    return folder


def png(pixels: np.ndarray) -> bytes:
    """Encode (3, H, W), or (H, W) as grey, or (4, H, W) as RGBA."""
    buffer = io.BytesIO()
    array = pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def encode():
    return png


@pytest.fixture
def write_shard():
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(file: Path, encoded, labels, *, image="img", label="label", names=CLASSES) -> None:
        # `path` lies about the class on purpose: nothing may believe it.
        structs = [{"bytes": b, "path": f"cow/{i}.png"} for i, b in enumerate(encoded)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = [pa.array(structs, kind), pa.array(labels, pa.int64())]
        table = pa.Table.from_arrays(columns, names=[image, label])
        if names is not None:
            features = {
                image: {"_type": "Image"},
                label: {"names": list(names), "_type": "ClassLabel"},
            }
            info = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": info})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, compression="zstd")

    return write


@pytest.fixture
def write_parquet(write_shard):
    def write(folder: Path, small: Small, *, test="test", **columns) -> Path:
        for split, images, labels in (
            ("train", small.train, small.train_labels),
            (test, small.test, small.test_labels),
        ):
            half = len(images) // 2
            for k, part in enumerate((slice(0, half), slice(half, None))):
                file = folder / f"{split}-{k:05d}-of-00002.parquet"
                write_shard(file, [png(p) for p in images[part]], labels[part], **columns)
        return folder

    return write


@pytest.fixture
def write_folders():
    def write(folder: Path, small: Small, *, test="test") -> Path:
        for split, images, labels in (
            ("train", small.train, small.train_labels),
            (test, small.test, small.test_labels),
        ):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                file = folder / split / CLASSES[label] / f"{i:04d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(png(image))
        return folder

    return write


@pytest.fixture
def write_pickles(monkeypatch: pytest.MonkeyPatch):
    """Write torchvision's CIFAR-10 layout, and make its table of md5 sums fit the small files."""
    from torchvision.datasets import CIFAR10

    def write(root: Path, small: Small) -> Path:
        folder = root / CIFAR10.base_folder
        folder.mkdir(parents=True)

        def dump(name: str, content: dict) -> list[str]:
            encoded = pickle.dumps(content, protocol=2)
            (folder / name).write_bytes(encoded)
            return [name, hashlib.md5(encoded).hexdigest()]

        def batch(images: np.ndarray, labels: np.ndarray) -> dict:
            return {"data": images.reshape(len(images), -1), "labels": labels.tolist()}

        train = [
            dump(f"data_batch_{k + 1}", batch(small.train[part], small.train_labels[part]))
            for k, part in enumerate(np.split(np.arange(15), 5))
        ]
        test = [dump("test_batch", batch(small.test, small.test_labels))]
        name, md5 = dump("batches.meta", {"label_names": list(CLASSES)})
        monkeypatch.setattr(CIFAR10, "train_list", train)
        monkeypatch.setattr(CIFAR10, "test_list", test)
        monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
        return root

    return write
