"""Where a task's splits are found: VOC's two years, any VOC or COCO folder, the embedded set."""

import json
from pathlib import Path

import pytest

from aal_bench.data import scenes
from aal_bench.detection.checked import DATASETS
from aal_bench.detection.layouts import file_names, find
from aal_bench.errors import UserError

COCO = {
    "train": "annotations/instances_train2017.json",
    "test": "annotations/instances_test2017.json",
}


def images(configs: list[dict]) -> list[str]:
    """The files of the images that MMDetection reads from these configs."""
    built = [DATASETS.build(config | {"serialize_data": False}) for config in configs]
    return [one.get_data_info(i)["img_path"] for one in built for i in range(len(one))]


def names(configs: list[dict]) -> list[str]:
    return [Path(path).stem for path in images(configs)]


@pytest.fixture
def devkit(voc_folder, tmp_path: Path) -> Path:
    """VOCdevkit, in which the images of each year have other names."""
    root = tmp_path / "VOCdevkit"
    voc_folder(root / "VOC2007", {"trainval": 2, "test": 3}, seed=1)
    voc_folder(root / "VOC2012", {"trainval": 4}, seed=2)
    return root


def test_voc0712_trains_on_both_years_and_tests_on_2007(devkit, detection_task) -> None:
    task = detection_task("voc0712", "trainval", "test")
    for given in (devkit, devkit.parent, devkit / "VOC2007", devkit / "VOC2012"):
        data = find(task, given)
        assert images(data.train) == [
            f"{devkit}/VOC{year}/JPEGImages/trainval{i}.jpg"
            for year, count in ((2007, 2), (2012, 4))
            for i in range(count)
        ]
        assert images(data.test) == [f"{devkit}/VOC2007/JPEGImages/test{i}.jpg" for i in range(3)]
        assert (data.validation, data.source, data.official) == ([], "voc", False)


def test_any_folder_of_vocs_layout_serves(voc_folder, detection_task, tmp_path) -> None:
    folder = voc_folder(tmp_path / "sets" / "cells")
    task = detection_task("voc", "train", "test", "val")
    for given in (folder, folder.parent):
        data = find(task, given)
        assert [len(images(part)) for part in data[:3]] == [4, 2, 3]
        assert names(data.validation) == ["val0", "val1"]
    assert data.train[0]["filter_cfg"] == {"filter_empty_gt": True}
    assert data.test[0]["test_mode"]
    assert data.test[0]["metainfo"] == {"classes": ("cat", "dog")}


def test_a_validation_split_that_selects_nothing_need_not_be_there(
    voc_folder, detection_task, tmp_path
) -> None:
    folder = voc_folder(tmp_path / "cells", {"train": 2, "test": 2})
    task = detection_task("voc", "train", "test", "val")
    with pytest.raises(UserError, match=r"val\.txt: no such split\. There are: test, train"):
        find(task, folder)
    train = task.train.model_copy(update={"validation": 0})
    assert find(task.model_copy(update={"train": train}), folder).validation == []


def test_a_relative_folder_is_found_from_elsewhere_too(
    voc_folder, detection_task, tmp_path, monkeypatch
) -> None:
    voc_folder(tmp_path / "cells")
    monkeypatch.chdir(tmp_path)
    data = find(detection_task(), Path("cells"))
    monkeypatch.chdir("/")
    assert len(images(data.test)) == 3


def test_cocos_own_layout(coco_folder, detection_task, tmp_path) -> None:
    folder = coco_folder(tmp_path / "coco")
    task = detection_task("coco", **COCO, validation="annotations/instances_val2017.json")
    for given in (folder, tmp_path):
        data = find(task, given)
        assert images(data.train) == [f"{folder}/train2017/train{i}.jpg" for i in range(4)]
        assert names(data.validation) == ["val0", "val1"]
        assert images(data.test) == [f"{folder}/test2017/test{i}.jpg" for i in range(3)]
        assert (data.source, data.official) == ("coco", False)


@pytest.mark.parametrize("place", ["images", "JPEGImages", ".", "test", "annotations"])
def test_images_of_a_coco_file_lie_in_one_of_several_places(
    place, coco_folder, detection_task, tmp_path
) -> None:
    folder = coco_folder(tmp_path / "coco")
    file = folder / "annotations/test.json"
    (folder / COCO["test"]).rename(file)
    (folder / place).mkdir(exist_ok=True)
    for image in (folder / "test2017").iterdir():
        image.rename(folder / place / image.name)
    task = detection_task("coco", COCO["train"], "annotations/test.json")
    assert names(find(task, folder).test) == ["test0", "test1", "test2"]
    (folder / place / "test0.jpg").unlink()
    with pytest.raises(UserError, match=r"no test0\.jpg, the first image of .*test\.json\. Looked"):
        find(task, folder)


def test_names_in_a_coco_file_are_those_of_its_images(coco_json, tmp_path) -> None:
    odd = {name: [] for name in ("a.jpg", 'b "c" \\.jpg', "tag/é.jpg", "日.png")}
    for options in ({}, {"ensure_ascii": False}, {"indent": 2}, {"separators": (",", ":")}):
        path = tmp_path / "odd.json"
        path.write_text(json.dumps(coco_json(odd), **options), encoding="utf-8")
        assert file_names(path) == list(odd)


