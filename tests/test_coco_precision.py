"""COCO's average precision from a table equals pycocotools' and MMDetection's own numbers."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from aal_bench import coco_precision
from aal_bench.average_precision import curve
from aal_bench.detection_evidence import DetectionEvidence, Detections, Objects
from aal_bench.detection_metrics import means, per_class
from aal_bench.errors import UserError

CONVENTIONS = ("map_coco", "map50_coco", "map75_coco")
CLASSES = ("person", "dog", "never seen")


def random_table(seed: int, images: int = 25, ties: bool = False) -> DetectionEvidence:
    """Whole-pixel objects and crowds; image numbers are not in order, and some images are empty."""
    rng = np.random.default_rng(seed)
    count = 3 * images
    image = np.sort(rng.integers(0, images, count)).astype(np.int32)
    corner, size = rng.integers(0, 300, (count, 2)), rng.integers(4, 150, (count, 2))
    boxes = np.concatenate((corner, corner + size), 1).astype(np.float64)
    labels = rng.integers(0, 2, count).astype(np.int16)
    truth = Objects(image, boxes, labels, rng.random(count) < 0.1, 0.7 * size.prod(1))
    names = [str(number) for number in rng.permutation(10 * images)[:images]]
    made = DetectionEvidence(np.arange(images), names, CLASSES, CONVENTIONS, truth)
    for row in range(images):
        own, size = np.flatnonzero(image == row), int(rng.integers(0, 40))
        near = boxes[rng.choice(own, size)] if len(own) else np.tile([10.0, 10, 60, 90], (size, 1))
        guess = near + rng.normal(0, 5, (size, 4))
        guess[:, 2:] = np.maximum(guess[:, :2], guess[:, 2:])
        scores = np.round(rng.random(size), 1) if ties else rng.random(size)
        classes = rng.choice(3, size, p=(0.5, 0.4, 0.1))
        made.record("clean", [row], [Detections(guess, scores, classes)])
    return made


def annotation_file(path: Path, table: DetectionEvidence, rows=None) -> Path:
    """The objects as a COCO file; of `rows`, each time as an image of its own, numbered on."""
    truth, annotations, images = table.objects, [], []
    for number, row in enumerate(range(len(table)) if rows is None else rows):
        name = int(table.images[row]) if rows is None else number
        images.append({"id": name, "width": 500, "height": 500, "file_name": f"{name}.jpg"})
        for place in np.flatnonzero(truth.image == row):
            x1, y1, x2, y2 = truth.boxes[place].tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": name,
                    "category_id": 3 + 4 * int(truth.labels[place]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(truth.areas[place]),
                    "iscrowd": int(truth.ignore[place]),
                }
            )
    categories = [{"id": 3 + 4 * k, "name": name} for k, name in enumerate(CLASSES)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(tree))
    return path


def stats(path: Path, table: DetectionEvidence, rows=None) -> list[float]:
    """AP, AP50 and AP75 as anybody gets them from pycocotools, from files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    image, found = table.detections("clean")
    guesses = []
    for number, row in enumerate(range(len(table)) if rows is None else rows):
        for box, score, label in zip(*(part[image == row].tolist() for part in found), strict=True):
            x1, y1, x2, y2 = box
            guesses.append(
                {
                    "image_id": int(table.images[row]) if rows is None else number,
                    "category_id": 3 + 4 * label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    truth = COCO(str(annotation_file(path / "truth.json", table, rows)))
    (path / "found.json").write_text(json.dumps(guesses))
    evaluator = COCOeval(truth, truth.loadRes(str(path / "found.json")), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats[:3].tolist()


@pytest.mark.parametrize(("seed", "ties"), [(0, False), (1, True), (2, True)])
def test_the_means_are_those_of_pycocotools(tmp_path, seed, ties):
    table = random_table(seed, ties=ties)
    expected = stats(tmp_path, table)
    assert list(means(table, "clean").values()) == pytest.approx(expected, abs=1e-9)
    assert expected[1] > expected[0] > 0.05


def test_the_mean_is_over_the_classes_that_have_objects():
    table = random_table(0)
    for name in CONVENTIONS:
        by_class = per_class(table, "clean", name)
        assert by_class["never seen"] is None
        known = [by_class["person"], by_class["dog"]]
        assert means(table, "clean")[name] == pytest.approx(np.mean(known), abs=1e-15)


def test_the_means_are_those_of_mmdetection(tmp_path):
    import torch

    from aal_bench.toolkits import mmcv_ops, mmdet_ssd

    mmcv_ops.repair()
    mmdet_ssd.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an optional evaluator that is not installed
        from mmdet.evaluation import CocoMetric
    table = random_table(3)
    metric = CocoMetric(str(annotation_file(tmp_path / "truth.json", table)), metric="bbox")
    metric.dataset_meta = {"classes": CLASSES}
    image, found = table.detections("clean")
    for row, name in enumerate(table.images):
        own = found.at(image == row)
        tensors = {
            "bboxes": torch.from_numpy(own.boxes),
            "scores": torch.from_numpy(own.scores),
            "labels": torch.from_numpy(own.labels.astype(np.int64)),
        }
        sample = {"pred_instances": tensors, "img_id": int(name), "ori_shape": (500, 500)}
        metric.process({}, [sample])
    stated = metric.compute_metrics(metric.results)
    expected = [stated[f"bbox_{name}"] for name in ("mAP", "mAP_50", "mAP_75")]
    # mmdet rounds to three decimals
    assert list(means(table, "clean").values()) == pytest.approx(expected, abs=5.1e-4)


def test_a_weight_is_how_often_an_image_is_there(tmp_path):
    table = random_table(4)
    matched = coco_precision.match(table, "clean")
    drawn = np.sort(np.random.default_rng(0).integers(0, 25, (25, 2)), axis=0)
    weights = np.stack([np.bincount(rows, minlength=25) for rows in drawn.T], axis=1)
    by_iou = np.array(
        [
            [coco_precision.average_precision(curve(one, weights)) for one in by_iou]
            for by_iou in matched[:2]
        ]
    )
    for column, rows in enumerate(drawn.T):
        own = by_iou[:, :, column].mean(0)
        expected = stats(tmp_path, table, rows)
        assert [own.mean(), own[0], own[5]] == pytest.approx(expected, abs=1e-9)


def small(names, boxes, crowd=(False, False), scores=(0.5, 0.5)) -> DetectionEvidence:
    """One object [0, 0, 10, 10] on each of two images, and one detection on each."""
    truth = Objects(
        np.array([0, 1]),
        np.array([[0, 0, 10, 10]] * 2, float),
        np.zeros(2, int),
        np.array(crowd),
        np.full(2, 100.0),
    )
    made = DetectionEvidence([0, 1], names, ["a"], CONVENTIONS, truth)
    for row in range(2):
        found = Detections(np.array([boxes[row]], float), scores[row : row + 1], np.zeros(1, int))
        made.record("clean", [row], [found])
    return made


RIGHT, WRONG = [0, 0, 10, 10], [40, 40, 50, 50]


def test_of_equal_scores_that_of_the_lower_image_number_is_first():
    # one of two found: 51 of 101 recalls, at precision 1 where the right one is first, else 1/2
    for names, expected in ((("2", "10"), 1.0), (("10", "2"), 0.5), (("b", "a"), 1.0)):
        value = means(small(names, (RIGHT, WRONG)), "clean")["map50_coco"]
        assert value == pytest.approx(expected * 51 / 101, abs=1e-12)


def test_a_crowd_is_neither_to_be_found_nor_wrong_to_find():
    table = small(("0", "1"), (RIGHT, RIGHT), crowd=(True, False), scores=(0.9, 0.5))
    assert list(means(table, "clean").values()) == pytest.approx([1.0] * 3, abs=1e-12)


def test_a_table_without_any_detection_is_zero():
    table = random_table(0)
    made = DetectionEvidence(table.index, table.images, CLASSES, CONVENTIONS, table.objects)
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    made.record("clean", np.arange(25), [nothing] * 25)
    assert list(means(made, "clean").values()) == [0.0, 0.0, 0.0]


def test_it_prints_nothing_and_needs_no_torch(tmp_path):
    random_table(0).save(tmp_path / "evidence.npz")
    code = (
        "import sys; from pathlib import Path;"
        " from aal_bench.detection_evidence import DetectionEvidence;"
        " from aal_bench.detection_metrics import means;"
        " assert 'pycocotools' not in sys.modules;"
        " means(DetectionEvidence.load(Path(sys.argv[1])), 'clean');"
        " assert 'pycocotools' in sys.modules;"
        " assert not {'torch', 'mmdet', 'mmengine', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "evidence.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"pip install 'aal-bench\[detection\]'"):
        means(random_table(0), "clean")
