"""The per-image table of a detection run: what it accepts, refuses and writes."""

from pathlib import Path

import numpy as np
import pytest

from aal_bench.detection_evidence import (
    FORMAT,
    STAGE,
    DetectionEvidence,
    Detections,
    Objects,
    same_images,
)
from aal_bench.errors import UserError

BOX = [10.0, 20.0, 30.0, 60.0]
NAMES = ("BloodImage_00001", "BloodImage_00007", "bild-ä")


def objects(**changed) -> Objects:
    """A cell and a platelet on the first image, a difficult cell on the last."""
    parts = {
        "image": np.array([0, 0, 2], np.int32),
        "boxes": np.array([BOX, [1, 2, 3, 4], [0, 0, 5, 5]], np.float64),
        "labels": np.array([0, 1, 0], np.int16),
        "ignore": np.array([False, False, True]),
        "areas": np.array([800.0, 4.0, 25.0]),
    }
    return Objects(**parts | changed)


def found(*scores: float, box=BOX, label: int = 0) -> Detections:
    """One detection for each score, all alike."""
    count = len(scores)
    return Detections(
        np.array([box] * count, np.float32).reshape(count, 4),
        np.array(scores, np.float32),
        np.full(count, label, np.int16),
    )


def empty() -> DetectionEvidence:
    conventions = ("map50_voc11", "map50_area")
    return DetectionEvidence([4, 9, 2], NAMES, ["cell", "platelet"], conventions, objects())


def table() -> DetectionEvidence:
    """Complete in clean and fgsm, one image of pgd-10."""
    made = empty()
    made.record("clean", [0, 1, 2], [found(0.9, 0.5), found(), found(0.25, label=1)])
    made.record(
        "fgsm",
        [2, 0],
        [found(0.125), found(0.5)],
        norm=[8 / 255, 0.01],
        forwards=1,
        backwards=1,
    )
    made.record("fgsm", [1], [found(0.75)], attacked=False)
    made.record("pgd-10", [1], [found(0.1)], norm=0.03, forwards=10, backwards=10)
    return made


class TestRecord:
    def test_detections_come_back_in_image_order(self):
        image, flat = table().detections("clean")
        assert image.tolist() == [0, 0, 2]
        assert flat.scores.tolist() == [np.float32(0.9), 0.5, 0.25]
        assert flat.labels.tolist() == [0, 0, 1]
        assert flat.boxes.tolist() == [BOX] * 3
        assert [part.dtype for part in (image, *flat)] == ["i4", "f4", "f4", "i2"]
        image, flat = table().detections("fgsm")
        assert (image.tolist(), flat.scores.tolist()) == ([0, 1, 2], [0.5, 0.75, 0.125])

    def test_the_columns_are_those_recorded(self):
        made = table()
        assert made.column("fgsm", "norm") == pytest.approx([0.01, 0, 8 / 255], abs=1e-7)
        assert made.column("fgsm", "attacked").tolist() == [True, False, True]
        assert made.column("fgsm", "count").tolist() == [1, 1, 1]
        assert made.column("pgd-10", "backwards").tolist() == [0, 10, 0]
        assert made.column("pgd-10", "recorded").tolist() == made.done("pgd-10").tolist()
        with pytest.raises(UserError, match="no stage 'cw': clean, fgsm, pgd-10"):
            made.column("cw", "norm")

    def test_clean_is_one_forward_pass_and_no_attack_stage(self):
        made = table()
        assert made.stages == ("fgsm", "pgd-10")
        assert made.column("clean", "forwards").tolist() == [1, 1, 1]
        assert not made.column("clean", "attacked").any()
        assert not made.column("clean", "backwards").any()

    def test_a_table_says_what_it_is(self):
        made = table()
        assert (made.family, made.format, len(made)) == ("detection", FORMAT, 3)
        columns = made.columns()
        assert columns[:5] == ["index", "images", "classes", "conventions", "objects.image"]
        assert columns[-3:] == ["pgd-10.boxes", "pgd-10.scores", "pgd-10.labels"]

    def test_a_missing_image_is_not_one_without_detections(self):
        with pytest.raises(UserError, match="'pgd-10' lacks 2 of 3 rows"):
            table().detections("pgd-10")
        with pytest.raises(UserError, match="no stage 'cw': clean, fgsm, pgd-10"):
            table().detections("cw")

    def test_what_was_recorded_is_a_copy(self):
        made, own = empty(), found(0.5)
        made.record("clean", [0, 1, 2], [own] * 3)
        own.scores[:] = 0
        assert made.detections("clean")[1].scores.tolist() == [0.5] * 3

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (found(float("nan")), "score is outside"),
            (found(1.5), "score is outside"),
            (found(-0.1), "score is outside"),
            (found(0.5, box=[0, 0, float("nan"), 1]), "no finite number"),
            (found(0.5, box=[0, 0, float("inf"), 1]), "no finite number"),
            (Detections(np.array([[0, 0, 1e39, 1]]), np.ones(1), np.zeros(1, int)), "no finite"),
            (found(0.5, box=[5, 0, 4, 9]), "x2 < x1"),
            (found(0.5, box=[0, 5, 9, 4]), "y2 < y1"),
            (found(0.5, label=2), "classes 0..1"),
            (found(0.5, label=-1), "labels must be 0.."),
            (found(0.5)._replace(labels=np.zeros(2, np.int16)), "do not match"),
            (found(0.5)._replace(labels=np.zeros(1)), "whole numbers"),
        ],
    )
    def test_a_detector_that_fails_is_never_one_that_finds_nothing(self, wrong, message):
        made = empty()
        with pytest.raises(ValueError, match=message):
            made.record("clean", [0, 1], [found(0.5), wrong])
        assert not made.done("clean").any()

    @pytest.mark.parametrize(
        ("rows", "also", "message"),
        [
            ([0, 0], {}, "twice"),
            ([1, 2], {}, "twice"),  # 1 is recorded
            ([0, 3], {}, r"0\.\.2"),
            ([0], {}, "detections of 2 images"),
            ([0, 2], {"norm": float("nan")}, "finite"),
            ([0, 2], {"norm": -0.1}, ">= 0"),
            ([0, 2], {"norm": 0.1, "attacked": False}, "not attacked has a norm"),
            ([0, 2], {"forwards": -1}, "forwards must be"),
            ([0, 2], {"backwards": 0.5}, "whole numbers"),
        ],
    )
    def test_rows_and_their_numbers_are_checked(self, rows, also, message):
        made = table()
        with pytest.raises(ValueError, match=message):
            made.record("pgd-10", rows, [found(0.5)] * 2, **also)
        assert made.done("pgd-10").tolist() == [False, True, False]

    def test_a_stage_has_a_plain_name(self):
        with pytest.raises(UserError, match="name is up to 40"):
            empty().record("../x", [0], [found()])

    def test_as_many_stages_are_taken_as_a_file_holds(self, tmp_path: Path):
        made = empty()
        for number in range(22):
            made.record(f"pgd-{number}", [0], [found(0.5)])
        with pytest.raises(UserError, match="holds 22 stages"):
            made.record("fgsm", [0], [found(0.5)])
        made.save(tmp_path / "evidence.npz")
        assert len(DetectionEvidence.load(tmp_path / "evidence.npz").stages) == 22


