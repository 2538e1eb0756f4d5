"""The pictures of a detection run: what is drawn is what was fed, found and measured."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from aal_bench import figures
from aal_bench.adapters import detection_figures
from aal_bench.adapters.detection import ObjectDetection
from aal_bench.adapters.detection_figures import chosen, pictured, scaled, strongest
from aal_bench.adapters.method import build_method
from aal_bench.boxes import Detections
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.figures.detections import Shown, colours, detections, drawable
from aal_bench.figures.precisions import Bar, precisions
from aal_bench.methods.base import Method
from aal_bench.metrics import METRICS
from aal_bench.registry import PROTOCOLS
from aal_bench.resolve import Request, resolve

SIDE = 264
WIDE, HIGH = 96, 64
SQUARE = (20, 10, 60, 50)
RED = (220, 30, 30)
EPS = 8 / 255


def write_voc(folder: Path) -> Path:
    """Three grey images of each split, each with a red square; VOC counts from 1."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    x1, y1, x2, y2 = SQUARE
    corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    thing = f"<object><name>cat</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        names = [f"{split}{n}" for n in range(3)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels = rng.integers(90, 160, (HIGH, WIDE, 3), dtype=np.uint8)
            pixels[y1:y2, x1:x2] = RED
            Image.fromarray(pixels).save(folder / f"JPEGImages/{name}.png")
            (folder / f"Annotations/{name}.xml").write_text(f"<annotation>{thing}</annotation>")
    return folder


class Made(NamedTuple):
    """A network that has learnt nothing, evaluated on three images."""

    adapter: ObjectDetection
    method: Method
    model: Any
    evidence: DetectionEvidence
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    data = write_voc(tmp_path_factory.mktemp("data") / "voc")
    settings = (f"data.size={SIDE}", "train.validation=0", "craft_bn=train")
    request = Request("voc-format", method="aal-fgsm", classes="cat,dog", device="cpu")
    run = resolve(request._replace(precision="fp32", protocol="clean,fgsm", settings=settings))
    adapter, method = ObjectDetection(run, data), build_method(run)
    model = method.build(adapter.build()).eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("run")
    evidence = adapter.new_evidence()
    for stage in ("clean", "fgsm"):
        adapter.run_stage(stage, model, evidence, lambda *_: None, lambda *_: None)
    evidence.save(folder / "evidence.npz")
    metrics = METRICS["detection"](evidence, ["clean", "fgsm"])
    (folder / "result.json").write_text(json.dumps({"metrics": metrics}))
    row = {"epoch": 1, "step": 3, "loss": 9.0, "loss_cls": 6.0, "loss_bbox": 3.0, "lr": 0.1}
    (folder / "metrics.jsonl").write_text(json.dumps(row | {"seconds": 1.0, "val_map": 0.25}))
    return Made(adapter, method, model, evidence, folder)


class Drawn(NamedTuple):
    """What one call of `draw` returned, wrote, was given to show, and left changed."""

    paths: list[str]
    figures: list[Figure]
    shown: list[Shown]
    changed: list[str]


@pytest.fixture(scope="module")
def run(made) -> Drawn:
    kept: list[Figure] = []
    received: list[Shown] = []
    save, show = Figure.savefig, detection_figures.detections

    def keep(self, *arguments, **options):
        kept.append(self)
        return save(self, *arguments, **options)

    def receive(shown, *arguments):
        received.extend(shown)
        show(shown, *arguments)

    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    before["generator"] = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        patch.setattr(detection_figures, "detections", receive)
        paths = detection_figures.draw(made.adapter, made.method, made.model, made.folder)
    after = {**made.model.state_dict(), "generator": torch.get_rng_state()}
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    return Drawn(paths, kept, received, changed)


@pytest.fixture(scope="module")
def shown(run) -> list[Shown]:
    return run.shown


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Every figure as it was when it was saved."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(self, *arguments, **options):
        kept.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def found(scores: list[float], boxes: Any = None) -> Detections:
    n = len(scores)
    given = [[8.0 * i, 8.0 * i, 8.0 * i + 40, 8.0 * i + 30] for i in range(n)]
    return Detections(
        np.array(given if boxes is None else boxes, np.float32).reshape(n, 4),
        np.array(scores, np.float32),
        np.arange(n, dtype=np.int16) % 2,
    )


