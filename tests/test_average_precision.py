"""VOC's average precision equals MMDetection's, class by class and as a mean, of any resample."""

import warnings

import numpy as np
import pytest

from aal_bench.average_precision import average_precision, curve, match, overlaps
from aal_bench.detection_evidence import DetectionEvidence, Detections, Objects
from aal_bench.detection_metrics import means, per_class

MODES = {"11points": "map50_voc11", "area": "map50_area"}
CLASSES = ("cell", "platelet", "never seen")


def random_table(seed: int, images: int, ties: bool = False) -> DetectionEvidence:
    """Boxes near objects and elsewhere, a class without objects, images without either."""
    rng = np.random.default_rng(seed)
    count = 3 * images
    image = np.sort(rng.integers(0, images, count)).astype(np.int32)
    corner, size = rng.uniform(0, 300, (count, 2)), rng.uniform(4, 120, (count, 2))
    boxes = np.concatenate((corner, corner + size), 1).astype(np.float32).astype(np.float64)
    labels = rng.integers(0, 2, count).astype(np.int16)
    truth = Objects(image, boxes, labels, rng.random(count) < 0.15, size.prod(1))
    names = [str(number) for number in range(images)]
    made = DetectionEvidence(np.arange(images), names, CLASSES, tuple(MODES.values()), truth)
    for row in range(images):
        own, size = np.flatnonzero(image == row), int(rng.integers(0, 60))
        near = boxes[rng.choice(own, size)] if len(own) else np.tile([10.0, 10, 60, 90], (size, 1))
        guess = near + rng.normal(0, 8, (size, 4))
        guess[:, 2:] = np.maximum(guess[:, :2], guess[:, 2:])
        scores = rng.random(size)
        scores = np.round(scores * 8) / 8 if ties else scores
        classes = rng.choice(3, size, p=(0.5, 0.4, 0.1))
        made.record("clean", [row], [Detections(guess, scores, classes)])
    return made


@pytest.fixture(scope="module")
def eval_map():
    from aal_bench.toolkits import mmcv_ops, mmdet_ssd

    mmcv_ops.repair()
    mmdet_ssd.repair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an optional evaluator that is not installed
        from mmdet.evaluation.functional import eval_map

    def evaluate(table, mode, rows=None):
        """(mean, AP of each class or None) as mmdet's VOCMetric has it, of images in that order."""
        image, found = table.detections("clean")
        truth, detections, annotations = table.objects, [], []
        for row in range(len(table)) if rows is None else rows:
            own = found.at(image == row)
            scored = np.hstack([own.boxes, own.scores[:, None]])
            detections.append([scored[own.labels == c] for c in range(len(table.classes))])
            kept = truth.at((truth.image == row) & ~truth.ignore)
            ignored = truth.at((truth.image == row) & truth.ignore)
            annotations.append(
                {
                    "bboxes": kept.boxes.astype(np.float32),
                    "labels": kept.labels,
                    "bboxes_ignore": ignored.boxes.astype(np.float32),
                    "labels_ignore": ignored.labels,
                }
            )
        mean, by_class = eval_map(
            detections,
            annotations,
            iou_thr=0.5,
            logger="silent",
            nproc=1,
            eval_mode=mode,
            use_legacy_coordinate=True,
        )
        return mean, [one["ap"] if one["num_gts"] else None for one in by_class]

    return evaluate


class TestAgainstMMDetection:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize(("seed", "images"), [(0, 40), (1, 1), (2, 7)])
    def test_each_class_and_the_mean_are_its(self, eval_map, seed, images, mode):
        table = random_table(seed, images)
        mean, by_class = eval_map(table, mode)
        # mmdet adds in single precision
        assert means(table, "clean")[MODES[mode]] == pytest.approx(mean, abs=3e-7)
        own = list(per_class(table, "clean", MODES[mode]).values())
        assert [one is None for one in own] == [one is None for one in by_class]
        pairs = [pair for pair in zip(own, by_class, strict=True) if None not in pair]
        for one, other in pairs:
            assert one == pytest.approx(other, abs=3e-7)
        assert mean > 0.1

    @pytest.mark.parametrize("mode", MODES)
    def test_equal_scores_are_ranked_as_numpy_ranks_them_for_mmdet(self, eval_map, mode):
        table = random_table(3, 40, ties=True)
        matched = match(table, "clean", sort="quicksort")
        own = [ap(one, np.ones((40, 1)), mode)[0] for one in matched]
        assert own[:2] == pytest.approx(eval_map(table, mode)[1][:2], abs=3e-7)
        assert np.isnan(own[2])

    @pytest.mark.parametrize("mode", MODES)
    def test_a_weight_is_how_often_an_image_is_there(self, eval_map, mode):
        table, matched = random_table(4, 25), match(random_table(4, 25), "clean")
        drawn = np.sort(np.random.default_rng(0).integers(0, 25, (25, 3)), axis=0)
        weights = np.stack([np.bincount(rows, minlength=25) for rows in drawn.T], axis=1)
        own = [ap(one, weights, mode) for one in matched[:2]]
        for column, rows in enumerate(drawn.T):
            expected = eval_map(table, mode, rows)[1][:2]
            assert [one[column] for one in own] == pytest.approx(expected, abs=3e-7)

    def test_overlaps_are_its_bit_by_bit(self, eval_map):
        from mmdet.evaluation.functional import bbox_overlaps

        one, two = random_table(5, 9), random_table(6, 9)
        a, b = one.detections("clean")[1].boxes, two.objects.boxes
        expected = bbox_overlaps(a, b, use_legacy_coordinate=True)
        assert np.array_equal(overlaps(a, b), expected)
        assert (expected > 0.5).any()


