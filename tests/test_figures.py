"""The figures: real PNGs of the data given, read back and looked at by their pixels."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from aal_bench import figures
from aal_bench.errors import UserError
from aal_bench.figures import Curve
from aal_bench.figures.episodes import accuracy_over_episodes, one_episode

EPS = 8 / 255


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


def epochs(count: int, **extra: float) -> list[dict]:
    return [
        {"epoch": n, "step": 10 * n, "loss": 2.0 / n, "lr": 0.1, "seconds": 1.0, **extra}
        for n in range(1, count + 1)
    ]


def samples(n: int = 2, size: int = 16, mask: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.random((n, 3, size, size)).astype(np.float32)
    eta = (EPS * rng.choice([-1.0, 1.0], x.shape)).astype(np.float32)
    return {
        "images": x,
        "M": rng.random((n, 1, mask, mask)),
        "Ma": rng.random((n, mask, mask)),
        "K": rng.random((n, size, size)),
        "eta": eta,
        "x_adv": (x + eta).clip(0, 1),
    }


def is_png(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 10, "not a blank page"
        return image.size


class TestTrainingCurves:
    def test_draws_the_rows_it_is_given(self, tmp_path, drawn):
        rows = epochs(3)
        rows[1] |= {"val_clean": 0.9, "val_pgd": 0.5}
        figures.training_curves(rows, tmp_path / "t.png", "digits")
        is_png(tmp_path / "t.png")
        loss, validation, rate = drawn[0].axes
        assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0], [3, 2.0 / 3]]
        assert [line.get_xydata().tolist() for line in validation.lines] == [
            [[2, 90.0]],
            [[2, 50.0]],
        ]
        assert [axes.get_xlabel() for axes in (loss, validation, rate)] == ["epoch"] * 3
        assert validation.get_ylabel() == "accuracy (%)"

    def test_a_methods_log_has_a_panel_with_a_legend(self, tmp_path, drawn):
        rows = epochs(3, mean_k=0.3, mask_shift=1e-5)
        figures.training_curves(rows, tmp_path / "t.png")
        panel = drawn[0].axes[3]
        legend = panel.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["mean k", "mask shift"]
        assert panel.get_yscale() == "log"

    def test_a_log_that_is_not_positive_is_drawn_on_a_linear_scale(self, tmp_path, drawn):
        figures.training_curves(epochs(3, mask_shift=0.0), tmp_path / "t.png")
        assert drawn[0].axes[3].get_yscale() == "linear"

    def test_one_epoch_without_validation(self, tmp_path, drawn):
        figures.training_curves(epochs(1), tmp_path / "t.png")
        assert [text.get_text() for text in drawn[0].axes[1].texts] == ["no validation split"]

    def test_what_training_watches_is_drawn_dashed_beside_the_validation(self, tmp_path, drawn):
        seen = {"watch_clean": 0.9, "watch_fgsm": 0.8, "watch_pgd": 0.1}
        figures.training_curves(epochs(2, val_clean=0.7, **seen), tmp_path / "t.png")
        assert len(drawn[0].axes) == 3  # no panel for them as for a method's log
        panel = drawn[0].axes[1]
        shown = {str(line.get_label()): line for line in panel.lines}
        assert {name: line.get_ydata().tolist() for name, line in shown.items()} == {
            "clean": [70.0, 70.0],
            "clean, training batch": [90.0, 90.0],
            "FGSM, training batch": [80.0, 80.0],
            "PGD-5, training batch": [10.0, 10.0],
        }
        styles = [line.get_linestyle() for line in panel.lines]
        assert styles == ["-", "--", "--", "--"]
        assert panel.get_legend() is not None

    def test_no_epoch_is_an_error_and_no_file(self, tmp_path):
        with pytest.raises(ValueError, match="no epochs"):
            figures.training_curves([], tmp_path / "t.png")
        assert not (tmp_path / "t.png").exists()


class TestSelectiveAttack:
    def test_one_row_per_sample_and_one_colour_bar_per_mask(self, tmp_path, drawn):
        figures.selective_attack(**samples(3), path=tmp_path / "s.png", eps=EPS)
        is_png(tmp_path / "s.png")
        pictures = [axes for axes in drawn[0].axes if axes.images]
        assert len(pictures) == 3 * 6
        assert [axes.get_title() for axes in pictures[:6]] == [
            *("$x$", "$M$", "$M^a$", "$k(M^a)$", r"$\eta$", "$x'$")
        ]

    def test_eta_is_shown_in_255ths_on_a_symmetric_diverging_scale(self, tmp_path, drawn):
        data = samples(2)
        figures.selective_attack(**data, path=tmp_path / "s.png", eps=EPS)
        (image,) = drawn[0].axes[4].images
        assert image.get_clim() == pytest.approx((-8, 8))
        assert image.get_cmap().name == "RdBu_r"
        assert np.allclose(image.get_array(), data["eta"][0].mean(0) * 255, atol=1e-4)

    def test_the_masks_share_one_scale_per_column(self, tmp_path, drawn):
        data = samples(2)
        figures.selective_attack(**data, path=tmp_path / "s.png", eps=EPS)
        for column, name in ((1, "M"), (2, "Ma"), (3, "K")):
            top, bottom = (drawn[0].axes[row * 6 + column].images[0] for row in range(2))
            assert top.get_clim() == bottom.get_clim()
            assert top.get_clim() == pytest.approx((data[name].min(), data[name].max()))

    def test_a_constant_mask_is_drawn_too(self, tmp_path):
        data = samples(1)
        data["M"] = np.full((1, 8, 8), 0.5)
        figures.selective_attack(**data, path=tmp_path / "s.png", eps=EPS, labels=["cat"])
        is_png(tmp_path / "s.png")


class TestAccuracyAgainstEps:
    def draw(self, path: Path, **change) -> None:
        eps = [0.0, 4 / 255, 8 / 255, 16 / 255]
        curves = {
            "fgsm": Curve([0.9, 0.7, 0.5, 0.2], [0.85, 0.65, 0.45, 0.15], [0.95, 0.75, 0.55, 0.25]),
            "pgd-20": Curve([0.9, 0.6, 0.3, 0.0]),
        }
        figures.accuracy_against_eps(eps, change.get("curves", curves), path, EPS, chance=0.1)

    def test_axes_are_in_255ths_and_percent(self, tmp_path, drawn):
        self.draw(tmp_path / "a.png")
        is_png(tmp_path / "a.png")
        (axes,) = drawn[0].axes
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("eps (in 1/255)", "accuracy (%)")
        assert axes.lines[0].get_xydata() == pytest.approx(
            np.array([[0, 90], [4, 70], [8, 50], [16, 20]])
        )

    def test_the_tasks_budget_and_every_attack_are_named(self, tmp_path, drawn):
        self.draw(tmp_path / "a.png")
        (axes,) = drawn[0].axes
        assert [text.get_text() for text in axes.texts] == ["task: 8/255"]
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["fgsm", "pgd-20", "chance"]

    def test_the_band_is_the_interval(self, tmp_path, drawn):
        self.draw(tmp_path / "a.png")
        (band,) = drawn[0].axes[0].collections
        heights = band.get_paths()[0].vertices
        assert (heights[:, 1].min(), heights[:, 1].max()) == pytest.approx((15, 95))

    def test_lengths_must_match(self, tmp_path):
        with pytest.raises(ValueError, match="3 accuracies for 4 budgets"):
            self.draw(tmp_path / "a.png", curves={"fgsm": Curve([1.0, 0.5, 0.0])})


def test_equal_data_give_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        figures.training_curves(epochs(2), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        figures.training_curves(epochs(1), tmp_path / "file" / "t.png")


def test_importing_the_module_imports_no_matplotlib():
    code = "import sys, aal_bench.figures; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_no_global_pyplot_state(tmp_path):
    # In a process of its own: MMDetection imports pyplot.
    code = f"""
