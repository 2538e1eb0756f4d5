"""Two detection results side by side: paired over the same draws of images; and they have no board.

The intervals are held to a plain loop that builds every drawn table and evaluates it anew.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from aal_bench import results
from aal_bench.boxes import Detections, Objects
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.detection_metrics import means, resamples
from aal_bench.errors import UserError
from aal_bench.leaderboard import compare_detection, entries, verify
from aal_bench.leaderboard.board import boards
from aal_bench.leaderboard.compare import compare, text, tree
from aal_bench.leaderboard.compare_detection import LEAST, DetectionComparison
from aal_bench.leaderboard.metadata import Metadata
from aal_bench.leaderboard.submit import submit
from aal_bench.record import Result
from aal_bench.results import evidence_file

VOC = ("map50_voc11", "map50_area")
BOX, FAR = [10.0, 10.0, 60.0, 60.0], [200.0, 200.0, 260.0, 260.0]


def blank(images: int, conventions=VOC, shift: float = 0.0) -> DetectionEvidence:
    """One object on every image, of one class and the other in turn."""
    boxes = np.tile(BOX, (images, 1)) + shift
    labels, ignore = np.arange(images) % 2, np.zeros(images, bool)
    objects = Objects(np.arange(images), boxes, labels, ignore, np.full(images, 2500.0))
    names = [f"{row:06d}" for row in range(images)]
    return DetectionEvidence(np.arange(images), names, ("cat", "dog"), conventions, objects)


def detect(table: DetectionEvidence, stage: str, right, seed: int) -> None:
    """The object is found where `right` says so, and on half of the images something else too."""
    rng = np.random.default_rng(seed)
    found = []
    for row, hit in enumerate(right):
        boxes = [BOX] * bool(hit) + [FAR] * (rng.random() < 0.5)
        labels = np.full(len(boxes), table.objects.labels[row])
        found.append(Detections(np.reshape(boxes, (-1, 4)), rng.random(len(boxes)), labels))
    table.record(stage, np.arange(len(table)), found, forwards=1 if stage == "clean" else 11)


@pytest.fixture
def write_run(make_result, tmp_path):
    """A finished run's folder: ``write_run("a", skill=0.9, images=40, stages=...)``."""

    def write(name, skill=0.7, *, images=40, stages=("clean", "pgd-10"), seed=0, method="standard",
              table=None, task_hash="a" * 64):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        evidence = blank(images) if table is None else table
        rng = np.random.default_rng(seed)
        for place, stage in enumerate(stages):
            share = skill if stage == "clean" else skill / 2
            detect(evidence, stage, rng.random(len(evidence)) < share, 10 * seed + place)
        evidence.save(folder / "evidence.npz")
        made = make_result("scenes", method, "ssd512-resnet34", n=len(evidence), metrics=None,
                           evaluation=[], evidence=None, status="started",
                           task_hash=task_hash)  # fmt: skip
        block = evidence_file(folder / "evidence.npz", evidence, {"pixels": "d" * 64})
        tree = made.result.model_dump(mode="json") | {
            "status": "success",
            "metrics": results.METRICS["detection"](evidence, stages),
            "evidence": block.model_dump(mode="json"),
        }
        results.write(folder / "result.json", Result.model_validate(tree))
        (folder / "run.json").write_text('{"status": "success"}', "utf-8")
        return folder

    return write


def drawn_again(table: DetectionEvidence, stage: str, rows) -> DetectionEvidence:
    """The table of a resample, in which an image drawn twice is two images."""
    image, found = table.detections(stage)
    where = [np.flatnonzero(table.objects.image == row) for row in rows]
    count = np.repeat(np.arange(len(rows)), [len(places) for places in where])
    objects = table.objects.at(np.concatenate(where))._replace(image=count)
    names = [f"{place}-{row}" for place, row in enumerate(rows)]
    made = DetectionEvidence(np.arange(len(rows)), names, table.classes, table.conventions, objects)
    made.record("clean", np.arange(len(rows)), [found.at(image == row) for row in rows])
    return made


def compared(a: Path, b: Path) -> DetectionComparison:
    found = compare(a, b)
    assert isinstance(found, DetectionComparison)
    return found


