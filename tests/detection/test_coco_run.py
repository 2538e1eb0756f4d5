"""COCO from the file to the number: what is scored is the file's own, by its own metric."""

import json
from pathlib import Path

import numpy as np
import pytest

from aal_bench import results, runner
from aal_bench.boxes import Detections
from aal_bench.detection.objects import coco_objects_of
from aal_bench.detection.toolkit_metric import toolkit_means
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.detection_metrics import means
from aal_bench.resolve import Request

NAMES = ("cat", "dog")
TEST = "annotations/instances_test2017.json"
CONVENTIONS = ("map_coco", "map50_coco", "map75_coco")


@pytest.fixture
def folder(tmp_path: Path, coco_folder) -> Path:
    """Three images to train on, five to test on, one of which has no object."""
    made = coco_folder(tmp_path / "coco", {"train": 3, "test": 5})
    tree = json.loads((made / TEST).read_text())
    first = tree["images"][0]["id"]
    tree["annotations"] = [one for one in tree["annotations"] if one["image_id"] != first]
    (made / TEST).write_text(json.dumps(tree))
    return made


def test_a_whole_run(tmp_path: Path, folder: Path) -> None:
    request = Request(
        task="coco-format",
        classes="cat,dog",
        epochs=1,
        batch_size=3,
        device="cpu",
        precision="fp32",
        protocol="clean,pgd-1",
        settings=(
            "data.size=264",
            "train.validation=0",
            "detection.train=annotations/instances_train2017.json",
            f"detection.test={TEST}",
        ),
    )
    result = runner.run(request, tmp_path / "run", folder)
    assert result.metrics is not None
    assert result.metrics.detection is not None
    assert tuple(result.metrics.detection.conventions) == CONVENTIONS
    evidence = DetectionEvidence.load(tmp_path / "run" / "evidence.npz")
    found = results.METRICS["detection"](evidence, ["clean", "pgd-1"])
    assert found["clean"]["value"] == result.metrics.clean.value
    # The image without an object has no loss, so that nothing could be attacked.
    np.testing.assert_array_equal(evidence.column("pgd-1", "attacked"), [False, *[True] * 4])
    assert evidence.column("pgd-1", "norm")[0] == 0


class Listed:
    """A data set that knows its images' numbers, as COCO's readers do."""

    def get_data_info(self, index: int) -> dict:
        return {"img_id": index}


def test_our_numbers_are_those_of_mmdetections_metric(folder: Path) -> None:
    names, objects = coco_objects_of(Listed(), np.arange(5), str(folder / TEST), NAMES)
    evidence = DetectionEvidence(np.arange(5), names, NAMES, CONVENTIONS, objects)
    rng = np.random.default_rng(0)
    for row in range(5):
        own = objects.at(objects.image == row)
        moved = own.boxes + rng.normal(0, 1.5, own.boxes.shape)
        extra = np.array([[5.0, 5.0, 20.0, 20.0]])
        boxes = np.concatenate([moved, extra]).astype(np.float32)
        scores = rng.uniform(0.2, 0.9, len(boxes)).astype(np.float32)
        labels = np.concatenate([own.labels, [1]]).astype(np.int16)
        evidence.record("clean", [row], [Detections(boxes, scores, labels)])
    ours = means(evidence, "clean")["map_coco"]
    (theirs,) = toolkit_means(evidence, "clean", str(folder / TEST)).values()
    assert 0.2 < ours < 0.95
    assert abs(ours - theirs) <= 5.1e-4


def test_nothing_detected_is_nothing_found(folder: Path) -> None:
    names, objects = coco_objects_of(Listed(), np.arange(5), str(folder / TEST), NAMES)
    evidence = DetectionEvidence(np.arange(5), names, NAMES, CONVENTIONS, objects)
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int16))
    evidence.record("clean", range(5), [none] * 5)
    assert toolkit_means(evidence, "clean", str(folder / TEST)) == {"map_coco": 0.0}
