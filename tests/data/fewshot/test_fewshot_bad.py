"""What is no few-shot set of the task: one or two lines that name the mend."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aal_bench.data.fewshot import load
from aal_bench.errors import UserError


def message(task, folder: Path | None) -> str:
    with pytest.raises(UserError) as error:
        load(task, folder)
    text = str(error.value)
    assert text.count("\n") <= 1
    return text


def test_a_missing_folder(tmp_path: Path, task) -> None:
    assert message(task(), tmp_path / "gone").endswith("gone: no such folder (--data-dir)")
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in message(task(), tmp_path / "file")


def test_a_missing_split(
    tmp_path: Path, toy, task, write_class_folders, write_three_shards
) -> None:
    folder = write_class_folders(tmp_path / "a", toy)
    shutil.rmtree(folder / "val")
    assert message(task(), folder) == (
        f"{folder}: class folders, but no validation split of toy-fs. Looked for "
        "{train,validation,test}-*.parquet, {train,val,test}/<class>/, *.parquet with "
        "classes.csv. Found: test/, train/. Give all three splits."
    )
    shards = write_three_shards(tmp_path / "b", toy)
    for file in [*shards.glob("validation-*"), *shards.glob("test-*")]:
        file.unlink()
    assert f"{shards}: shards, but no validation and no test split" in message(task(), shards)


def test_a_missing_shard(tmp_path: Path, toy, task, write_three_shards) -> None:
    shards = write_three_shards(tmp_path, toy)
    (shards / "test-00001-of-00002.parquet").unlink()
    assert "1 of 2 test-*.parquet shards are there" in message(task(), shards)


def test_nothing_of_the_kind(tmp_path: Path, make_task, task) -> None:
    assert message(task(), tmp_path).endswith(
        "Found: nothing, it is empty. Give the folder that holds one of these."
    )
    (tmp_path / "images.zip").write_text("")
    assert message(task(), tmp_path).endswith("Found: images.zip. Unpack them.")


def test_pickles_are_not_opened(tmp_path: Path, task) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(b"cos\nsystem\n")
    mini = task()
    mini = mini.model_copy(update={"data": mini.data.model_copy(update={"name": "mini-imagenet"})})
    assert message(mini, tmp_path) == (
        f"{tmp_path}: no mini-ImageNet found. Looked for {{train,validation,test}}-*.parquet, "
        "{train,val,test}/<class>/, *.parquet with classes.csv. Found: 3 .pkl files. Pickles are "
        "never opened, because unpickling runs code: save the images as files, or omit "
        "--data-dir to download."
    )


def test_a_class_in_two_splits(
    tmp_path: Path, toy, task, write_class_folders, write_three_shards
) -> None:
    folder = write_class_folders(tmp_path / "a", toy)
    shutil.copytree(folder / "train" / "ape", folder / "val" / "ape")
    shutil.copytree(folder / "train" / "ape", folder / "test" / "ape")
    assert message(task(), folder) == (
        f"{folder}: 1 of 7 classes lie in more than one split (ape: train and validation and "
        "test). Few-shot splits share no class: divide the classes, not their images."
    )
    # Numbered on from split to split, but not far enough.
    shards = write_three_shards(
        tmp_path / "b", toy._replace(first={"train": 0, "validation": 2, "test": 3}), names=False
    )
    assert "2 of 5 classes lie in more than one split (2: train and validation, 3: val" in message(
        task(), shards
    )


def test_another_number_of_training_classes(tmp_path: Path, toy, task, write_class_folders) -> None:
    folder = write_class_folders(tmp_path, toy)
    assert message(task(classes=64), folder) == (
        f"{folder}: 3 training classes (ape, bat, cat), but task toy has 64. "
        "Give that set's folder, or set data.classes."
    )
    assert "12 training classes (ape, bat, cat, 4 times each by episodes.rotations)" in message(
        task(classes=3, rotations=True), folder
    )


def test_unlabelled_images(tmp_path: Path, toy, task, write_three_shards) -> None:
    shards = write_three_shards(tmp_path, toy._replace(first={**toy.first, "test": -1}))
    assert "test split: 4 unlabelled images (-1). Remove them." in message(task(), shards)


def test_a_label_without_a_name(tmp_path: Path, toy, task, write_three_shards) -> None:
    shards = write_three_shards(tmp_path, toy._replace(first={**toy.first, "test": 6}))
    assert "test split: labels up to 7, but 7 class names." in message(task(), shards)


def test_a_class_without_images(
    tmp_path: Path, toy, task, encode, write_class_folders, write_three_shards, write_shard
) -> None:
    folder = write_class_folders(tmp_path / "a", toy)
    (folder / "test" / "yak").mkdir()
    assert "yak" in message(task(), folder)

    anew = write_three_shards(tmp_path / "b", toy, counted="anew")
    encoded = [encode(image) for image in toy.images["test"]]
    for file in anew.glob("test-*"):
        file.unlink()
    write_shard(anew / "test-0.parquet", encoded, [0] * 8, image="image", names=("fox", "gnu"))
    assert "test split: no image of 1 classes (gnu)" in message(task(), anew)

    # One list of names for all splits may name classes of others: said, not refused.
    on = write_three_shards(tmp_path / "c", toy)
    for file in on.glob("test-*"):
        file.unlink()
    everyone = sum(toy.names.values(), ())
    write_shard(on / "test-0.parquet", encoded, [5] * 8, image="image", names=everyone)
    assert load(task(), on).notes == ("1 named classes have no image in any split (gnu)",)


def test_a_split_without_images(tmp_path: Path, toy, task, write_three_shards) -> None:
    empty = toy._replace(images={**toy.images, "validation": toy.images["validation"][:0]})
    folder = write_three_shards(tmp_path, empty)
    assert "the validation split holds no images" in message(task(), folder)


def test_an_image_that_cannot_be_used_is_named(
    tmp_path: Path, toy, task, write_class_folders
) -> None:
    folder = write_class_folders(tmp_path, toy)
    file = folder / "val" / "eel" / "05.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"{file}: cannot be read" in message(task(), folder)
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(deep, "PNG")
    file.write_bytes(deep.getvalue())
    assert f"{file}: I;16 image, which has more than 8 bits a channel" in message(task(), folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label,words\n0,a\n", "needs a column split"),
        ("", "Found: nothing."),
        ("label,split\n0,dev\n", "split 'dev' is none of train, validation, test"),
        ("label,split\nzero,val\n", "label 'zero' is no whole number"),
        ("label,split\n0,val\n0,test\n", "class 0 lies in validation and in test"),
        ("label,split\n0,train\n1,val\n", "1 of the images' 3 classes are in no split (cow)"),
        ("name,split\nant,train\nbee,val\ncow,test\nyak,test\n", "lists (yak). Complete the set"),
        ("label,name,split\n0,bee,train\n", "label 0 is bee, but the images' class 0 is ant"),
    ],
)
def test_a_list_of_classes_that_does_not_fit(
    tmp_path: Path, small, task, encode, write_shard, text: str, said: str
) -> None:
    encoded = [encode(image) for image in small.test]
    write_shard(tmp_path / "all.parquet", encoded, small.test_labels)
    (tmp_path / "classes.csv").write_text(text)
    assert said in message(task(), tmp_path)


def test_options_that_no_few_shot_task_reads(tmp_path: Path, task) -> None:
    assert "no data.resize; remove it" in message(task(resize=9), tmp_path)
    assert "no data.subset; remove it" in message(task(subset={"count": 6}), tmp_path)


def test_a_set_without_a_download(task) -> None:
    assert message(task(), None).startswith(
        "task toy: toy-fs cannot be downloaded. Give --data-dir with one of {train,"
    )