class TestDifference:
    def test_it_is_that_of_tables_drawn_and_evaluated_one_by_one(self, write_run, monkeypatch):
        a, b = write_run("a", 0.8, images=12, seed=1), write_run("b", 0.5, images=12, seed=2)
        draws = 30
        monkeypatch.setattr(
            compare_detection,
            "paired",
            lambda one, other, stage, known=compare_detection.paired: known(
                one, other, stage, samples=draws
            ),
        )
        found = compared(a, b)
        tables = [DetectionEvidence.load(run / "evidence.npz") for run in (a, b)]
        columns = np.concatenate(list(resamples(12, draws, seed=0)), axis=1).T.astype(int)
        for stage in ("clean", "pgd-10"):
            plain = [
                [means(drawn_again(one, stage, np.repeat(np.arange(12), counts)), "clean")
                 for one in tables]
                for counts in columns
            ]  # fmt: skip
            for name in VOC:
                line = found.line(stage, name)
                values = [means(one, stage)[name] for one in tables]
                assert (line.a, line.b) == pytest.approx(values, abs=1e-12)
                assert line.difference == pytest.approx(values[0] - values[1], abs=1e-12)
                gaps = [one[name] - other[name] for one, other in plain]
                low, high = np.percentile(gaps, (2.5, 97.5))
                expected = (min(low, line.difference), max(high, line.difference))
                assert line.ci95 == pytest.approx(expected, abs=1e-12)

    def test_what_unpaired_intervals_hide_the_same_draws_show(self, write_run):
        """B finds what A finds, but for six images of forty: nothing else differs."""
        a, b = blank(40), blank(40)
        right = np.random.default_rng(5).random(40) < 0.7
        worse = right.copy()
        worse[np.flatnonzero(right)[:6]] = False
        runs = []
        for name, table, found in (("a", a, right), ("b", b, worse)):
            detect(table, "clean", found, seed=3)
            detect(table, "pgd-10", found, seed=4)
            runs.append(write_run(name, stages=(), table=table))
        found = compared(*runs)
        one, other = (entries.read(run / "result.json").result.metrics.clean for run in runs)
        assert one.ci95[0] < other.ci95[1]
        assert found.winner == "A"


class TestVerdict:
    def test_the_clearly_better_one_wins_on_clean_map(self, write_run):
        a, b = write_run("a", 0.95, seed=1), write_run("b", 0.3, seed=2, method="fgsm")
        found = compared(a, b)
        assert found.winner == "A"
        assert compared(b, a).winner == "B"
        line = found.line("clean")
        assert found.basis == line.convention == "map50_voc11"
        told = text(found).splitlines()[-1]
        points = f"{100 * line.difference:+.2f}"
        low, high = (f"{100 * bound:+.2f}" for bound in line.ci95)
        clean = "of clean mAP (map50_voc11) over 40 images"
        assert told == f"A is better: {points} points [{low}, {high}] {clean}"

    def test_equal_results_tie_everywhere(self, write_run):
        a, b = write_run("a", seed=1), write_run("b", seed=1)
        found = compared(a, b)
        assert all(line.difference == 0 and line.ci95 == (0, 0) for line in found.lines)
        assert {line.winner for line in found.lines} == {"tie"}
        assert text(found).splitlines()[-1].startswith("a tie: +0.00 points [+0.00, +0.00]")

    def test_the_attacked_images_do_not_decide(self, write_run):
        a, b = blank(40), blank(40)
        hit = np.arange(40) < 30
        for table, attacked in ((a, hit), (b, ~hit)):
            detect(table, "clean", hit, seed=1)
            detect(table, "pgd-10", attacked, seed=2)
        found = compared(*(write_run(n, stages=(), table=t) for n, t in (("a", a), ("b", b))))
        assert found.line("pgd-10").winner == "A"
        assert found.winner == "tie"

    def test_few_images_decide_nothing(self, write_run):
        a, b = blank(LEAST - 1), blank(LEAST - 1)
        for table, hit in ((a, True), (b, False)):
            for stage in ("clean", "pgd-10"):
                detect(table, stage, [hit] * len(table), seed=0)
        runs = [write_run(name, stages=(), table=one) for name, one in (("a", a), ("b", b))]
        found = compared(*runs)
        assert found.line("clean").difference > 0.4
        assert [line.ci95 for line in found.lines] == [None] * len(found.lines)
        assert found.winner == "tie"
        assert text(found).splitlines()[-1].startswith("undecided with fewer than 6 images: +")


