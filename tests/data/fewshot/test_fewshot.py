"""A few-shot set in every layout is one set; conversions, and classes by rotation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from aal_bench.data.fewshot import enough, load
from aal_bench.errors import UserError

EACH = 4


def check(data, toy) -> None:
    assert data.class_names == toy.names
    for split, images in toy.images.items():
        part = getattr(data, split)
        np.testing.assert_array_equal(part.pixels(torch.arange(len(part))), images)
        np.testing.assert_array_equal(part.labels, np.arange(len(images)) // EACH)


def test_every_layout_of_the_same_images_is_the_same_set(
    tmp_path: Path, toy, task, write_class_folders, write_three_shards
) -> None:
    places = {
        "val": write_class_folders(tmp_path / "a", toy),
        "validation": write_class_folders(tmp_path / "b", toy, "validation"),
        "labels count on": write_three_shards(tmp_path / "c", toy),
        "labels count anew": write_three_shards(tmp_path / "d", toy, counted="anew"),
        "a repository": write_three_shards(tmp_path / "e" / "data", toy, validation="val").parent,
    }
    loaded = {kind: load(task(), place) for kind, place in places.items()}
    for data in loaded.values():
        check(data, toy)
        assert not data.official
        assert data.notes == ()
        assert data.fingerprint == loaded["val"].fingerprint
    assert loaded["val"].source == "folders"
    assert loaded["a repository"].source == "parquet"
    assert loaded["val"].fingerprint["count"] == "8"


@pytest.mark.parametrize(
    ("counted", "names"),
    [
        ("on", {"train": ("0", "1", "2"), "validation": ("3", "4"), "test": ("5", "6")}),
        (
            "anew",
            {
                "train": ("train/0", "train/1", "train/2"),
                "validation": ("validation/0", "validation/1"),
                "test": ("test/0", "test/1"),
            },
        ),
    ],
)
def test_classes_without_names_are_numbered_over_all_splits_or_within_each(
    tmp_path: Path, toy, task, write_three_shards, counted: str, names: dict
) -> None:
    folder = write_three_shards(tmp_path, toy, counted=counted, names=False)
    check(load(task(), folder), toy._replace(names=names))


def test_classes_are_ordered_by_name_and_not_by_label(
    tmp_path: Path, toy, task, write_three_shards
) -> None:
    backwards = {"train": ("z", "y", "x"), "validation": ("w", "v"), "test": ("u", "t")}
    data = load(task(), write_three_shards(tmp_path, toy._replace(names=backwards)))
    assert data.class_names["train"] == ("x", "y", "z")
    first = data.train.pixels(torch.arange(EACH))
    np.testing.assert_array_equal(first, toy.images["train"][2 * EACH :])


@pytest.mark.parametrize("columns", ["label,split", "name,split", "label,class,words,split"])
def test_one_set_of_shards_is_divided_by_a_list_of_classes(
    tmp_path: Path, toy, task, encode, write_shard, columns: str
) -> None:
    names = sum(toy.names.values(), ())
    images = np.concatenate([*toy.images.values()])
    encoded = [encode(image) for image in images]
    write_shard(tmp_path / "all.parquet", encoded, np.arange(28) // EACH, names=names)
    rows = [
        {"label": str(i), "name": one, "class": one, "words": '"a, b"', "split": split}
        for i, (one, split) in enumerate((one, k) for k in toy.names for one in toy.names[k])
    ]
    lines = [",".join(row[key] for key in columns.split(",")) for row in rows]
    (tmp_path / "classes.csv").write_text("\n".join([columns, *lines]))
    check(load(task(), tmp_path), toy)


def test_rotations_make_three_further_classes_of_each_class(
    tmp_path: Path, toy, task, write_class_folders
) -> None:
    data = load(task(classes=12, rotations=True), write_class_folders(tmp_path, toy))
    assert data.class_names["test"] == (
        *("fox", "gnu", "fox/rot090", "gnu/rot090"),
        *("fox/rot180", "gnu/rot180", "fox/rot270", "gnu/rot270"),
    )
    assert torch.bincount(data.train.labels).tolist() == [EACH] * 12
    for label, name in enumerate(data.class_names["test"]):
        animal, _, turn = name.partition("/rot")
        original = toy.images["test"][toy.names["test"].index(animal) * EACH :][:EACH]
        pictures = [Image.fromarray(one.transpose(1, 2, 0)) for one in original]
        expected = [np.asarray(one.rotate(int(turn or 0))).transpose(2, 0, 1) for one in pictures]
        images = data.test.pixels(torch.where(data.test.labels == label)[0])
        np.testing.assert_array_equal(images, np.stack(expected))


def test_other_sizes_and_modes_are_converted_as_torchvision_does_and_counted(
    tmp_path: Path, toy, task, write_class_folders
) -> None:
    folder = write_class_folders(tmp_path, toy)
    rng = np.random.default_rng(1)
    photograph = Image.fromarray(rng.integers(0, 256, (21, 33, 3), dtype=np.uint8))
    grey = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
    palette = photograph.resize((8, 8)).quantize(16)
    palette.info["transparency"] = bytes(range(16))
    for name, image in (("00", photograph), ("01", grey), ("02", palette)):
        image.save(folder / "test" / "fox" / f"{name}.png")
    photograph.convert("RGBA").save(folder / "test" / "fox" / "03.png")
    data = load(task(), folder)
    assert data.notes == (
        "1 grey images made RGB; 1 P images made RGB; 1 RGBA images made RGB; "
        "2 images of other sizes resized to 8x8 px",
    )
    fitted = v2.Compose([v2.Resize(8), v2.CenterCrop(8), v2.PILToTensor()])(photograph)
    converted = data.test.pixels(torch.arange(4))
    assert torch.equal(converted[0], fitted)
    assert torch.equal(converted[3], fitted)
    np.testing.assert_array_equal(converted[1], np.stack([np.asarray(grey)] * 3))
    np.testing.assert_array_equal(
        converted[2], np.asarray(palette.convert("RGBA"))[..., :3].transpose(2, 0, 1)
    )


@pytest.mark.parametrize("size", [(9, 200), (200, 9), (17, 12), (5, 6), (3, 90)])
def test_any_shape_fits_as_torchvisions_resize_and_crop(
    tmp_path: Path, toy, task, write_class_folders, size: tuple[int, int]
) -> None:
    folder = write_class_folders(tmp_path, toy)
    rng = np.random.default_rng(2)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    image.save(folder / "test" / "fox" / "00.png")
    expected = v2.Compose([v2.Resize(8), v2.CenterCrop(8), v2.PILToTensor()])(image)
    assert torch.equal(load(task(), folder).test.pixels(torch.arange(1))[0], expected)


def test_images_are_decoded_into_their_places_whichever_thread_decodes_them(
    tmp_path: Path, toy, task, write_three_shards, monkeypatch
) -> None:
    from aal_bench.data import fewshot_decode

    monkeypatch.setattr(fewshot_decode, "BLOCK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    check(load(task(), write_three_shards(tmp_path, toy)), toy)


def test_enough_counts_the_classes_and_their_images() -> None:
    names = ("ant", "bee", "cow", "doe")
    labels = torch.tensor([0] * 16 + [1] * 12 + [2] * 20)
    enough(labels[labels == 0], ("ant",), 1, 1, 15, "test split")
    with pytest.raises(UserError) as error:
        enough(labels, names, 5, 1, 15, "test split")
    assert str(error.value) == ("test split: 4 classes, but an episode has 5. Lower episodes.ways.")
    with pytest.raises(UserError) as error:
        enough(labels.numpy(), names, 3, 1, 15, "test split")
    assert str(error.value) == (
        "test split: 2 of 4 classes have fewer than 16 images (bee: 12, doe: 0). "
        "Lower episodes.shots or episodes.queries."
    )
    enough(torch.arange(4).repeat(16), names, 4, 1, 15, "validation split")
