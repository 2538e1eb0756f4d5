"""What a person reads of a detection run: mAP by its convention, every class, the paper's claim."""

import re
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from aal_bench import registry, report
from aal_bench.boxes import Detections, Objects
from aal_bench.comparison import lines
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.leaderboard import reported, robustbench
from aal_bench.metrics import METRICS
from aal_bench.schema import EvidenceFile

VOC, COCO = ("map50_voc11", "map50_area"), ("map_coco", "map50_coco", "map75_coco")
PROTOCOL = ("clean", "pgd-10", "pgd-10-cls-eps-2", "fgsm-loc")
PARAMS = {
    "clean": {},
    "pgd-10": {"eps": "8/255", "loss": "total"},
    "pgd-10-cls-eps-2": {"eps": "2/255", "loss": "cls"},
    "fgsm-loc": {"eps": "8/255", "loss": "loc"},
}
FOUND = {"clean": 4, "pgd-10": 1, "pgd-10-cls-eps-2": 2, "fgsm-loc": 5}
"""On how many of the five images of a "cat" a stage leaves it detected."""


def table(conventions) -> DetectionEvidence:
    """Five images with one cat each, one of them a difficult dog too; no false detection."""
    box, other = [10.0, 10.0, 60.0, 60.0], [200.0, 200.0, 260.0, 260.0]
    objects = Objects(
        image=np.array([0, 1, 2, 3, 4, 4]),
        boxes=np.array([box] * 5 + [other]),
        labels=np.array([0, 0, 0, 0, 0, 1]),
        ignore=np.array([False] * 5 + [True]),
        areas=np.array([2500.0] * 5 + [3600.0]),
    )
    made = DetectionEvidence(
        np.arange(5), [f"{row}.jpg" for row in range(5)], ["cat", "dog|<b>"], conventions, objects
    )
    for stage in PROTOCOL:
        boxes = [np.array([box] * (row < FOUND[stage]), "f4").reshape(-1, 4) for row in range(5)]
        found = [Detections(at, np.ones(len(at), "f4"), np.zeros(len(at), "i2")) for at in boxes]
        made.record(stage, np.arange(5), found, norm=0.0, forwards=11, backwards=10)
    return made


@pytest.fixture
def make_detection(make_result):
    """A finished detection run: ``make_detection("voc0712", "aal-fgsm", limit=...)``."""

    def make(task="scenes", method="standard", model="ssd512-resnet34", **extra):
        conventions = COCO if task == "coco" else VOC
        made = make_result(task, method, model, n=5, metrics=None, evaluation=[], evidence=None,
                           status="started", **extra)  # fmt: skip
        evidence = table(conventions)
        stages = [
            {
                "attack": stage,
                "implementation": {"package": "aal-bench"},
                "params": PARAMS[stage],
                "seed": 0,
                "batch_size": 8,
                "partition": "all-in-index-order",
                "n_in": 5,
                "wall_seconds": 1.0,
                "forwards": 11.0,
                "backwards": 10.0,
                "max_violation": {"norm": 0.0, "box": 0.0},
            }
            for stage in PROTOCOL
        ]
        block = EvidenceFile(
            path="evidence.npz",
            sha256="c" * 64,
            format=evidence.format,
            rows=5,
            columns=evidence.columns(),
            dataset_fingerprint={"pixels": "d" * 64},
        )
        tree = made.result.model_dump(mode="json") | {
            "status": "success",
            "evaluation": stages,
            "metrics": METRICS["detection"](evidence, PROTOCOL),
            "evidence": block.model_dump(mode="json"),
        }
        return made._replace(result=type(made.result).model_validate(tree))

    return make


def shown(made, width: int = 200) -> str:
    page = StringIO()
    Console(width=width, file=page, color_system=None).print(report.table(made.result, made.task))
    return page.getvalue()