import sys
from pathlib import Path
from aal_bench import figures
figures.training_curves({epochs(1)!r}, Path({str(tmp_path / "t.png")!r}))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


class TestEpisodes:
    def test_a_bar_is_the_share_of_episodes_with_that_accuracy(self, tmp_path, drawn):
        clean = np.array([0.2, 0.4, 0.4, 1.0])
        path = tmp_path / "e.png"
        accuracy_over_episodes({"clean": clean}, path, chance=0.2, queries=5, title="glyphs")
        is_png(path)
        (axes,) = drawn[0].axes
        bars = {
            round(bar.get_x() + bar.get_width() / 2): bar.get_height()
            for bar in axes.patches
            if bar.get_height()
        }
        assert bars == pytest.approx({20: 25, 40: 50, 100: 25})
        assert axes.lines[0].get_xdata()[0] == pytest.approx(50)
        assert "clean: mean 50.0 %" in [text.get_text() for text in axes.get_legend().texts]

    def test_wrong_answers_are_framed_and_say_what_they_were_taken_for(self, tmp_path, drawn):
        rng = np.random.default_rng(0)
        support, query = rng.random((2, 1, 3, 8, 8)), rng.random((2, 3, 3, 8, 8))
        predicted = np.array([[0, 1, 0], [1, 1, 0]])
        one_episode(support, query, predicted, tmp_path / "e.png")
        is_png(tmp_path / "e.png")
        pictures = [axes for axes in drawn[0].axes if axes.images]
        assert len(pictures) == 2 * (1 + 3)
        queries = [axes for place, axes in enumerate(pictures) if place % 4]  # after the support
        told = [axes.get_xlabel() for axes in queries]
        assert told == ["", "as 1", "", "", "", "as 0"]
        frames = [axes.spines["left"].get_edgecolor() for axes in queries]
        assert len({frames[i] for i in (0, 2, 3, 4)}) == len({frames[i] for i in (1, 5)}) == 1
        assert frames[0] != frames[1]
        assert np.array_equal(queries[4].images[0].get_array(), query[1, 1].transpose(1, 2, 0))