class TestTruth:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"image": np.array([0, 0, 3])}, r"0\.\.2"),
            ({"image": np.array([2, 0, 2])}, "in order"),
            ({"labels": np.array([0, 2, 0])}, r"classes 0\.\.1"),
            ({"boxes": np.array([BOX, [3, 2, 1, 4], BOX])}, "x2 < x1"),
            ({"boxes": np.array([BOX, [np.nan, 2, 1, 4], BOX])}, "no finite number"),
            ({"areas": np.array([1.0, -1.0, 1.0])}, "area is negative"),
            ({"ignore": np.array([True])}, "do not match"),
        ],
    )
    def test_an_object_is_a_box_of_an_image_and_a_class(self, changed, message):
        with pytest.raises(ValueError, match=message):
            DetectionEvidence([4, 9, 2], NAMES, ["a", "b"], ["map50_area"], objects(**changed))

    @pytest.mark.parametrize(
        ("index", "images", "classes", "conventions", "message"),
        [
            ([1, 1, 2], NAMES, "ab", ["map50_area"], "exactly one row"),
            ([1, 2], NAMES, "ab", ["map50_area"], "2 indices, but 3 images"),
            ([1, 2, 3], "xxy", "ab", ["map50_area"], "twice in images"),
            ([1, 2, 3], ("x", "", "y"), "ab", ["map50_area"], "empty or cannot be printed"),
            ([1, 2, 3], ("x", "y\0", "y"), "ab", ["map50_area"], "empty or cannot be printed"),
            ([1, 2, 3], NAMES, "aa", ["map50_area"], "twice in classes"),
            ([1, 2, 3], NAMES, "ab", [], "VOC's or of COCO's"),
            ([1, 2, 3], NAMES, "ab", ["map"], "VOC's or of COCO's"),
            ([1, 2, 3], NAMES, "ab", ["map50_area", "map_coco"], "VOC's or of COCO's"),
        ],
    )
    def test_names_are_distinct_and_conventions_of_one_evaluator(
        self, index, images, classes, conventions, message
    ):
        with pytest.raises(ValueError, match=message):
            DetectionEvidence(index, images, classes, conventions, objects())

    def test_the_headline_stays_first(self):
        names = ("map75_coco", "map_coco", "map50_coco")
        assert DetectionEvidence([1, 2, 3], NAMES, "ab", names, objects()).conventions == names

    def test_the_same_images_are_those_with_the_same_names_and_objects(self):
        assert same_images(empty(), table())
        moved = objects(boxes=objects().boxes + 1)
        others = [
            DetectionEvidence([4, 9, 2], NAMES, ["cell", "x"], ["map50_area"], objects()),
            DetectionEvidence([4, 9, 3], NAMES, ["cell", "platelet"], ["map50_area"], objects()),
            DetectionEvidence([4, 9, 2], NAMES, ["cell", "platelet"], ["map50_area"], moved),
        ]
        assert not any(same_images(empty(), other) for other in others)