class TestDraw:
    def test_writes_the_pictures(self, made, run):
        assert run.paths == [f"figures/{name}.png" for name in ("map", "detections", "training")]
        for path, figure in zip(run.paths, run.figures, strict=True):
            with Image.open(made.folder / path) as picture:
                assert picture.size == pytest.approx(150 * figure.get_size_inches(), abs=1)
                assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10, "not blank"

    def test_changes_neither_network_nor_generator(self, made, run):
        assert made.method.options.craft_bn == "train", "its attack moves the running statistics"
        assert run.changed == []

    def test_a_gated_network_shows_its_mask_in_a_fourth_column(self, run):
        pictures = [axes for axes in run.figures[1].axes if len(axes.images) == 2]
        assert len(pictures) == 3, "heat over grey, once an image"

    def test_the_means_are_those_of_the_record(self, made, run):
        measured = json.loads((made.folder / "result.json").read_text())["metrics"]
        (axes,) = run.figures[0].axes
        values = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"]
        told = (measured["clean"], measured["stages"]["fgsm"])
        assert values == pytest.approx([100 * one["value"] for one in told])

    def test_a_control_that_attacks_nothing_has_no_mask(self, made):
        run = made.adapter.run
        idle = {**run.method.options, "control": "no_attack", "craft_bn": "inherit"}
        choice = run.method.model_copy(update={"options": idle})
        method = build_method(run.model_copy(update={"method": choice}))
        stage = made.adapter.stage("fgsm")
        (one,) = pictured(made.adapter, method, made.model, made.evidence, stage, np.arange(1))
        assert one.mask is None


class TestPictured:
    def test_a_red_square_is_red(self, shown):
        x = SQUARE[0] * SIDE // WIDE, SQUARE[2] * SIDE // WIDE
        y = SQUARE[1] * SIDE // HIGH, SQUARE[3] * SIDE // HIGH
        for one in shown:
            image = np.asarray(one.image)
            assert image.shape == (3, SIDE, SIDE)
            inner = image[:, y[0] + 8 : y[1] - 8, x[0] + 8 : x[1] - 8].mean((1, 2))
            assert 255 * inner == pytest.approx(RED, abs=1)

    def test_boxes_are_in_the_coordinates_of_the_image_fed(self, made, shown):
        # MMDetection counts a box's last column and row from 0, and takes them for its edges.
        across, down = 264 / 96, 264 / 64
        expected = [20 * across, 10 * down, 59 * across, 49 * down]
        assert shown[0].boxes[0] == pytest.approx(expected)
        # MMDetection, asked not to go back to the file's coordinates.
        items = [made.adapter.test[0]]
        data = {key: [item[key] for item in items] for key in ("inputs", "data_samples")}
        data = made.model.data_preprocessor(data, False)
        with torch.no_grad():
            (theirs,) = made.model.predict(data["inputs"], data["data_samples"], rescale=False)
        instances = theirs.pred_instances
        assert shown[0].clean.boxes == pytest.approx(instances.bboxes.numpy(), abs=1e-2)
        assert shown[0].clean.scores == pytest.approx(instances.scores.numpy(), abs=1e-5)

    def test_scales_by_width_and_height(self):
        one = found([0.5], boxes=[[10, 20, 30, 40]])
        assert scaled(one, (2.0, 0.5)).boxes.tolist() == [[20, 10, 60, 20]]
        assert one.boxes.tolist() == [[10, 20, 30, 40]]

    def test_the_attack_is_the_stages(self, made, shown):
        norms = made.evidence.column("fgsm", "norm")
        for one, norm in zip(shown, norms, strict=True):
            eta = np.abs(np.asarray(one.attacked) - np.asarray(one.image))
            assert eta.max() == pytest.approx(norm, abs=1e-6)
            assert norm == pytest.approx(EPS, abs=1e-6)

    def test_the_mask_has_the_images_resolution(self, shown):
        assert all(np.asarray(one.mask).shape == (SIDE, SIDE) for one in shown)

    def test_images_are_chosen_from_everywhere_and_have_objects(self, made):
        assert chosen(made.evidence).tolist() == [0, 1, 2]

    def test_the_strongest_stage_is_the_longest_on_the_whole_loss_at_the_largest_budget(self, made):
        class Ran(NamedTuple):
            stages: tuple[str, ...]

        def name(*stages: str) -> str | None:
            stage = strongest(made.adapter, Ran(stages))  # pyright: ignore[reportArgumentType]
            return None if stage is None else stage.name

        assert name(*PROTOCOLS["detection"][0][1:]) == "pgd-20"
        assert name(*PROTOCOLS["smoke"][0][1:]) == "pgd-2"
        assert name() is None


