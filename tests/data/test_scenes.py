"""The embedded detection set: the same everywhere, boxes tight, splits without a common digit."""

import json
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from threading import Barrier, Thread
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.ops import box_iou

from aal_bench.data import scenes
from aal_bench.data.textures import Dice, background
from aal_bench.errors import UserError

FEW = {"train": 3, "val": 1, "test": 2}


@pytest.fixture
def few(monkeypatch) -> None:
    monkeypatch.setattr(scenes, "COUNTS", FEW)


@pytest.fixture(scope="module")
def drawn():
    """Forty scenes of the test split, and the backgrounds they were painted on."""
    pool = scenes._pool("test")
    pairs = []
    for number in range(40):
        image, placed = scenes.scene(Dice(0, 2, number), pool)
        # The background is drawn first: the same dice draw it again.
        pairs.append((image, placed, background(Dice(0, 2, number), scenes.SIDE)))
    return pairs


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_the_layout_is_vocs(tmp_path) -> None:
    scenes.make(tmp_path, FEW)
    names = {split: [f"{split}_{i:04d}" for i in range(count)] for split, count in FEW.items()}
    assert set(files(tmp_path)) == {
        *(f"ImageSets/Main/{split}.txt" for split in FEW),
        *(f"JPEGImages/{name}.jpg" for split in names.values() for name in split),
        *(f"Annotations/{name}.xml" for split in names.values() for name in split),
        "manifest.json",
    }
    for split, listed in names.items():
        assert (tmp_path / f"ImageSets/Main/{split}.txt").read_text().split() == listed
    with Image.open(tmp_path / "JPEGImages/test_0001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 512))


def test_the_xml_counts_from_1_and_includes_both_ends() -> None:
    placed = [scenes.Placed("7", (0, 10, 50, 512)), scenes.Placed("0", (100, 1, 160, 49))]
    root = ElementTree.fromstring(scenes.annotation("a", (512, 512), placed))
    assert root.tag == "annotation"
    assert root.findtext("filename") == "a.jpg"
    assert [root.findtext(f"size/{side}") for side in ("width", "height", "depth")] == [
        "512",
        "512",
        "3",
    ]
    found = [
        (one.findtext("name"), *(int(one.findtext(f"bndbox/{at}") or 0) for at in CORNERS))
        for one in root.findall("object")
    ]
    assert found == [("7", 1, 11, 50, 512), ("0", 101, 2, 160, 49)]


CORNERS = ("xmin", "ymin", "xmax", "ymax")


def test_another_time_and_another_process_write_the_same_bytes(tmp_path) -> None:
    scenes.make(tmp_path / "a", FEW)
    script = (
        "import sys; from pathlib import Path; from aal_bench.data import scenes; "
        f"scenes.make(Path(sys.argv[1]), {FEW!r}); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'mmdet')))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "b")]
    subprocess.run(command, check=True)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_an_image_does_not_depend_on_how_many_others_there_are(tmp_path) -> None:
    scenes.make(tmp_path / "a", FEW)
    scenes.make(tmp_path / "b", {"train": 1, "test": 1})
    scenes.make(tmp_path / "c", {"train": 1}, seed=1)
    one, two, three = (files(tmp_path / name) for name in "abc")
    for name in ("train_0000", "test_0000"):
        assert one[f"JPEGImages/{name}.jpg"] == two[f"JPEGImages/{name}.jpg"]
    assert one["JPEGImages/train_0000.jpg"] != three["JPEGImages/train_0000.jpg"]


def test_splits_share_no_source_digit() -> None:
    pools = {
        split: {image.tobytes() for label in scenes._pool(split) for image in label}
        for split in FEW
    }
    assert {split: len(pool) for split, pool in pools.items()} == {
        "train": 1097,
        "val": 300,
        "test": 400,
    }
    for one, other in combinations(pools.values(), 2):
        assert not one & other
    real = {image.astype(np.uint8).tobytes() for image in load_digits().images}
    assert set.union(*pools.values()) == real


def test_boxes_are_exactly_around_what_was_painted(drawn) -> None:
    for image, placed, before in drawn:
        changed = (np.asarray(image) != np.asarray(before)).any(-1)
        inside = np.zeros_like(changed)
        for _, (left, top, right, bottom) in placed:
            inside[top:bottom, left:right] = True
            part = changed[top:bottom, left:right]
            assert part[0].any()
            assert part[-1].any()
            assert part[:, 0].any()
            assert part[:, -1].any()
        assert not changed[~inside].any()


def test_digits_are_few_of_varied_size_and_hardly_overlap(drawn) -> None:
    sizes, labels = [], []
    for _, placed, _ in drawn:
        boxes = torch.tensor([one.box for one in placed]).float()
        assert 2 <= len(boxes) <= 6
        assert boxes.min() >= 0
        assert boxes.max() <= 512
        assert box_iou(boxes, boxes).fill_diagonal_(0).max() < 0.2
        sizes += (boxes[:, 2:] - boxes[:, :2]).amax(1).tolist()
        labels += [int(one.name) for one in placed]
    assert 40 <= min(sizes) < 60
    assert 140 < max(sizes) <= 160
    assert np.bincount(labels, minlength=10).min() >= 5


def test_digits_stand_out_by_a_contrast_that_varies(drawn) -> None:
    found = []
    for image, placed, before in drawn:
        grey = [np.asarray(one.convert("L")).astype(float) for one in (image, before)]
        for _, (left, top, right, bottom) in placed:
            after, under = (one[top:bottom, left:right] for one in grey)
            difference = np.abs(after - under)
            found.append(float(np.median(difference[difference > difference.max() / 2])))
    assert min(found) > 20
    assert np.percentile(found, 10) < 60
    assert np.percentile(found, 90) > 100


def test_glyphs_are_their_own_tight_boxes() -> None:
    source = scenes._pool("test")[3][0]
    for extent, angle in ((48, 0), (160, 15), (97, -15)):
        opacity = scenes.glyph(source, extent, angle)
        assert extent - 4 <= max(opacity.shape) <= extent
        for edge in (opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]):
            assert edge.max() >= scenes.INK


def test_backgrounds_are_textured() -> None:
    for number in range(12):
        pixels = np.asarray(background(Dice(number), 128)).astype(float)
        assert pixels.shape == (128, 128, 3)
        assert pixels.std((0, 1)).max() > 5


# ---- the cache -------------------------------------------------------------------------------


def test_the_set_is_made_once(few, cache, monkeypatch) -> None:
    folder = scenes.ensure()
    assert folder == scenes.folder_of() == cache / "scenes-1"
    before = files(folder)
    monkeypatch.setattr(scenes, "make", None)  # calling it would be an error
    assert scenes.ensure() == folder
    assert files(folder) == before
    assert [path.name for path in cache.iterdir()] == ["scenes-1"]
    assert json.loads(before["manifest.json"])["count"] == 2 * 6 + 3


@pytest.mark.parametrize("damage", ["image", "annotation", "list", "manifest", "stranger", "file"])
def test_a_damaged_set_is_made_anew(damage: str, few, cache) -> None:
    folder = scenes.ensure()
    whole = files(folder)
    if damage == "image":
        (folder / "JPEGImages/train_0002.jpg").write_bytes(b"cut")
    elif damage == "annotation":
        (folder / "Annotations/val_0000.xml").unlink()
    elif damage == "list":
        (folder / "ImageSets/Main/test.txt").write_text("")
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    elif damage == "stranger":
        (folder / "JPEGImages/mine.jpg").write_bytes(b"")
    else:
        shutil.rmtree(folder)
        folder.write_text("a file")
    assert not scenes.complete(folder)
    assert files(scenes.ensure()) == whole
    assert [path.name for path in cache.iterdir()] == ["scenes-1"]


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_may_make_it_at_once(damaged: bool, few, cache, monkeypatch) -> None:
    if damaged:
        (scenes.ensure() / "ImageSets/Main/test.txt").unlink()
    make, both = scenes.make, Barrier(2)

    def together(folder: Path) -> None:
        make(folder)
        both.wait(60)  # neither installs before both are done

    monkeypatch.setattr(scenes, "make", together)
    found: list[Path] = []
    threads = [Thread(target=lambda: found.append(scenes.ensure())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [scenes.folder_of()] * 2
    assert scenes.complete(scenes.folder_of())
    assert [path.name for path in cache.iterdir()] == ["scenes-1"]


def test_an_interrupted_making_leaves_nothing(few, cache, monkeypatch) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "JPEGImages").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scenes.ensure()
    assert list(cache.iterdir()) == []


def test_what_cannot_be_written_is_named(few, cache) -> None:
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"scenes-1: cannot be written"):
        scenes.ensure()
    with pytest.raises(UserError, match=r"cache: cannot be written"):
        scenes.make(cache)


def test_the_module_writes_the_set_into_a_folder_that_is_named(few, tmp_path, capsys) -> None:
    scenes.main([str(tmp_path / "scenes")])
    assert "6 images" in capsys.readouterr().out
    assert scenes.complete(tmp_path / "scenes")
    with pytest.raises(UserError, match=r"scenes: not an empty folder\. Name a new one"):
        scenes.main([str(tmp_path / "scenes")])
