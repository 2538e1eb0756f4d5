"""The fingerprint: a plain sha256 that anybody can recompute, sensitive to every byte."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from aal_bench.data import fingerprint as module
from aal_bench.data import folders
from aal_bench.data.fingerprint import compute, fingerprint
from aal_bench.data.on_disk import OnDisk
from aal_bench.data.splits import InMemory

# All 256 byte values, and more images than one batch holds.
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(300) % 7


def of(images: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    return fingerprint(InMemory(torch.from_numpy(images), torch.from_numpy(labels)))


def test_it_is_the_sha256_of_a_header_line_and_the_bytes() -> None:
    assert of(IMAGES, LABELS) == {
        "pixels": hashlib.sha256(b"uint8 300,3,4,4\n" + IMAGES.tobytes()).hexdigest(),
        "labels": hashlib.sha256(b"int64 300\n" + LABELS.astype("<i8").tobytes()).hexdigest(),
        "count": "300",
    }


def test_one_grey_level_of_one_pixel_the_order_and_a_label_each_show() -> None:
    base = of(IMAGES, LABELS)
    nudged = IMAGES.copy()
    nudged[299, 2, 3, 3] ^= 1
    assert of(nudged, LABELS)["pixels"] != base["pixels"]
    assert of(IMAGES[::-1].copy(), LABELS)["pixels"] != base["pixels"]
    relabelled = LABELS.copy()
    relabelled[0] = 6
    assert of(IMAGES, relabelled)["pixels"] == base["pixels"]
    assert of(IMAGES, relabelled)["labels"] != base["labels"]


def test_a_subset_is_hashed_as_the_images_it_holds() -> None:
    whole = InMemory(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    part = whole.subset(torch.tensor([5, 299]))
    assert fingerprint(part) == of(IMAGES[[5, 299]], LABELS[[5, 299]])


def test_a_split_on_disk_is_decoded_once_and_again_when_a_file_changes(
    tmp_path: Path, small, write_folders, encode, monkeypatch
) -> None:
    folder = write_folders(tmp_path / "a", small)
    passes = []

    def counted(split):
        passes.append(1)
        return compute(split)

    monkeypatch.setattr(module, "compute", counted)

    def fresh() -> OnDisk:
        return OnDisk(folders.read(folder, "test").test, 32, 32, workers=0)

    first = fingerprint(fresh())
    assert first == of(small.test, small.test_labels)
    before = len(passes)
    assert fingerprint(fresh()) == first
    assert len(passes) == before
    assert fingerprint(fresh().subset(torch.tensor([0, 1]))) != first
    file = folder / "test" / "ant" / "0000.png"
    file.write_bytes(encode(255 - small.test[0]))
    os.utime(file, ns=(1, 1))
    assert fingerprint(fresh()) != first


def test_a_damaged_cache_entry_is_computed_again(
    tmp_path: Path, small, write_folders, cache: Path
) -> None:
    source = folders.read(write_folders(tmp_path / "a", small), "test").test
    first = fingerprint(OnDisk(source, 32, 32, workers=0))
    (entry,) = (cache / "fingerprints").iterdir()
    entry.write_text('{"pixels": ')
    assert fingerprint(OnDisk(source, 32, 32, workers=0)) == first