class TestFigure:
    def draw(self, path: Path, **change: Any) -> None:
        image = np.full((3, 60, 120), 0.5)
        image[0, :30] = 1.0
        clean, attacked = found([0.9, 0.2]), found([0.1, 0.2, 0.05, 0.15])
        boxes = np.array([[10.0, 20.0, 50.0, 40.0]])
        one = Shown("a", image, (image + EPS).clip(0, 1), boxes, clean, attacked)
        detections([one._replace(**change)] * 2, ("cat", "dog"), path, "pgd-10", EPS, "title")

    def test_rows_are_images_and_columns_what_they_show(self, tmp_path, drawn):
        self.draw(tmp_path / "d.png")
        grid = np.array(drawn[0].axes).reshape(2, 3)
        heads = [axes.get_title() for axes in grid[0]]
        assert heads[:2] == ["clean", "under pgd-10, eps 8/255"]
        assert [axes.get_xlabel() for axes in grid[0, :2]] == [
            "1 with score ≥ 0.3",
            "none with score ≥ 0.3: the 3 best",
        ]
        red = grid[0, 0].images[0].get_array()[0, 0]
        assert red.tolist() == [1.0, 0.5, 0.5]
        eta = grid[0, 2].images[0].get_array()
        assert eta[50, 0].tolist() == pytest.approx([1, 1, 1]), "x' - x = eps is white"
        assert eta[0, 0, 0] == 0.5, "the box held it: grey is 0"

    def test_boxes_are_drawn_where_they_are(self, tmp_path, drawn):
        self.draw(tmp_path / "d.png")
        axes = drawn[0].axes[0]
        patches = {(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches}
        assert patches == {(9.5, 19.5, 40.0, 20.0), (-0.5, -0.5, 40.0, 30.0)}
        assert [text.get_text() for text in axes.texts] == ["cat 0.90"]

    def test_labels_cover_no_other_and_stay_in_the_picture(self, tmp_path, drawn):
        self.draw(tmp_path / "d.png", clean=found([0.9 - 0.01 * i for i in range(6)]))
        figure = drawn[0]
        axes = figure.axes[0]
        extents = [text.get_window_extent() for text in axes.texts]
        assert len(extents) >= 2
        for i, one in enumerate(extents):
            assert axes.bbox.x0 - 1 <= one.x0
            assert one.x1 <= axes.bbox.x1 + 1
            for other in extents[i + 1 :]:
                assert not one.overlaps(other)

    @pytest.mark.parametrize(
        ("scores", "kept", "said"),
        [
            ([0.4, 0.9, 0.1], [0.9, 0.4], "2 with score ≥ 0.3"),
            ([0.2, 0.1], [0.2, 0.1], "none with score ≥ 0.3: the 2 best"),
            ([], [], "nothing found"),
            ([0.5] * 13, [0.5] * 12, "12 best of 13 with score ≥ 0.3"),
        ],
    )
    def test_says_which_detections_are_drawn(self, scores, kept, said):
        ranked, line = drawable(found(scores))
        assert ranked.scores.tolist() == pytest.approx(kept)
        assert line == said

    @pytest.mark.parametrize("classes", [3, 20, 80])
    def test_one_colour_a_class_legible_on_white(self, classes):
        made = [to_rgb(colour) for colour in colours(classes)]
        assert len({tuple(np.round(colour, 3)) for colour in made}) == classes
        assert max(np.dot(colour, (0.2126, 0.7152, 0.0722)) for colour in made) < 0.6


class TestPrecisions:
    def test_bars_are_grouped_by_the_part_of_the_loss(self, tmp_path, drawn):
        bars = [
            Bar("clean", "clean", 0.8, 0.7, 0.85),
            Bar("fgsm", "total", 0.4, 0.3, 0.5),
            Bar("fgsm-cls", "cls", 0.5, 0.4, 0.6),
            Bar("pgd-10", "total", 0.2, 0.1, 0.3),
        ]
        precisions(bars, tmp_path / "m.png", "map50_area")
        (axes,) = drawn[0].axes
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == ["clean", "fgsm", "pgd-10", "fgsm-cls"]
        (clean, *_) = [c.get_segments()[0] for c in axes.collections]
        assert clean[:, 0] == pytest.approx([70, 85]), "the interval"
        (legend,) = drawn[0].legends
        said = [text.get_text() for text in legend.get_texts()]
        assert said == ["attack on the whole loss", "attack on the loss of the classes"]


def test_a_detectors_curves_are_its_losses_parts_and_map(tmp_path, drawn):
    rows = [
        {"epoch": n, "loss": 9 / n, "cls": 6 / n, "loc": 3 / n, "lr": 0.1, "val_map": n / 10}
        for n in (1, 2, 3)
    ]
    figures.training_curves(rows, tmp_path / "t.png")
    loss, validation, _ = drawn[0].axes
    assert [line.get_label() for line in loss.lines] == ["training loss", "classes", "boxes"]
    assert validation.get_ylabel() == "mAP (%)"
    assert validation.lines[0].get_ydata().tolist() == pytest.approx([10, 20, 30])