def row(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return re.split(r"\s{2,}", line.strip())


class TestTable:
    def test_the_column_is_map_and_the_caption_says_which(self, make_detection):
        text = shown(make_detection())
        assert "accuracy" not in text
        assert re.search(r"^\s+mAP\s+95 % interval\s+paper\s+reference$", text, re.MULTILINE)
        assert "mAP: map50_voc11, IoU 0.5, interpolated at 11 recalls (VOC 2007)" in text
        assert "interval: 95 % of 1,000 draws of the images" in text
        assert "no reference: RobustBench has no detectors" in text

    def test_numbers_are_those_of_the_boxes(self, make_detection):
        # 4 of 5 cats are found and nothing else: precision is 1 up to recall 0.8, which 9 of the
        # 11 recalls reach; of the dogs none counts.
        assert row(shown(make_detection()), "clean")[1] == f"{100 * 9 / 11:.1f} %"

    def test_labels_name_budget_and_loss(self, make_detection):
        made = make_detection()
        assert [line.label for line in lines(made.result, made.task)] == [
            "clean",
            "pgd-10  8/255",
            "pgd-10-cls-eps-2  2/255 on the classes' loss",
            "fgsm-loc  8/255 on the boxes' loss",
        ]

    def test_on_a_narrow_terminal_labels_give_way_and_numbers_stay(self, make_detection):
        made = make_detection()
        text = shown(made, width=80)
        for line in lines(made.result, made.task):
            assert f"{100 * line.measure.value:.1f} %" in text
        assert "…" not in text

    def test_a_trial_is_marked_in_every_row(self, make_detection):
        made = make_detection(smoke=True)
        numbers = [line for line in shown(made).splitlines() if re.search(r"\d %", line)]
        assert all(line.startswith("SMOKE") for line in numbers if "95 %" not in line)


class TestMarkdown:
    def test_every_convention_of_every_stage(self, make_detection):
        made = make_detection()
        text = report.markdown(made.result, made.task)
        assert "| stage | map50_voc11 | 95 % interval | map50_area | 95 % interval |" in text
        # Of 4, 1, 2 and 5 cats in 5 the area is the share; 11 points count recalls 0, 0.1, ...
        for stage, k in FOUND.items():
            (line,) = [x for x in text.split("by convention")[1].split("##")[0].splitlines()
                       if x.startswith(f"| {stage} |")]  # fmt: skip
            cells = [cell.strip() for cell in line.split("|")]
            assert cells[2] == f"{100 * (2 * k + 1) / 11:.2f} %"
            assert cells[4] == f"{100 * k / 5:.2f} %"

    def test_every_class_with_its_objects(self, make_detection):
        made = make_detection()
        text = report.markdown(made.result, made.task).split("of each class")[1].split("##")[0]
        assert f"| class | objects | {' | '.join(PROTOCOL)} |" in text
        assert "| cat | 5 | 81.82 | 27.27 | 45.45 | 100.00 |" in text
        assert "| dog&#124;&lt;b&gt; | 0 | - | - | - | - |" in text

    def test_no_image_stands_and_none_is_printed_to(self, make_detection):
        made = make_detection()
        text = report.markdown(made.result, made.task)
        assert "None" not in text.replace("None: RobustBench", "")
        assert "tanding" not in text
        assert "→" not in text
        assert "forwards / image" in text
        assert "## Nearest RobustBench rows\n\nNone: RobustBench has no detectors." in text

    def test_a_trial_is_marked_in_every_row_of_numbers(self, make_detection):
        made = make_detection(smoke=True)
        text = report.markdown(made.result, made.task)
        measured = text.split("## Result")[1].split("## Nearest")[0]
        numbers = [x for x in measured.splitlines() if re.match(r"\|.*(\d\.\d\d| - )", x)]
        assert len(numbers) == 4 + 4 + 2
        assert all(x.startswith("| **SMOKE**") for x in numbers)

    def test_tables_are_well_formed(self, make_detection):
        made = make_detection("coco", "aal-fgsm")
        text = report.markdown(made.result, made.task)
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


class TestClaims:
    @pytest.mark.parametrize(
        ("task", "method", "claimed"),
        [
            ("voc0712", "standard", "75.30 %"),
            ("voc0712", "aal-fgsm", "77.32 %"),
            ("coco", "standard", "31.60 %"),
            ("coco", "aal-fgsm", "33.10 %"),
        ],
    )
    def test_the_papers_table_stands_beside_clean_map(self, make_detection, task, method, claimed):
        made = make_detection(task, method)
        text = shown(made)
        assert row(text, "clean")[-2:] == [claimed, "-"]
        assert row(text, "pgd-10  8/255")[-2:] == ["-", "-"]
        assert "SSD-512 ResNet-34" in next(x for x in text.splitlines() if x.startswith("paper:"))

    def test_the_unprinted_years_of_voc_are_said(self, make_detection):
        made = make_detection("voc0712", "aal-fgsm")
        (line,) = [
            x
            for x in report.markdown(made.result, made.task).splitlines()
            if x.startswith("| AAL, Table 4 | AAL+FGSM | SSD-512 ResNet-34 | 77.32 % |")
        ]
        assert "which years of Pascal VOC were trained and tested on is not printed" in line

    def test_another_variant_of_the_detector_is_marked(self, make_detection):
        made = make_detection("voc0712", "aal-fgsm", "ssd512-resnet34-b")
        assert row(shown(made), "clean")[-2] == "77.32 %*"

    @pytest.mark.parametrize("method", ["fgsm", "mtd", "aal-pgd"])
    def test_methods_that_the_paper_has_no_row_for(self, make_detection, method):
        made = make_detection("voc0712", method)
        assert reported.claims(made.task, method, "ssd512-resnet34") == []

    def test_other_classes_or_another_metric_have_no_claim(self, make_detection):
        task = make_detection("voc0712").task
        for change in ({"names": ("cat", "dog")}, {"metric": "map_coco"}):
            asked = task.detection.model_copy(update=change)
            other = task.model_copy(update={"detection": asked})
            assert reported.claims(other, "aal-fgsm", "ssd512-resnet34") == []
        area = task.detection.model_copy(update={"metric": "map50_area"})
        other = task.model_copy(update={"detection": area})
        assert len(reported.claims(other, "aal-fgsm", "ssd512-resnet34")) == 1

    def test_the_embedded_task_has_none(self, make_detection):
        made = make_detection("scenes", "aal-fgsm")
        assert "## What papers claim" not in report.markdown(made.result, made.task)


def test_no_task_of_detection_has_neighbours(make_detection):
    for name in ("scenes", "voc0712", "coco"):
        assert name in registry.task_files()
        found = robustbench.nearest(make_detection(name).task, "ssd512-resnet34")
        assert found == ([], "RobustBench has no detectors")
