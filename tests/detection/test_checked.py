"""Readers of annotations: MMDetection's output on clean data, and a word for whatever is not."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aal_bench.detection import checked
from aal_bench.detection.checked import CheckedCoco, CheckedVOC, Dropped, dropped, sentence
from aal_bench.errors import UserError

# isort: split
# MMDetection can be imported once `checked` has repaired it.
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS

NAMES = ("cat", "dog")
TRAINED = {"filter_cfg": {"filter_empty_gt": True}}
LOADED = [{"type": "LoadImageFromFile"}]


def voc(folder: Path, split: str = "train", kind: type = CheckedVOC, names=NAMES, **options):
    return kind(
        data_root=str(folder),
        ann_file=f"ImageSets/Main/{split}.txt",
        data_prefix={"sub_data_root": ""},
        metainfo={"classes": names},
        serialize_data=False,  # which would collect garbage each time
        **options,
    )


def coco(folder: Path, split: str = "train", kind: type = CheckedCoco, names=NAMES, **options):
    return kind(
        data_root=str(folder),
        ann_file=f"annotations/instances_{split}2017.json",
        data_prefix={"img": f"{split}2017"},
        metainfo={"classes": names},
        serialize_data=False,  # which would collect garbage each time
        **options,
    )


def infos(dataset) -> list[dict]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def boxes(dataset, i: int = 0) -> list[list[float]]:
    return [one["bbox"] for one in dataset.get_data_info(i)["instances"]]


@pytest.fixture
def change_json(coco_folder, tmp_path: Path):
    """A clean COCO folder whose training file is then changed by hand."""

    def make(change) -> Path:
        folder = coco_folder(tmp_path / "coco")
        path = folder / "annotations/instances_train2017.json"
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))
        return folder

    return make


# ---- clean data ------------------------------------------------------------------------------


def test_clean_voc_is_what_mmdetection_reads(voc_folder, write_voc, thing, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc")
    write_voc(folder, "hard", [thing("cat", (5, 5, 40, 30), difficult=1)], "test")
    for split, options in (("train", TRAINED), ("test", {"test_mode": True})):
        ours, theirs = (voc(folder, split, kind, **options) for kind in (CheckedVOC, XMLDataset))
        assert infos(ours) == infos(theirs)
        assert ours.metainfo == theirs.metainfo
        assert ours.dropped == Dropped()
    assert infos(ours)[-1]["instances"][0]["ignore_flag"] == 1


def test_clean_coco_is_what_mmdetection_reads(coco_folder, tmp_path) -> None:
    folder = coco_folder(tmp_path / "coco")
    for split, options in (("train", TRAINED), ("test", {"test_mode": True})):
        ours, theirs = (coco(folder, split, kind, **options) for kind in (CheckedCoco, CocoDataset))
        assert infos(ours) == infos(theirs)
        assert ours.dropped == Dropped()


def config(folder: Path, split: str) -> dict:
    return {
        "type": "CheckedVOC",
        "data_root": str(folder),
        "ann_file": f"ImageSets/Main/{split}.txt",
        "data_prefix": {"sub_data_root": ""},
        "metainfo": {"classes": NAMES},
    }


def test_mmdetections_registry_builds_them(voc_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc")
    assert isinstance(DATASETS.build(config(folder, "val")), CheckedVOC)


# ---- boxes -----------------------------------------------------------------------------------

ODD = {  # in an image of 96 x 64
    "no area": (20, 20, 20.0, 50),
    "upside down": (20, 50, 40, 20),
    "beside": (100, 10, 130, 40),
    "above": (10, -30, 40, -5),
    "crossing": (80, 50, 130, 90),
    "crossing both": (-4, -8, 96, 64),
    "whole": (0, 0, 95, 63),
}


def test_boxes_without_area_or_image_are_dropped_and_others_clipped(
    write_voc, thing, tmp_path
) -> None:
    whole = [tuple(map(int, box)) for box in ODD.values()]
    folder = write_voc(tmp_path / "voc", "a", [thing("dog", box) for box in whole])
    dataset = voc(folder)
    # MMDetection subtracts 1 from all four numbers of VOC: the right edge is the last pixel's.
    assert boxes(dataset) == [[80, 50, 96, 64], [0, 0, 95, 63], [0, 0, 94, 62]]
    assert dataset.dropped == Dropped(no_area=2, outside=2, clipped=2)


def test_coco_counts_what_mmdetection_passes_over(write_voc, coco_json, thing, tmp_path) -> None:
    folder = tmp_path / "coco"
    image = write_voc(tmp_path / "voc", "a", []) / "JPEGImages/a.jpg"
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    (folder / "train2017/a.jpg").write_bytes(image.read_bytes())
    tree = coco_json({"a.jpg": [thing("dog", box) for box in (*ODD.values(), (9, 9, 19, 19))]})
    tree["annotations"][-1]["ignore"] = 1
    tree["annotations"].append({**tree["annotations"][-2], "id": 50, "iscrowd": 1})
    path = folder / "annotations/instances_train2017.json"
    path.write_text(json.dumps(tree))
    dataset = coco(folder)
    assert boxes(dataset) == [[80, 50, 96, 64], [0, 0, 96, 64], [0, 0, 95, 63], [0, 0, 95, 63]]
    assert [one["ignore_flag"] for one in dataset.get_data_info(0)["instances"]] == [0, 0, 0, 1]
    assert dataset.dropped == Dropped(no_area=2, outside=2, ignored=1, clipped=2)
    assert len(boxes(coco(folder, kind=CocoDataset))) == 4


def test_an_image_without_objects_is_tested_on_but_not_trained_on(
    voc_folder, write_voc, thing, tmp_path
) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 2})
    write_voc(folder, "empty", [])
    write_voc(folder, "tiny", [thing("cat", (5, 5, 15, 15))], size=(20, 20))
    tested = voc(folder, test_mode=True)
    assert (len(tested), tested.dropped) == (4, Dropped(empty=1))
    trained = voc(folder, **TRAINED)
    assert (len(trained), trained.dropped) == (3, Dropped(left_out=1))
    small = voc(folder, filter_cfg={"filter_empty_gt": True, "min_size": 32})
    assert (len(small), small.dropped) == (2, Dropped(left_out=1, small=1))


def test_coco_leaves_out_an_image_of_which_no_box_is_left(change_json) -> None:
    def flatten(tree) -> None:
        for one in tree["annotations"]:
            if one["image_id"] == 0:
                one["bbox"][2] = 0

    folder = change_json(flatten)
    assert len(coco(folder, kind=CocoDataset, **TRAINED)) == 4  # and its loss would see no object
    dataset = coco(folder, **TRAINED)
    assert len(dataset) == 3
    assert dataset.dropped.left_out == 1


def test_nothing_to_train_on_is_an_error(write_voc, tmp_path) -> None:
    folder = write_voc(tmp_path / "voc", "a", [])
    with pytest.raises(UserError, match=r"train\.txt: no image with an object to train on"):
        voc(folder, **TRAINED)
    (folder / "ImageSets/Main/train.txt").write_text("")
    with pytest.raises(UserError, match=r"train\.txt: lists no images"):
        voc(folder, **TRAINED)


def test_the_counts_of_a_split_are_one_line(write_voc, thing, tmp_path) -> None:
    flat, crossing = thing("cat", (5, 5, 5, 9)), thing("cat", (60, 40, 110, 60))
    parts = []
    for year, things in (("2007", [flat, crossing]), ("2012", [crossing, crossing])):
        folder = write_voc(tmp_path / year, "a", things)
        parts.append(config(folder, "train") | TRAINED)
    repeated = {"type": "RepeatDataset", "times": 3}
    both = DATASETS.build(repeated | {"dataset": {"type": "ConcatDataset", "datasets": parts}})
    assert dropped(both) == Dropped(no_area=1, clipped=3)
    assert sentence("train", dropped(both)) == (
        "train: 1 box without area dropped, 3 boxes clipped to the image"
    )
    assert sentence("test", Dropped(empty=1200)) == "test: 1,200 images without objects"
    assert sentence("test", Dropped()) is None


# ---- classes ---------------------------------------------------------------------------------


def test_an_object_of_an_unknown_class_names_file_and_class(write_voc, thing, tmp_path) -> None:
    folder = write_voc(tmp_path / "voc", "a", [thing("dgo", (5, 5, 40, 30))])
    expected = r"Annotations/a\.xml: class 'dgo' is none of the 2 \(cat, dog\)\. Did you mean dog\?"
    with pytest.raises(UserError, match=expected + r" .* give --classes"):
        voc(folder)
    assert not boxes(voc(folder, kind=XMLDataset))  # MMDetection says nothing


def test_a_category_with_objects_must_be_in_the_class_list(coco_folder, tmp_path) -> None:
    folder = coco_folder(tmp_path / "coco")
    with pytest.raises(
        UserError, match=r"train2017\.json: category 'dog' is none of the 1 \(cat\)"
    ):
        coco(folder, names=("cat",))


def test_a_category_without_objects_need_not_be_in_the_class_list(change_json) -> None:
    folder = change_json(lambda tree: tree["categories"].insert(0, {"id": 99, "name": "cow"}))
    dataset = coco(folder)
    assert infos(dataset) == infos(coco(folder, kind=CocoDataset))


def test_every_class_of_the_list_must_be_a_category(coco_folder, tmp_path) -> None:
    folder = coco_folder(tmp_path / "coco")
    with pytest.raises(
        UserError, match=r"class 'dogs' of the list .* \(cat, dog\)\. Did you mean dog\?"
    ):
        coco(folder, names=("cat", "dog", "dogs"))


def test_mmdetection_numbers_cocos_classes_by_the_file_so_another_order_is_refused(
    coco_folder, tmp_path
) -> None:
    folder = coco_folder(tmp_path / "coco")
    reader = coco(folder, kind=CocoDataset, names=("dog", "cat"))
    assert reader.cat_ids == [1, 4]  # cat and dog, but label 0 is called dog
    with pytest.raises(UserError, match=r"another order .* Give --classes cat,dog"):
        coco(folder, names=("dog", "cat"))


# ---- annotations of another format -----------------------------------------------------------

YOLO = "0 0.5 0.5 0.2 0.2\n"
FORMATS = {
    "JSON, not XML": ("a.xml", '{"shapes": []}', r"a\.xml: not XML"),
    "cut off": ("a.xml", "<annotation><object><name>cat</name>", r"a\.xml: not XML"),
    "CVAT": ("a.xml", "<annotations/>", r"VOC's XML holds <annotation>, this one <annotations>"),
    "YOLO": ("a.txt", YOLO, r"a\.txt: VOC's is a\.xml"),
    "LabelMe": ("a.json", '{"shapes": []}', r"a\.json: VOC's is a\.xml"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_voc_annotation_is_named(kind: str, write_voc, tmp_path) -> None:
    name, text, expected = FORMATS[kind]
    folder = write_voc(tmp_path / "voc", "a", [])
    (folder / "Annotations/a.xml").unlink()
    (folder / "Annotations" / name).write_text(text)
    with pytest.raises(UserError, match=f"annotations of another format: .*{expected}"):
        voc(folder)


def test_a_coco_file_is_no_list_of_images(coco_folder, tmp_path) -> None:
    folder = coco_folder(tmp_path / "coco")
    file = folder / "annotations/instances_train2017.json"
    options = {"data_prefix": {"sub_data_root": ""}, "metainfo": {"classes": NAMES}}
    with pytest.raises(UserError, match=r"another format: .*2017\.json: VOC's list of images has"):
        CheckedVOC(ann_file=str(file), **options)


@pytest.mark.parametrize("wrong", ["a\n\nb\n", "a \nb\n", "a\nb\na\n"])
def test_a_list_of_images_names_each_once(wrong: str, write_voc, tmp_path) -> None:
    folder = write_voc(tmp_path / "voc", "a", [])
    (folder / "ImageSets/Main/train.txt").write_text(wrong)
    with pytest.raises(
        UserError, match=r"train\.txt: (line \d is empty or padded|lists 'a' twice)"
    ):
        voc(folder)


def test_a_voc_file_is_no_coco_file(coco_folder, xml, tmp_path) -> None:
    folder = coco_folder(tmp_path / "coco")
    file = folder / "annotations/instances_train2017.json"
    file.write_text(xml([]))
    with pytest.raises(UserError, match=r"another format: .*train2017\.json: COCO's is JSON"):
        coco(folder)
    file.write_text('{"images": [')
    with pytest.raises(UserError, match=r"train2017\.json: not valid JSON: .* Is it complete\?"):
        coco(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"train2017\.json: No such file"):
        coco(folder)


CHANGES = {
    "captions": (lambda tree: tree.pop("categories"), "COCO's JSON of instances has categories"),
    "LabelMe": (lambda tree: tree.pop("images"), "COCO's JSON of instances has images"),
    "no file": (lambda tree: tree["images"][1].pop("file_name"), "an image without file_name"),
    "no class": (
        lambda tree: tree["annotations"][0].pop("category_id"),
        "not COCO's JSON of instances",
    ),
    "one id": (lambda tree: tree["annotations"][0].update(id=1), "two of its annotations have one"),
    "class 7": (lambda tree: tree["annotations"][0].update(category_id=7), "of category 7, which"),
    "two dogs": (
        lambda tree: tree["categories"].append({"id": 9, "name": "dog"}),
        "two categories of one name",
    ),
    "no box": (lambda tree: tree["annotations"][1].pop("bbox"), "annotation 1 has no bbox of four"),
    "NaN": (
        lambda tree: tree["annotations"][1].update(bbox=[1, 2, float("nan"), 3]),
        "annotation 1 has no bbox of four",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_coco_file_that_is_none_or_contradicts_itself(kind: str, change_json) -> None:
    change, expected = CHANGES[kind]
    with pytest.raises(UserError, match=f"instances_train2017.json: .*{expected}") as error:
        coco(change_json(change))
    assert ("another format" in str(error.value)) == (kind in list(CHANGES)[:4])


def test_what_coco_files_of_other_tools_lack_is_not_needed(change_json) -> None:
    def lean(tree) -> None:
        for one in tree["annotations"]:
            del one["iscrowd"]
        for one in tree["images"]:
            del one["width"], one["height"]

    folder = change_json(lean)
    with pytest.raises(KeyError):
        coco(folder, kind=CocoDataset)
    dataset = coco(folder)
    assert {(info["width"], info["height"]) for info in infos(dataset)} == {(96, 64)}


def test_the_area_that_cocos_metric_reads_is_asked_for_before_training(change_json) -> None:
    def lean(tree) -> None:
        del tree["annotations"][0]["area"]

    with pytest.raises(UserError, match=r"\.json: an annotation has no 'area'"):
        coco(change_json(lean))


def test_a_box_that_is_no_four_numbers_names_the_file(write_voc, thing, xml, tmp_path) -> None:
    folder = write_voc(tmp_path / "voc", "a", [])
    file = folder / "Annotations/a.xml"
    good = xml([thing("cat", (5, 5, 40, 30))])
    for wrong in (good.replace("<xmin>6", "<xmin>left"), good.replace("bndbox", "polygon")):
        file.write_text(wrong)
        with pytest.raises(UserError, match=r"a\.xml: an object without xmin, .* in <bndbox>"):
            voc(folder)
    file.write_text(good.replace("<name>cat</name>", ""))
    with pytest.raises(UserError, match=r"a\.xml: an object without <name>"):
        voc(folder)


# ---- images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [None, (0, 0), (64, 96), (9999, 9999), ("wide", "high")])
def test_the_size_is_the_images_whatever_the_xml_states(
    stated, write_voc, thing, xml, tmp_path
) -> None:
    things = [thing("cat", (60, 40, 110, 60))]
    folder = write_voc(tmp_path / "voc", "a", things)
    (folder / "Annotations/a.xml").write_text(xml(things, stated))
    info = voc(folder).get_data_info(0)
    assert (info["width"], info["height"]) == (96, 64)
    assert info["instances"][0]["bbox"] == [60, 40, 96, 59]


@pytest.mark.parametrize("ending", [".jpeg", ".JPG", ".png", ".PNG", ".bmp", ".webp"])
def test_images_of_any_ending_are_found(ending: str, voc_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 1})
    jpg = folder / "JPEGImages/train0.jpg"
    Image.open(jpg).save(folder / "JPEGImages" / f"train0{ending}")
    jpg.unlink()
    (folder / "JPEGImages/train0.txt").write_text("a note")
    dataset = voc(folder, pipeline=LOADED)
    assert dataset.get_data_info(0)["img_path"].endswith(f"train0{ending}")
    assert dataset[0]["img"].shape == (64, 96, 3)


def test_a_name_may_hold_folders_and_dots(write_voc, thing, tmp_path) -> None:
    folder = tmp_path / "voc"
    for part in ("JPEGImages", "Annotations"):
        (folder / part / "day.1").mkdir(parents=True)
    write_voc(folder, "day.1/a.b", [thing("cat", (5, 5, 40, 30))])
    assert len(voc(folder)) == 1


def test_a_missing_image_is_named(voc_folder, coco_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc")
    (folder / "JPEGImages/train1.jpg").unlink()
    with pytest.raises(UserError, match=r"JPEGImages/train1\.jpg: missing\. Put the image there"):
        voc(folder)
    folder = coco_folder(tmp_path / "coco")
    (folder / "train2017/train1.jpg").unlink()
    with pytest.raises(UserError, match=r"train2017/train1\.jpg: missing"):
        coco(folder)


def cut_in_half(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_a_truncated_image_is_named(ending: str, voc_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 1})
    jpg = folder / "JPEGImages/train0.jpg"
    image = Image.open(jpg).convert("RGB")
    jpg.unlink()
    file = jpg.with_suffix(ending)
    image.save(file)
    assert len(voc(folder)) == 1
    cut_in_half(file)
    with pytest.raises(UserError, match=rf"train0\{ending}: cannot be read \(.*Replace or remove"):
        voc(folder)


def test_mmdetection_would_find_out_about_a_truncated_image_in_training(
    coco_folder, tmp_path
) -> None:
    folder = coco_folder(tmp_path / "coco", {"train": 1})
    cut_in_half(folder / "train2017/train0.jpg")
    late = coco(folder, kind=CocoDataset, pipeline=LOADED)
    with pytest.raises(AssertionError, match="failed to load image"):
        late[0]
    with pytest.raises(UserError, match=r"train0\.jpg: cannot be read \(.*truncated"):
        coco(folder)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(voc_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 1})
    file = folder / "JPEGImages/train0.jpg"
    image = Image.open(file).convert("RGB")
    thumbnail = io.BytesIO()
    image.resize((16, 16)).save(thumbnail, "JPEG")
    image.save(file, exif=b"Exif\0\0" + thumbnail.getvalue(), quality=50)
    assert len(voc(folder)) == 1
    whole = file.read_bytes()
    file.write_bytes(whole[:-600])
    assert b"\xff\xd9" in file.read_bytes()[-checked.images.TAIL :]
    with pytest.raises(UserError, match=r"train0\.jpg: cannot be read"):
        voc(folder)


def test_bytes_that_a_camera_appends_do_no_harm(voc_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 1})
    file = folder / "JPEGImages/train0.jpg"
    for appended in (b"\0" * 100, b"\0" * 10_000):  # the second hides the end: it is decoded
        file.write_bytes(file.read_bytes() + appended)
        assert len(voc(folder)) == 1


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<html>404</html>"])
def test_a_file_that_is_no_image_is_named(content: bytes, voc_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 1})
    (folder / "JPEGImages/train0.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"train0\.jpg: cannot be read \(not an image\)"):
        voc(folder)


def test_a_greyscale_image_becomes_three_equal_channels(voc_folder, tmp_path) -> None:
    folder = voc_folder(tmp_path / "voc", {"train": 1})
    file = folder / "JPEGImages/train0.jpg"
    grey = Image.open(file).convert("L")
    grey.save(file, quality=95)
    loaded = voc(folder, pipeline=LOADED)[0]["img"]
    assert loaded.shape == (64, 96, 3)
    assert (loaded == np.asarray(Image.open(file))[..., None]).all()


def test_an_image_that_its_exif_turns_has_the_size_that_mmdetection_decodes(
    write_voc, thing, xml, tmp_path
) -> None:
    things = [thing("cat", (5, 5, 40, 30))]
    folder = write_voc(tmp_path / "voc", "a", things)
    file = folder / "JPEGImages/a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.open(file).convert("RGB").save(file, exif=exif)
    (folder / "Annotations/a.xml").write_text(xml(things, (64, 96)))
    dataset = voc(folder, pipeline=LOADED)
    info = dataset.get_data_info(0)
    assert dataset[0]["img"].shape == (info["height"], info["width"], 3) == (96, 64, 3)
    # Boxes of the image as stored would lie beside the objects.
    (folder / "Annotations/a.xml").write_text(xml(things, (96, 64)))
    with pytest.raises(UserError, match=r"a\.jpg: its EXIF turns it"):
        voc(folder)
