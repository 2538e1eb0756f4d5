"""The three layouts of ``--data-dir``: the same images give the same splits and fingerprint."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aal_bench.data.fingerprint import compute
from aal_bench.data.layouts import detect
from aal_bench.data.load import load
from aal_bench.data.on_disk import OnDisk

ALL = torch.arange(9)


def test_the_three_layouts_of_the_same_images_are_the_same_set(
    tmp_path: Path, small, make_task, write_pickles, write_parquet, write_folders
) -> None:
    loaded = {
        "torchvision": load(make_task(), write_pickles(tmp_path / "a", small)),
        "parquet": load(make_task(), write_parquet(tmp_path / "b", small)),
        "folders": load(make_task(), write_folders(tmp_path / "c", small)),
    }
    for kind, data in loaded.items():
        assert data.source == kind
        assert data.official == (kind == "torchvision")
        assert data.class_names == ("ant", "bee", "cow")
        np.testing.assert_array_equal(data.test.pixels(ALL), small.test)
        np.testing.assert_array_equal(data.test.labels, small.test_labels)
        np.testing.assert_array_equal(data.train.pixels(torch.arange(15)), small.train)
        np.testing.assert_array_equal(data.train.labels, small.train_labels)
    first = loaded["parquet"].fingerprint
    assert all(data.fingerprint == first for data in loaded.values())


def test_the_folder_of_the_pickles_may_be_given_itself(
    tmp_path: Path, small, make_task, write_pickles
) -> None:
    root = write_pickles(tmp_path / "a", small)
    assert load(make_task(), root / "cifar-10-batches-py").official


@pytest.mark.parametrize(
    "columns",
    [
        {"image": "image", "label": "label"},
        {"image": "photo", "label": "fine_label"},
        {"image": "img", "names": None},
    ],
)
def test_parquet_columns_may_be_named_as_hugging_face_names_them(
    tmp_path: Path, small, make_task, write_parquet, columns: dict
) -> None:
    data = load(make_task(), write_parquet(tmp_path / "data", small, **columns))
    np.testing.assert_array_equal(data.test.pixels(ALL), small.test)
    expected = ("0", "1", "2") if "names" in columns else ("ant", "bee", "cow")
    assert data.class_names == expected


def test_parquet_shards_may_lie_in_a_data_folder_as_in_a_repository(
    tmp_path: Path, small, make_task, write_parquet
) -> None:
    write_parquet(tmp_path / "repo" / "data", small)
    assert detect(tmp_path / "repo", make_task().data).root == tmp_path / "repo" / "data"


def test_imagenet_is_tested_on_its_validation_split_never_on_the_unlabelled_test(
    tmp_path: Path, small, make_task, write_parquet, write_folders
) -> None:
    data = make_task("imagenet", resize=32).data
    shards = write_parquet(tmp_path / "a", small, test="validation")
    for file in shards.glob("validation-*"):
        shutil.copy(file, shards / file.name.replace("validation", "test"))
    assert detect(shards, data).test_split == "validation"
    both = write_folders(tmp_path / "b", small, test="val")
    shutil.copytree(both / "val", both / "test")
    assert detect(both, data).test_split == "val"
    assert detect(both, make_task("cifar10").data).test_split == "test"


def test_a_task_with_images_of_any_size_reads_both_layouts_from_disk(
    tmp_path: Path, small, make_task, write_parquet, write_folders
) -> None:
    task = make_task("imagenet", size=24, resize=28)
    a = load(task, write_parquet(tmp_path / "a", small, test="validation"))
    b = load(task, write_folders(tmp_path / "b", small, test="val"))
    assert isinstance(a.test, OnDisk)
    assert a.test.pixels(ALL).shape == (9, 3, 24, 24)
    assert torch.equal(a.test.pixels(ALL), b.test.pixels(ALL))
    assert a.fingerprint == b.fingerprint == compute(a.test)


def test_imagenet_unpacked_by_torchvision_has_its_class_names(
    tmp_path: Path, small, make_task, write_folders
) -> None:
    root = write_folders(tmp_path / "a", small, test="val")
    wnids = {"ant": ("ant", "pismire"), "bee": ("bee",), "cow": ("cow", "moo-cow")}
    torch.save((wnids, ["ant"]), root / "meta.bin")
    data = load(make_task("imagenet", resize=32), root)
    assert data.source == "torchvision"
    assert not data.official
    assert data.class_names == ("ant ant", "bee bee", "cow cow")
    np.testing.assert_array_equal(data.test.pixels(ALL), small.test)


def test_a_task_with_a_subset_tests_on_that_part_only(
    tmp_path: Path, small, make_task, write_folders
) -> None:
    folder = write_folders(tmp_path / "a", small)
    whole = load(make_task(), folder)
    part = load(make_task(subset={"count": 6, "seed": 1}), folder)
    assert torch.bincount(part.test.labels).tolist() == [2, 2, 2]
    assert len(part.train) == 15
    assert part.fingerprint != whole.fingerprint
    assert torch.equal(part.test.pixels(torch.arange(6)), whole.test.pixels(part.test.origin))
