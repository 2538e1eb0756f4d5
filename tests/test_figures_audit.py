"""The figures of an audit: real PNGs of the data given, read back by what was drawn."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from PIL import Image

from aal_bench.figures import Curve
from aal_bench.figures.audit import (
    Surface,
    accuracy_over_eps,
    accuracy_over_steps,
    attack_bars,
    loss_surfaces,
)
from aal_bench.figures.canvas import COLOURS

EPS = 8 / 255
BUDGETS = [0.0, 1 / 255, EPS, 64 / 255, 1.0]


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


def is_png(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 10, "not a blank page"


def surface(loss, margin, told="image 3") -> Surface:
    return Surface(np.asarray(loss, np.float32), np.asarray(margin, np.float32), told)


def slope(size: int = 7) -> np.ndarray:
    return np.tile(np.linspace(-1, 1, size), (size, 1))


class TestAccuracyOverEps:
    def draw(self, path: Path, curve: Curve) -> None:
        accuracy_over_eps(BUDGETS, curve, path, EPS, 0.1, "PGD-20", "digits")

    def test_accuracies_are_in_percent_over_budgets_in_255ths(self, tmp_path, drawn):
        curve = Curve(
            [0.9, 0.8, 0.5, 0.1, 0.0], [0.8, 0.7, 0.4, 0.0, 0.0], [1.0, 0.9, 0.6, 0.2, 0.1]
        )
        self.draw(tmp_path / "e.png", curve)
        is_png(tmp_path / "e.png")
        (axes,) = drawn[0].axes
        assert np.allclose(
            axes.lines[0].get_xydata(), [[0, 90], [1, 80], [8, 50], [64, 10], [255, 0]]
        )
        assert len(axes.collections) == 1, "the band"

    def test_small_budgets_have_as_much_room_as_large_ones(self, tmp_path, drawn):
        self.draw(tmp_path / "e.png", Curve([1.0, 0.9, 0.5, 0.1, 0.0]))
        (axes,) = drawn[0].axes
        places = axes.transData.transform([[e, 0] for e in (2, 4, 8, 64, 128)])[:, 0]
        doubled = np.diff(places)[[0, 1, 3]]
        assert np.allclose(doubled, doubled[0])

    def test_the_tasks_budget_is_marked(self, tmp_path, drawn):
        self.draw(tmp_path / "e.png", Curve([1.0, 0.9, 0.5, 0.1, 0.0]))
        (axes,) = drawn[0].axes
        assert [text.get_text() for text in axes.texts] == ["task: 8/255"]
        assert any(np.allclose(line.get_xdata(), 8) for line in axes.lines)

    def test_a_curve_of_another_length_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="2 accuracies for 5 budgets"):
            self.draw(tmp_path / "e.png", Curve([1.0, 0.9]))


class TestAccuracyOverSteps:
    def test_every_start_is_a_line_and_what_lies_beyond_is_not_marked(self, tmp_path, drawn):
        starts = [[1.0, 0.6, 0.5], [1.0, 0.7, 0.4]]
        together = Curve([1.0, 0.5, 0.3], [0.9, 0.4, 0.2], [1.0, 0.6, 0.4])
        accuracy_over_steps(
            starts, {"both": together}, tmp_path / "s.png", {1: "task: 1", 10: "task: 10"}
        )
        is_png(tmp_path / "s.png")
        (axes,) = drawn[0].axes
        assert [list(line.get_ydata()) for line in axes.lines[:3]] == [
            [100, 60, 50],
            [100, 70, 40],
            [100, 50, 30],
        ]
        assert [text.get_text() for text in axes.texts] == ["task: 1"]

    def test_one_start_needs_no_line_of_its_own(self, tmp_path, drawn):
        accuracy_over_steps(
            np.empty((0, 3)), {"cross-entropy": Curve([1.0, 0.5, 0.3])}, tmp_path / "s.png", {}
        )
        assert len(drawn[0].axes[0].lines) == 1


class TestLossSurfaces:
    def test_the_border_of_the_predictions_is_drawn_where_the_margin_is_zero(self, tmp_path, drawn):
        loss_surfaces([surface(slope() + 1, slope() - 0.5)], tmp_path / "l.png", 2 * EPS, EPS)
        is_png(tmp_path / "l.png")
        axes = drawn[0].axes[0]
        (border,) = [
            path
            for lines in axes.collections
            if isinstance(lines, QuadContourSet)
            and to_hex(tuple(np.asarray(lines.get_edgecolor())[0])) == COLOURS[1].lower()
            for path in lines.get_paths()
        ]
        # The margin is 0 half the way from the image to the edge: at 8/255 of 16/255.
        assert np.allclose(np.asarray(border.vertices)[:, 0], 8, atol=1e-4)

    def test_the_ball_is_a_square_about_the_image_at_the_origin(self, tmp_path, drawn):
        loss_surfaces([surface(slope(), slope())], tmp_path / "l.png", 2 * EPS, EPS)
        axes = drawn[0].axes[0]
        boxes = np.array([box.get_bbox().bounds for box in axes.patches])
        assert len(boxes)
        assert np.allclose(boxes, (-8, -8, 16, 16))
        assert axes.lines[0].get_xydata().tolist() == [[0, 0]]
        assert axes.get_xlim() == pytest.approx((-16, 16))

    def test_a_flat_loss_is_said_to_be_flat(self, tmp_path, drawn):
        flat = surface(np.zeros((5, 5)), -np.ones((5, 5)))
        loss_surfaces([flat], tmp_path / "l.png", 2 * EPS, EPS)
        assert drawn[0].axes[0].get_title() == "image 3\ncross-entropy 0 everywhere"

    def test_a_loss_that_is_not_finite_is_drawn_without_a_crash(self, tmp_path, drawn):
        partly = slope(5)
        partly[0, 0] = np.nan
        nowhere = np.full((5, 5), np.nan)
        loss_surfaces(
            [surface(partly, slope(5)), surface(nowhere, nowhere)], tmp_path / "l.png", 2 * EPS, EPS
        )
        is_png(tmp_path / "l.png")
        assert drawn[0].axes[1].get_title() == "image 3\nnot finite"

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_one_panel_for_each_image(self, tmp_path, drawn, count):
        loss_surfaces([surface(slope(5), slope(5))] * count, tmp_path / "l.png", 2 * EPS, EPS)
        titled = [axes for axes in drawn[0].axes if axes.get_title()]
        assert len(titled) == count

    def test_nothing_to_draw_is_an_error_and_no_file(self, tmp_path):
        with pytest.raises(ValueError, match="no loss surface"):
            loss_surfaces([], tmp_path / "l.png", 2 * EPS, EPS)
        assert not (tmp_path / "l.png").exists()


class TestAttackBars:
    def test_the_worst_case_is_a_line_across_and_masked_attacks_are_hatched(self, tmp_path, drawn):
        attack_bars(
            {"T1-full": 0.5, "U1-head-1": 0.3},
            {"usual": 0.45, "worst": 0.25},
            tmp_path / "b.png",
            {"T5-masked": 0.9},
        )
        is_png(tmp_path / "b.png")
        (axes,) = drawn[0].axes
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["usual", "worst", "T1-full", "U1-head-1", "T5-masked"]
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([45, 25, 50, 30, 90])
        assert [bool(bar.get_hatch()) for bar in axes.patches] == [False] * 4 + [True]
        assert axes.lines[0].get_xdata() == pytest.approx([25, 25])

    def test_equal_data_give_equal_bytes(self, tmp_path):
        for name in ("one", "two"):
            attack_bars({"T1": 0.5}, {"worst": 0.25}, tmp_path / f"{name}.png")
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