class TestStages:
    def test_those_that_both_have_in_every_convention(self, write_run):
        a = write_run("a", stages=("clean", "fgsm", "pgd-10"))
        b = write_run("b", stages=("clean", "pgd-10", "pgd-20"), method="fgsm")
        found = compared(a, b)
        assert [(line.convention, line.verdict) for line in found.lines] == [
            (name, stage) for name in VOC for stage in ("clean", "pgd-10")
        ]
        told = text(found)
        assert "map50_area: IoU 0.5, area under the curve" in told
        assert "training.method" in told, "the fields in which they differ"

    def test_clean_images_alone(self, write_run):
        found = compared(write_run("a", stages=("clean",)), write_run("b"))
        assert {line.verdict for line in found.lines} == {"clean"}

    def test_json_has_every_number(self, write_run):
        found = compared(write_run("a", 0.95, seed=1), write_run("b", 0.3, seed=2))
        made = json.loads(json.dumps(tree(found)))
        assert (made["images"], made["samples"], made["better"]) == (40, 1000, "A")
        assert made["basis"] == {"verdict": "clean", "convention": "map50_voc11"}
        assert len(made["lines"]) == 4
        keys = {"verdict", "convention", "a", "b", "difference", "ci95", "better"}
        assert all(line.keys() == keys for line in made["lines"])
        assert made["a"]["images"] == 40


class TestRefused:
    def test_different_questions(self, write_run):
        a, b = write_run("a"), write_run("b", task_hash="b" * 64)
        with pytest.raises(UserError, match="answer different questions"):
            compare(a, b)

    def test_other_images_under_the_same_hash(self, write_run):
        a, b = write_run("a"), write_run("b", table=blank(40, shift=1.0))
        with pytest.raises(UserError, match="different images, objects or classes, although"):
            compare(a, b)

    def test_other_numbers_of_images(self, write_run):
        with pytest.raises(
            UserError, match=r"evaluated 40 images, .* 30: compare runs on the same"
        ):
            compare(write_run("a"), write_run("b", images=30))

    def test_conventions_of_two_evaluators(self, write_run):
        a, b = write_run("a"), write_run("b", table=blank(40, ("map_coco",)))
        with pytest.raises(UserError, match="no convention in common: map50_voc11 and map_coco"):
            compare(a, b)

    def test_evidence_that_the_record_was_not_made_of(self, write_run):
        a, b = write_run("a"), write_run("b", 0.5, seed=3)
        (b / "evidence.npz").write_bytes((a / "evidence.npz").read_bytes())
        with pytest.raises(UserError, match="sha256 differs"):
            compare(a, b)

    def test_a_damaged_table_and_a_missing_one(self, write_run):
        a, b = write_run("a"), write_run("b")
        content = (b / "evidence.npz").read_bytes()
        (b / "evidence.npz").write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=r"evidence.npz: "):
            compare(a, b)
        (b / "evidence.npz").unlink()
        with pytest.raises(UserError, match="no such file"):
            compare(a, b)

    def test_a_result_of_another_family_under_the_same_hash(self, write_run, make_result, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        made = make_result(n=40)
        made.evidence.save(other / "evidence.npz")
        block = evidence_file(other / "evidence.npz", made.evidence, {"pixels": "d" * 64})
        results.write(other / "result.json", made.result.model_copy(update={"evidence": block}))
        with pytest.raises(UserError, match="only one is of detection"):
            compare(write_run("a"), other)


class TestNoBoard:
    """Nothing is said to be verified or ranked that no rule looks at."""

    def test_a_run_is_not_submitted(self, write_run, tmp_path):
        with pytest.raises(UserError, match=r"have no board yet; aal-bench compare A B"):
            submit(write_run("a"), tmp_path / "boards", Metadata())
        assert not (tmp_path / "boards").exists()

    @pytest.mark.parametrize("level", [0, 1])
    def test_a_run_is_not_verified(self, write_run, level):
        run = write_run("a")
        for where in (run, run / "result.json"):
            with pytest.raises(UserError, match="have no board yet"):
                verify.verify(where, level)

    def test_an_entry_among_others_does_not_hold_and_is_not_ranked(self, write_run, tmp_path):
        run, board = write_run("a"), tmp_path / "boards" / "scenes" / "Linf"
        board.mkdir(parents=True)
        (board / "mine.json").write_bytes((run / "result.json").read_bytes())
        (board / "mine.npz").write_bytes((run / "evidence.npz").read_bytes())
        verdict = verify.verify(tmp_path / "boards")[-1]
        assert not verdict.ok
        assert "no board yet" in verdict.findings[-1].text
        with pytest.raises(UserError, match="no board yet"):
            boards(tmp_path / "boards")

    def test_a_board_that_is_asked_for(self, tmp_path):
        with pytest.raises(UserError, match="task scenes: detection results have no board yet"):
            boards(tmp_path, "scenes")
