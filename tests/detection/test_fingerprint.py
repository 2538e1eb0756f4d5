"""The fingerprint of a detection test set: recomputed by hand, sensitive to whatever is fed."""

import hashlib
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from aal_bench.detection import fingerprint as module
from aal_bench.detection.checked import CheckedCoco, CheckedVOC
from aal_bench.detection.fingerprint import compute, fingerprint

SIZE = (80, 48)  # width and height fed, of images of 96 x 64


def pipeline(size=SIZE, **resize) -> list[dict]:
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": size, "keep_ratio": False} | resize,
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs"},
    ]


@pytest.fixture
def dataset():
    def make(folder: Path, split: str = "test", steps: list[dict] | None = None) -> CheckedVOC:
        return CheckedVOC(
            data_root=str(folder),
            ann_file=f"ImageSets/Main/{split}.txt",
            data_prefix={"sub_data_root": ""},
            metainfo={"classes": ("cat", "dog")},
            pipeline=steps or pipeline(),
            test_mode=True,
            serialize_data=False,
        )

    return make


def test_it_is_the_sha256_of_a_header_line_the_rgb_bytes_and_the_boxes(
    voc_folder, write_voc, thing, dataset, tmp_path
) -> None:
    folder = voc_folder(tmp_path / "voc", {"test": 2})
    things = [thing("dog", (10, 20, 30, 40)), thing("cat", (50, 5, 90, 60), difficult=1)]
    write_voc(folder, "last", things, "test")
    read = [
        cv2.imread(str(folder / f"JPEGImages/{name}.jpg")) for name in ("test0", "test1", "last")
    ]
    fed = np.stack([cv2.resize(image, SIZE)[:, :, ::-1].transpose(2, 0, 1) for image in read])
    found = fingerprint(dataset(folder))
    assert found["pixels"] == hashlib.sha256(b"uint8 3,3,48,80\n" + fed.tobytes()).hexdigest()
    assert found["count"] == "3"

    only = tmp_path / "only"
    write_voc(only, "last", things, "test")
    text = (
        '[{"boxes":[["10.0","20.0","29.0","39.0"],["50.0","5.0","89.0","59.0"]],"id":"last",'
        '"ignore":[0,1],"labels":[1,0],"size":[96,64]}]'
    )
    assert fingerprint(dataset(only))["labels"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_pixel_the_order_the_size_and_a_box_each_show(
    voc_folder, write_voc, thing, xml, dataset, tmp_path
) -> None:
    folder = voc_folder(tmp_path / "voc")
    base = fingerprint(dataset(folder))
    assert fingerprint(dataset(folder)) == base
    smaller = fingerprint(dataset(folder, steps=pipeline((48, 48))))
    assert (smaller["labels"], smaller["pixels"] == base["pixels"]) == (base["labels"], False)

    listed = folder / "ImageSets/Main/test.txt"
    forward = listed.read_text()
    listed.write_text("".join(f"{name}\n" for name in reversed(forward.split())))
    reverse = fingerprint(dataset(folder))
    assert reverse["pixels"] != base["pixels"]
    assert reverse["labels"] != base["labels"]
    listed.write_text(forward)

    (folder / "Annotations/test1.xml").write_text(xml([thing("cat", (5, 5, 40, 30))]))
    moved = fingerprint(dataset(folder))
    assert moved["pixels"] == base["pixels"]
    assert moved["labels"] != base["labels"]

    image = folder / "JPEGImages/test1.jpg"
    pixels = np.array(Image.open(image))
    pixels[:4] = 0
    Image.fromarray(pixels).save(image)
    assert fingerprint(dataset(folder))["pixels"] != base["pixels"]


def test_pixels_of_a_set_are_the_same_in_vocs_and_in_cocos_layout(
    coco_folder, voc_folder, dataset, tmp_path
) -> None:
    voc, coco = voc_folder(tmp_path / "voc"), coco_folder(tmp_path / "coco")
    for image in (coco / "test2017").iterdir():
        image.write_bytes((voc / "JPEGImages" / image.name).read_bytes())
    other = CheckedCoco(
        data_root=str(coco),
        ann_file="annotations/instances_test2017.json",
        data_prefix={"img": "test2017"},
        metainfo={"classes": ("cat", "dog")},
        pipeline=pipeline(),
        test_mode=True,
    )
    assert fingerprint(other)["pixels"] == fingerprint(dataset(voc))["pixels"]


def test_many_images_are_hashed_in_their_order(voc_folder, dataset, tmp_path, monkeypatch) -> None:
    folder = voc_folder(tmp_path / "voc", {"test": 9})
    alone = compute(dataset(folder))
    monkeypatch.setattr(module, "AHEAD", 2)
    monkeypatch.setattr(module, "MANY", 1)  # with a line of progress
    assert compute(dataset(folder)) == alone


def test_pixels_are_decoded_once_and_again_when_a_file_changes(
    voc_folder, dataset, cache, tmp_path, monkeypatch
) -> None:
    folder = voc_folder(tmp_path / "voc")
    passes = []

    def counted(data) -> str:
        passes.append(1)
        return compute(data)

    monkeypatch.setattr(module, "compute", counted)
    first = fingerprint(dataset(folder))
    assert fingerprint(dataset(folder)) == first
    assert len(passes) == 1
    (kept,) = (cache / "fingerprints").iterdir()
    assert json.loads(kept.read_text()) == {"pixels": first["pixels"]}
    kept.write_text("damaged")
    assert fingerprint(dataset(folder)) == first
    assert len(passes) == 2
    later = time.time() + 10
    os.utime(folder / "JPEGImages/test0.jpg", (later, later))
    assert fingerprint(dataset(folder)) == first
    assert len(passes) == 3


def test_a_cache_that_cannot_be_written_costs_time_only(
    voc_folder, dataset, cache, tmp_path
) -> None:
    cache.write_text("a file, where the folder should be")
    assert fingerprint(dataset(voc_folder(tmp_path / "voc")))["count"] == "3"


def test_images_of_several_sizes_are_no_batch(voc_folder, write_voc, dataset, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"test": 2})
    write_voc(folder, "tall", [], "test", size=(64, 96))
    kept = dataset(folder, steps=pipeline(keep_ratio=True))
    with pytest.raises(ValueError, match=r"images of \(3, 48, 72\) uint8, but also \(3, 72, 48\)"):
        fingerprint(kept)