def single(truth, guesses, scores, ignore=None) -> DetectionEvidence:
    """One image and one class."""
    boxes = np.array(truth, float).reshape(-1, 4)
    count = len(boxes)
    ignored = np.zeros(count, bool) if ignore is None else np.array(ignore)
    objects = Objects(np.zeros(count, int), boxes, np.zeros(count, int), ignored, np.ones(count))
    made = DetectionEvidence([0], ["0"], ["cell"], tuple(MODES.values()), objects)
    found = np.array(guesses, float).reshape(-1, 4)
    made.record("clean", [0], [Detections(found, scores, np.zeros(len(found), int))])
    return made


def ap(matched, weights, mode):
    return average_precision(curve(matched, weights), mode)


def verdicts(table) -> str:
    """Of the detections by falling score: ``+`` right, ``-`` wrong, ``.`` neither."""
    (one,) = match(table, "clean")
    return "".join("+" if t else "-" if f else "." for t, f in zip(one.tp, one.fp, strict=True))


A, B = [0, 0, 99, 99], [50, 0, 149, 99]


class TestRules:
    def test_widths_count_both_end_pixels(self):
        assert overlaps(np.array([[0, 0, 9, 9]]), np.array([[0, 0, 9, 19]]))[0, 0] == 0.5
        assert verdicts(single([[0, 0, 9, 19]], [[0, 0, 9, 9]], [0.5])) == "+"

    def test_the_second_to_find_an_object_is_wrong(self):
        assert verdicts(single([A], [A, A], [0.4, 0.9])) == "+-"

    def test_a_detection_belongs_to_the_object_it_overlaps_most_or_to_none(self):
        # Both overlap A most; that the second would do for B as well does not help it.
        near_a = [24, 0, 123, 99]
        assert (overlaps(np.array([near_a]), np.array([A, B])) > 0.5).all()
        assert verdicts(single([A, B], [A, near_a], [0.9, 0.8])) == "+-"

    def test_a_difficult_object_neither_rewards_nor_punishes(self):
        table = single([A, B], [A, A, B], [0.9, 0.8, 0.7], ignore=[True, False])
        assert verdicts(table) == "..+"
        assert means(table, "clean") == {"map50_voc11": 1.0, "map50_area": 1.0}

    def test_of_equal_overlaps_the_object_that_counts_is_taken(self):
        assert verdicts(single([A, A], [A], [0.9], ignore=[True, False])) == "+"

    def test_three_of_ten_do_not_reach_the_recall_of_three_tenths(self):
        # mmdet's 0.1 * 3 is 0.30000000000000004, and its users' numbers have it so.
        truth = [[200 * k, 0, 200 * k + 99, 99] for k in range(10)]
        table = single(truth, truth[:3], [0.9, 0.8, 0.7])
        assert means(table, "clean") == pytest.approx(
            {"map50_voc11": 3 / 11, "map50_area": 0.3}, abs=1e-15
        )

    def test_the_area_is_under_the_falling_envelope(self):
        # right, wrong, right of two objects: precision 1 up to recall 1/2, then 2/3
        table = single([A, [500, 0, 599, 99]], [A, A, [500, 0, 599, 99]], [0.9, 0.8, 0.7])
        assert means(table, "clean") == pytest.approx(
            {"map50_voc11": (6 + 5 * 2 / 3) / 11, "map50_area": 5 / 6}, abs=1e-15
        )

    def test_without_objects_there_is_no_precision_and_without_detections_it_is_zero(self):
        assert per_class(single([], [A], [0.9]), "clean", "map50_area") == {"cell": None}
        assert per_class(single([A], [A], [0.9], [True]), "clean", "map50_area") == {"cell": None}
        assert per_class(single([A], [], []), "clean", "map50_voc11") == {"cell": 0.0}
        assert per_class(single([A], [B], [0.9]), "clean", "map50_area") == {"cell": 0.0}

    def test_equal_scores_keep_the_order_of_the_table_on_every_processor(self):
        rows, none = np.arange(400), np.zeros(0, int)  # too many for an insertion sort
        truth = Objects(none, np.zeros((0, 4)), none, none.astype(bool), none.astype(float))
        table = DetectionEvidence(rows, list(map(str, rows)), ["cell"], ["map50_area"], truth)
        found = [Detections(np.array([A]), [(row % 4) / 4], np.zeros(1, int)) for row in rows]
        table.record("clean", rows, found)
        (one,) = match(table, "clean")
        assert one.image.tolist() == sorted(rows, key=lambda row: -(row % 4))


@pytest.mark.parametrize("mode", MODES)
def test_all_resamples_at_once_are_each_alone(mode):
    matched = match(random_table(7, 30), "clean")[0]
    weights = np.random.default_rng(1).integers(0, 4, (30, 8))
    weights[:, 3] = 0
    together = ap(matched, weights, mode)
    alone = [ap(matched, weights[:, [column]], mode)[0] for column in range(8)]
    assert np.isnan(together[3])
    assert np.allclose(together, alone, rtol=0, atol=1e-15, equal_nan=True)