def test_the_embedded_set_is_made_and_found(detection_task, cache, monkeypatch) -> None:
    monkeypatch.setattr(scenes, "COUNTS", {"train": 3, "val": 1, "test": 2})
    task = detection_task("scenes", "train", "test", "val", names=scenes.NAMES, size=512)
    data = find(task, None)
    assert data.test[0]["data_root"] == str(cache / "scenes-1")
    assert [len(images(part)) for part in data[:3]] == [3, 1, 2]
    assert (data.source, data.official) == ("embedded", True)
    with pytest.raises(UserError, match=r"embedded; omit --data-dir"):
        find(task, cache)


# ---- what is not there -----------------------------------------------------------------------


def test_without_a_folder_the_error_says_what_to_give(detection_task) -> None:
    for name, expected in (
        ("voc0712", r"VOC2007 and VOC2012, each with JPEGImages/, .*/\{trainval,test\}\.txt"),
        ("voc", r"Give --data-dir with JPEGImages/, Annotations/, ImageSets/Main/"),
        ("coco", r"Give --data-dir with trainval, test, and the images"),
    ):
        with pytest.raises(UserError, match=f"not downloaded.*{expected}"):
            find(detection_task(name, "trainval", "test"), None)


def test_what_is_no_folder_is_refused(detection_task, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: is a file, not a folder \(--data-dir\)"):
        find(detection_task(), tmp_path / "file")
    with pytest.raises(UserError, match=r"nowhere: no such folder \(--data-dir\)"):
        find(detection_task(), tmp_path / "nowhere")


def test_a_folder_of_another_layout_says_what_was_looked_for_and_found(
    coco_folder, voc_folder, detection_task, tmp_path
) -> None:
    coco, voc = coco_folder(tmp_path / "a" / "coco"), voc_folder(tmp_path / "b" / "voc")
    with pytest.raises(UserError, match=r"Looked for JPEGImages/.*Found: annotations/, test2017/"):
        find(detection_task("voc"), coco)
    with pytest.raises(
        UserError,
        match=r"no COCO file found\. Looked for .*2017\.json, and the images\. Found: Ann",
    ):
        find(detection_task("coco", **COCO), voc)
    with pytest.raises(UserError, match=r"no VOC 2007 and 2012 found\. .*Found: Annotations/"):
        find(detection_task("voc0712", "trainval"), voc)


def test_one_year_is_not_enough_for_voc0712(devkit, detection_task) -> None:
    (devkit / "VOC2012").rename(devkit / "2012")
    with pytest.raises(UserError, match=r"Looked for VOC2007 and VOC2012.*Found: 2012/, VOC2007/"):
        find(detection_task("voc0712", "trainval"), devkit)


def test_an_absent_split_names_those_that_are_there(
    voc_folder, coco_folder, detection_task, tmp_path
) -> None:
    voc = voc_folder(tmp_path / "voc")
    expected = r"trian\.txt: no such split\. There are: test, train, val\. Did you mean train"
    with pytest.raises(UserError, match=expected):
        find(detection_task("voc", "trian"), voc)
    coco = coco_folder(tmp_path / "coco")
    task = detection_task("coco", "annotations/instances_trian2017.json", COCO["test"])
    with pytest.raises(UserError, match=r"no such file\. .*Did you mean annotations/instances_tr"):
        find(task, coco)


def test_a_class_list_is_needed(voc_folder, detection_task, tmp_path) -> None:
    with pytest.raises(UserError, match=r"no class list\. Give --classes"):
        find(detection_task(names=()), voc_folder(tmp_path / "voc"))


def test_a_file_of_the_other_kind_is_named(coco_folder, detection_task, xml, tmp_path) -> None:
    folder = coco_folder(tmp_path / "coco")
    (folder / COCO["test"]).write_text(xml([]))
    with pytest.raises(UserError, match=r"another format: .*test2017\.json: COCO's is JSON"):
        find(detection_task("coco", **COCO), folder)
    (folder / COCO["test"]).write_text('{"shapes": []}')
    with pytest.raises(UserError, match=r"test2017\.json: COCO's names images by file_name"):
        find(detection_task("coco", **COCO), folder)


# ---- splits share no image -------------------------------------------------------------------


def test_splits_that_share_an_image_are_refused(voc_folder, detection_task, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 3, "val": 2, "test": 2})
    with (folder / "ImageSets/Main/test.txt").open("a") as listed:
        listed.write("train1\n")
    expected = r"train1\.jpg: an image of the train split and of the test split \(1 such\)"
    with pytest.raises(UserError, match=expected):
        find(detection_task("voc"), folder)
    with pytest.raises(UserError, match=r"of the train split and of the validation split \(3 such"):
        find(detection_task("voc", "train", "val", "train"), folder)


def test_a_link_to_a_training_image_is_that_image(
    voc_folder, coco_folder, detection_task, tmp_path
) -> None:
    voc, coco = voc_folder(tmp_path / "voc"), coco_folder(tmp_path / "coco")
    for test, train, task, folder in (
        ("JPEGImages/test2.jpg", "JPEGImages/train0.jpg", detection_task("voc"), voc),
        ("test2017/test2.jpg", "train2017/train0.jpg", detection_task("coco", **COCO), coco),
    ):
        (folder / test).unlink()
        (folder / test).symlink_to(folder / train)
        with pytest.raises(UserError, match=r"train0\.jpg: an image of the train split and of the"):
            find(task, folder)


def test_the_same_file_name_in_two_folders_is_no_shared_image(devkit, detection_task) -> None:
    listed = devkit / "VOC2007/ImageSets/Main/trainval.txt"
    assert set(listed.read_text().split()) < set(
        (devkit / "VOC2012/ImageSets/Main/trainval.txt").read_text().split()
    )
    assert find(detection_task("voc0712", "trainval"), devkit)