class TestFile:
    def test_a_table_survives_the_disk(self, tmp_path: Path):
        made = table()
        made.save(tmp_path / "evidence.npz")
        read = DetectionEvidence.load(tmp_path / "evidence.npz")
        assert same_images(made, read)
        assert (read.conventions, read.stages) == (made.conventions, made.stages)
        for stage in ("clean", *made.stages):
            for name in STAGE.names or ():
                assert np.array_equal(made.column(stage, name), read.column(stage, name))
        for stage in ("clean", "fgsm"):
            for one, other in zip(
                made.detections(stage)[1], read.detections(stage)[1], strict=True
            ):
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)

    def test_an_interrupted_stage_continues_where_it_was(self, tmp_path: Path):
        table().save(tmp_path / "evidence.npz")
        read = DetectionEvidence.load(tmp_path / "evidence.npz")
        rows = np.flatnonzero(~read.done("pgd-10"))
        read.record("pgd-10", rows, [found(0.2), found()], norm=0.03)
        image, flat = read.detections("pgd-10")
        assert image.tolist() == [0, 1]
        assert flat.scores.tolist() == pytest.approx([0.2, 0.1])

    def test_equal_tables_are_equal_bytes_whatever_the_order_of_their_batches(self, tmp_path: Path):
        for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
            made = empty()
            for row in order:
                made.record("clean", [row], [found(*[0.1] * row)])
            made.save(tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_an_image_and_a_stage_without_anything_found_are_kept(self, tmp_path: Path):
        made = empty()
        made.record("clean", [0, 1, 2], [found()] * 3)
        made.save(tmp_path / "evidence.npz")
        image, flat = DetectionEvidence.load(tmp_path / "evidence.npz").detections("clean")
        assert (len(image), flat.boxes.shape) == (0, (0, 4))

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("format", lambda _: np.array("aal-bench classification evidence 1"), "format is"),
            ("index", lambda a: a[:2], "2 indices, but 3 images"),
            ("images", lambda _: np.arange(3), "images is missing or no list"),
            ("classes", None, "classes is missing"),
            ("conventions", lambda a: a[:0], "VOC's or of COCO's"),
            ("objects/boxes", lambda a: a[:, ::-1].copy(), "x2 < x1"),
            ("objects/labels", lambda a: a.astype(np.int64), "int64"),
            ("stage/fgsm", lambda a: a[:2], "shape"),
            ("stage/clean", lambda a: with_field(a, "attacked", True), "no attack"),
            ("stage/clean", lambda a: with_field(a, "forwards", 2), "one forward pass"),
            ("stage/fgsm", lambda a: with_field(a, "norm", np.nan), "finite"),
            ("stage/fgsm", lambda a: with_field(a, "count", 2), "shape"),
            ("stage/fgsm", lambda a: with_field(a, "count", -1), "count must be"),
            ("stage/fgsm", lambda a: with_field(a, "recorded", False), "not recorded"),
            ("boxes/clean", lambda a: a[:, ::-1].copy(), "x2 < x1"),
            ("boxes/clean", lambda a: a * np.float32(np.nan), "finite"),
            ("scores/clean", lambda a: a + 1, "outside"),
            ("labels/clean", lambda a: a + np.int16(7), r"classes 0\.\.1"),
            ("labels/clean", None, "labels/clean is missing"),
            ("boxes/cw", lambda _: np.zeros((0, 4), np.float32), "is no column"),
            ("stage/C W", lambda _: np.zeros(3, STAGE), "a member called"),
        ],
    )
    def test_a_file_that_contradicts_itself_is_refused(self, tmp_path, name, change, message):
        path = tmp_path / "evidence.npz"
        table().save(path)
        with np.load(path) as file:
            arrays = dict(file)
        changed = None if change is None else change(arrays.get(name))
        arrays.pop(name, None)
        np.savez_compressed(path, **arrays, **({} if changed is None else {name: changed}))
        with pytest.raises(UserError, match=message) as error:
            DetectionEvidence.load(path)
        assert "\n" not in str(error.value)

    def test_a_file_that_is_none_or_too_large_is_refused(self, tmp_path: Path):
        path = tmp_path / "evidence.npz"
        with pytest.raises(UserError, match="no such evidence table"):
            DetectionEvidence.load(path)
        table().save(path)
        with pytest.raises(UserError, match="at most 1,000"):
            DetectionEvidence.load(path, largest=1000)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(UserError, match="not a readable evidence table"):
            DetectionEvidence.load(path)

    def test_nothing_is_unpickled(self, tmp_path: Path):
        path = tmp_path / "evidence.npz"
        np.savez(path, allow_pickle=True, format=np.array(FORMAT), index=np.array([{}], object))
        with pytest.raises(UserError, match="not a readable evidence table"):
            DetectionEvidence.load(path)


def with_field(block, name, value):
    """A copy of a stage with one column overwritten."""
    changed = block.copy()
    changed[name] = value
    return changed
