"""What a user gives that is no set of the task: one or two lines that name the mend."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from aal_bench.data.load import load
from aal_bench.errors import UserError


def message(task, folder: Path | None) -> str:
    with pytest.raises(UserError) as error:
        load(task, folder)
    text = str(error.value)
    assert text.count("\n") <= 1
    assert text.endswith((".", ")", "--data-dir"))
    return text


def test_a_missing_folder(tmp_path: Path, make_task) -> None:
    assert (
        message(make_task(), tmp_path / "gone") == f"{tmp_path}/gone: no such folder (--data-dir)"
    )
    (tmp_path / "file").write_text("")
    assert "file, not a folder" in message(make_task(), tmp_path / "file")


def test_an_empty_folder(tmp_path: Path, make_task) -> None:
    (tmp_path / "a").mkdir()
    assert message(make_task(), tmp_path / "a") == (
        f"{tmp_path}/a: no CIFAR-10 found. Looked for cifar-10-batches-py/, "
        "{train,test}-*.parquet, {train,test}/<class>/. Found: nothing, it is empty. "
        "Give the folder that holds one of these, or omit --data-dir to download."
    )


def test_archives_are_to_be_unpacked(tmp_path: Path, make_task) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("a.zip", "b.zip", "c.zip"):
        (folder / name).write_text("")
    assert message(make_task(), folder) == (
        f"{folder}: no CIFAR-10 found. Looked for cifar-10-batches-py/, {{train,test}}-*.parquet, "
        "{train,test}/<class>/. Found: 3 .zip files. Unpack them, or omit --data-dir to download."
    )


def test_another_layout_is_described(tmp_path: Path, make_task) -> None:
    (tmp_path / "a" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "a" / "notes.txt").write_text("")
    text = message(make_task("imagenet", resize=32), tmp_path / "a")
    assert (
        "no ImageNet found. Looked for {train,validation}-*.parquet, {train,val}/<class>/" in text
    )
    assert "Found: JPEGImages/, notes.txt." in text
    assert "download" not in text


def test_a_split_without_class_folders(
    tmp_path: Path, small, make_task, write_folders, encode
) -> None:
    folder = write_folders(tmp_path / "a", small)
    for file in (folder / "test").rglob("*.png"):
        file.rename(folder / "test" / file.name)
    for leftover in ("ant", "bee", "cow"):
        (folder / "test" / leftover).rmdir()
    assert "Give both splits, each with one folder of images per class" in message(
        make_task(), folder
    )


def test_the_other_cifar(tmp_path: Path, small, make_task, write_pickles) -> None:
    folder = write_pickles(tmp_path / "a", small)
    text = message(make_task("cifar100"), folder)
    assert "no CIFAR-100 found. Looked for cifar-100-python/" in text
    assert "Found: cifar-10-batches-py/" in text


@pytest.mark.parametrize("layout", ["write_pickles", "write_parquet", "write_folders"])
def test_another_number_of_classes(
    tmp_path: Path, small, make_task, layout: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)(tmp_path / "a", small)
    assert "3 classes (ant, bee, cow), but task toy has 4" in message(make_task(classes=4), folder)


def test_other_classes_in_test_than_in_train(
    tmp_path: Path, small, make_task, write_folders
) -> None:
    folder = write_folders(tmp_path / "a", small)
    (folder / "test" / "cow").rename(folder / "test" / "yak")
    assert "only one has cow, yak" in message(make_task(), folder)


def test_a_class_folder_without_images(tmp_path: Path, small, make_task, write_folders) -> None:
    folder = write_folders(tmp_path / "a", small)
    (folder / "train" / "asp").mkdir()
    assert "asp" in message(make_task(), folder)


def test_images_of_another_size(
    tmp_path: Path, small, make_task, write_folders, write_pickles
) -> None:
    folder = write_folders(tmp_path / "a", small)
    text = message(make_task(size=28), folder)
    assert "train/ant/0000.png: 32x32 RGB image, but the task takes 28x28 RGB" in text
    pickles = write_pickles(tmp_path / "b", small)
    assert "32x32 images, but the task takes 28x28" in message(make_task(size=28), pickles)


@pytest.mark.parametrize(("channels", "mode"), [((), "L"), ((4,), "RGBA")])
def test_images_of_another_mode_name_the_file_or_the_row(
    tmp_path: Path,
    small,
    make_task,
    write_folders,
    write_shard,
    write_parquet,
    encode,
    channels: tuple,
    mode: str,
) -> None:
    odd = encode(np.zeros((*channels, 32, 32), np.uint8))
    folder = write_folders(tmp_path / "a", small)
    (folder / "test" / "bee" / "0004.png").write_bytes(odd)
    assert f"test/bee/0004.png: 32x32 {mode} image" in message(make_task(), folder)

    shards = write_parquet(tmp_path / "b", small)
    encoded = [encode(image) for image in small.test[4:]]
    encoded[2] = odd
    write_shard(shards / "test-00001-of-00002.parquet", encoded, small.test_labels[4:])
    expected = f"test-00001-of-00002.parquet row 2: 32x32 {mode} image"
    assert expected in message(make_task(), shards)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", None])
def test_a_corrupt_image_is_named(
    tmp_path: Path, small, make_task, write_folders, content: bytes | None
) -> None:
    folder = write_folders(tmp_path / "a", small)
    file = folder / "train" / "cow" / "0012.png"
    file.write_bytes(file.read_bytes()[:1500] if content is None else content)
    assert f"{file}: cannot be read" in message(make_task(), folder)


def test_a_row_without_bytes_is_not_looked_up_by_its_path(
    tmp_path: Path, small, make_task, write_parquet, write_shard, encode
) -> None:
    shards = write_parquet(tmp_path / "a", small)
    encoded = [encode(image) for image in small.test[4:]]
    write_shard(shards / "test-00001-of-00002.parquet", [None, *encoded[1:]], small.test_labels[4:])
    text = message(make_task(), shards)
    assert "test-00001-of-00002.parquet row 0: cannot be read (the row holds no bytes)" in text


@pytest.mark.parametrize("resize", [None, 32])
@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_truncated_shard(
    tmp_path: Path, small, make_task, write_parquet, keep: int, resize: int | None
) -> None:
    shards = write_parquet(tmp_path / "a", small)
    file = shards / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    text = message(make_task(resize=resize), shards)
    assert f"{file}: not a readable Parquet file" in text


@pytest.mark.parametrize("resize", [None, 32])
def test_a_shard_damaged_in_the_middle(
    tmp_path: Path, small, make_task, write_parquet, resize: int | None
) -> None:
    shards = write_parquet(tmp_path / "a", small)
    file = shards / "train-00000-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    assert "not a readable Parquet file" in message(make_task(resize=resize), shards)


def test_a_missing_shard(tmp_path: Path, small, make_task, write_parquet) -> None:
    shards = write_parquet(tmp_path / "a", small)
    (shards / "train-00000-of-00002.parquet").unlink()
    assert "1 of 2 train-*.parquet shards are there" in message(make_task(), shards)


def test_shards_with_other_columns(tmp_path: Path, small, make_task, write_parquet) -> None:
    shards = write_parquet(tmp_path / "a", small, label="target")
    text = message(make_task(), shards)
    assert "a column label or fine_label. Found: img, target." in text


def test_unlabelled_images(tmp_path: Path, small, make_task, write_parquet) -> None:
    shards = write_parquet(tmp_path / "a", small._replace(test_labels=np.full(9, -1)))
    assert "test labels run from -1 to -1" in message(make_task(), shards)


def test_a_class_without_training_images(tmp_path: Path, small, make_task, write_parquet) -> None:
    shards = write_parquet(tmp_path / "a", small._replace(train_labels=np.repeat([0, 1, 1], 5)))
    assert "no training image of 1 of 3 classes (cow, ...)" in message(make_task(), shards)


class Bomb:
    """Creates the file `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_forged_pickle_is_refused_by_its_checksum_and_never_opened(
    tmp_path: Path, small, make_task, write_pickles
) -> None:
    folder = write_pickles(tmp_path / "a", small)
    victim = folder / "cifar-10-batches-py" / "test_batch"
    victim.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    text = message(make_task(), folder)
    assert f"{victim}: not the published file (md5 differs), so it is not opened" in text
    assert not (tmp_path / "exploded").exists()
    victim.unlink()
    assert f"{victim}: missing" in message(make_task(), folder)


def test_a_forged_imagenet_index_is_never_unpickled(
    tmp_path: Path, small, make_task, write_folders
) -> None:
    folder = write_folders(tmp_path / "a", small, test="val")
    torch.save(Bomb(tmp_path / "exploded"), folder / "meta.bin")
    text = message(make_task("imagenet", resize=32), folder)
    assert "Remove meta.bin to read train/ and val/ as class folders" in text
    assert not (tmp_path / "exploded").exists()


def test_a_subset_larger_than_the_test_split(
    tmp_path: Path, small, make_task, write_folders
) -> None:
    folder = write_folders(tmp_path / "a", small)
    assert "does not fit 9: ask for 1 to 9" in message(make_task(subset={"count": 10}), folder)


def test_the_embedded_set_takes_no_folder(tmp_path: Path, make_task) -> None:
    assert "embedded; omit --data-dir" in message(make_task("digits", 10, 16), tmp_path)


def test_imagenet_without_a_folder(make_task) -> None:
    text = message(make_task("imagenet", resize=32), None)
    assert "ImageNet cannot be downloaded. Give --data-dir with one of" in text
