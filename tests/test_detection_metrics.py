"""Detection's numbers: intervals over images, paired differences, and their record."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binom

from aal_bench.config import parse
from aal_bench.detection_evidence import DetectionEvidence, Detections, Objects
from aal_bench.detection_metrics import (
    differences,
    intervals,
    means,
    per_class,
    precisions,
    resamples,
)
from aal_bench.errors import UserError
from aal_bench.metrics import METRICS, near_chance
from aal_bench.paths import data_folder
from aal_bench.record import Result
from aal_bench.results import evidence_file
from aal_bench.schema import Metrics

VOC = ("map50_voc11", "map50_area")
BOX = [10.0, 10.0, 60.0, 60.0]
FAR = [200.0, 200.0, 260.0, 260.0]


def blank(images: int, labels=None, ignore=None, conventions=VOC, classes=("a", "b")):
    """One object `BOX` on every image."""
    kinds = np.zeros(images, int) if labels is None else np.asarray(labels)
    ignored = np.zeros(images, bool) if ignore is None else np.asarray(ignore)
    areas = np.full(images, 2500.0)
    objects = Objects(np.arange(images), np.tile(BOX, (images, 1)), kinds, ignored, areas)
    names = [f"{row:06d}" for row in range(images)]
    return DetectionEvidence(np.arange(images), names, classes, conventions, objects)


def fill(table: DetectionEvidence, stage: str, right, seed: int = 0, wrong: float = 0.5) -> None:
    """On every image for which `right` says so the object is found; on some, something else too."""
    rng = np.random.default_rng(seed)
    for row, hit in enumerate(right):
        boxes = [BOX] * bool(hit) + [FAR] * (rng.random() < wrong)
        label = table.objects.labels[row]
        found = Detections(
            np.array(boxes).reshape(-1, 4), rng.random(len(boxes)), np.full(len(boxes), label)
        )
        table.record(stage, [row], [found], norm=0.03, forwards=11, backwards=10)


def random_table(seed: int, images: int = 40, **also) -> DetectionEvidence:
    rng = np.random.default_rng(seed)
    table = blank(images, labels=rng.integers(0, 2, images), **also)
    fill(table, "clean", rng.random(images) < 0.8, seed)
    fill(table, "pgd-10", rng.random(images) < 0.3, seed + 1)
    return table


def drawn_again(table: DetectionEvidence, rows) -> DetectionEvidence:
    """The table of a resample, in which an image drawn twice is two images."""
    image, found = table.detections("clean")
    truth = table.objects
    where = [np.flatnonzero(truth.image == row) for row in rows]
    count = np.repeat(np.arange(len(rows)), [len(places) for places in where])
    objects = truth.at(np.concatenate(where))._replace(image=count)
    names = [f"{place}-{row}" for place, row in enumerate(rows)]
    made = DetectionEvidence(np.arange(len(rows)), names, table.classes, table.conventions, objects)
    made.record("clean", np.arange(len(rows)), [found.at(image == row) for row in rows])
    return made


class TestInterval:
    @pytest.mark.parametrize("conventions", [VOC, ("map_coco", "map50_coco", "map75_coco")])
    def test_it_is_the_middle_of_the_means_of_drawn_tables(self, conventions):
        table = random_table(0, images=12, conventions=conventions)
        drawn = np.concatenate(list(resamples(12, samples=40, seed=5)), axis=1).astype(int)
        tables = [drawn_again(table, np.repeat(np.arange(12), counts)) for counts in drawn.T]
        plain = [means(one, "clean") for one in tables]
        for name, (low, high) in intervals(table, "clean", samples=40, seed=5).items():
            expected = np.percentile([one[name] for one in plain], (2.5, 97.5))
            value = means(table, "clean")[name]
            assert low == pytest.approx(min(expected[0], value), abs=1e-12)
            assert high == pytest.approx(max(expected[1], value), abs=1e-12)

    def test_of_a_share_it_is_the_binomials(self):
        # Nothing is found wrongly: the area is the share of objects found, k out of n.
        table = blank(200, classes=("a",))
        fill(table, "clean", np.arange(200) < 120, wrong=0.0)
        assert means(table, "clean")["map50_area"] == pytest.approx(0.6, abs=1e-12)
        low, high = intervals(table, "clean", samples=4000)["map50_area"]
        exact = binom.ppf((0.025, 0.975), 200, 0.6) / 200
        assert (low, high) == pytest.approx(tuple(exact), abs=0.006)  # a step is 0.005

    def test_it_contains_the_value(self):
        for seed in range(5):
            table = random_table(seed, images=4)
            for name, (low, high) in intervals(table, "pgd-10", samples=3, seed=seed).items():
                assert 0 <= low <= means(table, "pgd-10")[name] <= high <= 1

    def test_a_resample_without_an_object_says_nothing(self):
        table = blank(3, ignore=[True, True, False])
        fill(table, "clean", [True] * 3, wrong=0.0)
        assert intervals(table, "clean", samples=100) == dict.fromkeys(VOC, (1.0, 1.0))

    def test_draws_are_as_many_as_images_and_never_change(self):
        blocks = list(resamples(50, samples=300, seed=0))
        assert [block.shape for block in blocks] == [(50, 128), (50, 128), (50, 44)]
        assert all((block.sum(0) == 50).all() for block in blocks)
        # 4 0 3 3 3, 1 3 2 4 0, 0 4 2 1 0: what np.random.randint(5) has said after seed(0) for ever
        assert next(resamples(5, samples=3, seed=0)).T.tolist() == [
            [1, 0, 0, 3, 1],
            [1, 1, 1, 1, 1],
            [2, 1, 1, 0, 1],
        ]


class TestPaired:
    def test_it_is_the_difference_on_the_same_draws(self):
        a, b = random_table(0), random_table(0)
        fill(a, "fgsm", np.arange(40) % 3 > 0, seed=1)
        fill(b, "fgsm", np.arange(40) % 4 > 1, seed=2)
        found = differences(a, b, "fgsm", samples=200, seed=3)
        own = [means(table, "fgsm") for table in (a, b)]
        for name in VOC:
            assert found[name].value == pytest.approx(own[0][name] - own[1][name], abs=1e-12)
            assert found[name].low <= found[name].value <= found[name].high
        back = differences(b, a, "fgsm", samples=200, seed=3)
        assert back["map50_area"].low == pytest.approx(-found["map50_area"].high, abs=1e-12)

    def test_what_an_image_is_hard_for_cancels_out(self):
        hard = np.arange(60) % 2 > 0
        a, b = blank(60), blank(60)
        fill(a, "clean", hard, wrong=0.0)
        fill(b, "clean", hard & (np.arange(60) > 1), wrong=0.0)  # one image more is lost
        paired = differences(a, b, "clean")["map50_area"]
        low, high = intervals(a, "clean")["map50_area"]
        assert paired.value == pytest.approx(1 / 60)
        assert paired.high - paired.low < (high - low) / 3

    def test_a_run_does_not_differ_from_itself(self):
        found = differences(random_table(1), random_table(1), "pgd-10", samples=50)
        assert {name: tuple(one) for name, one in found.items()} == dict.fromkeys(VOC, (0, 0, 0))

    def test_other_images_are_refused(self):
        with pytest.raises(UserError, match="different images"):
            differences(random_table(0), random_table(1), "clean")
        coco = blank(40, labels=random_table(0).objects.labels, conventions=("map_coco",))
        with pytest.raises(UserError, match="no convention in common"):
            differences(random_table(0), coco, "clean")


class TestMetrics:
    def test_they_are_what_the_schema_asks_for(self):
        table = random_table(0)
        found = METRICS["detection"](table, ["clean", "pgd-10"])
        assert list(found) == ["clean", "stages", "detection"], "no minimum of averages"
        block = Metrics.model_validate(found)
        assert block.model_dump(mode="json", exclude={"autoattack"}) == json.loads(
            json.dumps(found)
        )
        assert found["clean"]["n"] == 40
        assert found["clean"] == found["detection"]["stages"]["clean"]["map50_voc11"]
        assert found["stages"].keys() == {"pgd-10"}
        for stage in ("clean", "pgd-10"):
            told = found["detection"]["stages"][stage]
            values = {name: one["value"] for name, one in told.items()}
            assert values == pytest.approx(means(table, stage), abs=1e-9)
            own = precisions(table, stage).means["map50_area"]
            assert told["map50_area"]["ci95"] == pytest.approx([own.low, own.high], abs=1e-9)
            by_class = found["detection"]["classes"][stage]
            assert by_class == pytest.approx(per_class(table, stage, "map50_voc11"), abs=1e-9)

    def test_ignored_objects_do_not_count(self):
        table = blank(4, labels=[0, 0, 0, 1], ignore=[True, False, False, True])
        fill(table, "clean", [True] * 4)
        found = METRICS["detection"](table, ["clean"])["detection"]
        assert found["objects"] == {"a": 2, "b": 0}
        assert found["classes"]["clean"]["b"] is None
        assert (found["samples"], found["seed"]) == (1000, 0)

    def test_a_stage_with_missing_images_is_an_error(self):
        table = random_table(0)
        table.record("fgsm", [0], [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))])
        with pytest.raises(UserError, match="'fgsm' lacks 39 of 40"):
            METRICS["detection"](table, ["clean", "fgsm"])

    def test_a_detector_below_a_hundredth_has_not_learnt_its_task(self):
        assert near_chance("detection", 20, {"value": 0.00996}) == (0.01, 0.01)
        assert near_chance("detection", 20, {"value": 0.01}) is None
        assert near_chance("detection", 2, {"value": 0.3}) is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m.update(robust=m["clean"]), "no image stands"),
            (lambda m: m.update(stages={}), "are not map50_voc11"),
            (lambda m: m["detection"].update(conventions=["map50_area"]), "once in each"),
            (lambda m: m["detection"]["classes"].pop("pgd-10"), "different stages"),
            (lambda m: m["detection"]["objects"].pop("a"), "different classes"),
            (lambda m: m.pop("detection"), "robust is missing"),
        ],
    )
    def test_a_block_that_contradicts_itself_is_refused(self, change, message):
        found = METRICS["detection"](random_table(0), ["pgd-10"])
        change(found)
        with pytest.raises(ValidationError, match=message):
            Metrics.model_validate(found)


COMMITTED = next((data_folder("leaderboards") / "digits" / "Linf").glob("*.json"))


def record() -> dict:
    """A committed entry made one of detection."""
    tree = json.loads(COMMITTED.read_text(encoding="utf-8"))
    stages = [stage["attack"] for stage in tree["evaluation"]]
    table = random_table(0)
    for name in set(stages) - {"clean", "pgd-10"}:
        fill(table, name, np.arange(40) % 2 > 0)
    tree["metrics"] = METRICS["detection"](table, stages)
    tree["task"]["family"] = "detection"
    for stage in tree["evaluation"]:
        stage.pop("n_out")
    for key in ("clean_acc", "autoattack_acc", "external"):
        tree.pop(key, None)
    return tree


class TestRecord:
    def test_a_mean_average_precision_is_no_accuracy(self):
        result = parse(Result, record(), "result")
        assert result.clean_acc is None
        tree = result.model_dump(mode="json")
        assert "clean_acc" not in tree
        assert all("n_out" not in stage for stage in tree["evaluation"])
        assert "robust" not in tree["metrics"]
        with pytest.raises(UserError, match="clean_acc"):
            parse(Result, record() | {"clean_acc": "80.00"}, "result")

    def test_no_image_stands_in_detection_and_every_one_is_counted_elsewhere(self):
        tree = record()
        tree["evaluation"][0]["n_out"] = 3
        with pytest.raises(UserError, match="n_out is absent of a detection's stages"):
            parse(Result, tree, "result")
        tree = json.loads(COMMITTED.read_text(encoding="utf-8"))
        parse(Result, tree, "result")
        tree["evaluation"][1]["n_out"] = None
        with pytest.raises(UserError, match="n_out is absent of a detection's stages"):
            parse(Result, tree, "result")

    def test_family_and_metrics_go_together(self):
        tree = record()
        tree["task"]["family"] = "classification"
        with pytest.raises(UserError, match="go together"):
            parse(Result, tree, "result")

    def test_the_evidence_block_is_that_of_the_table(self, tmp_path: Path):
        table = random_table(0)
        table.save(tmp_path / "evidence.npz")
        block = evidence_file(tmp_path / "evidence.npz", table, {"pixels": "0" * 64})
        assert (block.format, block.rows) == ("aal-bench detection evidence 1", 40)
        assert block.columns == table.columns()
