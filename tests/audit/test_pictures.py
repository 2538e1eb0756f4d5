"""The audit's figures are drawn from what the audit made; only the loss surface costs passes."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from aal_bench.audit import pictures
from aal_bench.audit.bank import Bank
from aal_bench.audit.pictures import draw, surfaces
from aal_bench.figures import audit as figures
from tests.audit.shown import EPS, SMALL, WORST, Bright, audited, images, subject_of

ASKING = (1, 2, 3, 5, 7, 23)
"""The checks whose runs of PGD the figures show."""
FOUR = ["figures/audit_eps.png", "figures/audit_steps.png", "figures/audit_surface.png"]


@pytest.fixture(scope="module")
def bank() -> Bank:
    return audited(Bright(), checks=ASKING)[1]


@pytest.fixture
def given(monkeypatch) -> dict[str, tuple]:
    """Figure -> the arguments that it was drawn with."""
    kept: dict[str, tuple] = {}

    def keep(name):
        drawing = getattr(figures, name)

        def kept_too(*arguments):
            kept[name] = arguments
            return drawing(*arguments)

        monkeypatch.setattr(pictures, name, kept_too)

    for name in ("accuracy_over_eps", "accuracy_over_steps", "loss_surfaces", "attack_bars"):
        keep(name)
    return kept


def test_figures_lie_in_their_folder_and_adaptive_attacks_are_drawn_where_there_are_any(
    bank, tmp_path
):
    assert draw(bank, tmp_path, "bright") == FOUR
    assert draw(bank, tmp_path, "bright", WORST) == [*FOUR, "figures/audit_adaptive.png"]
    assert all((tmp_path / path).stat().st_size > 5000 for path in FOUR)


def test_after_the_checks_the_figures_cost_the_grid_of_the_surfaces_only(tmp_path):
    _, bank = audited(Bright(), checks=ASKING)
    before = bank.spent
    draw(bank, tmp_path, "bright")
    after = bank.spent
    drawn = pictures.SHOWN * SMALL.grid**2
    assert after.forward - before.forward == drawn
    assert after.backward == before.backward
    assert bank.alone(pictures.LINEARITY).forward >= drawn
    draw(bank, tmp_path, "bright")
    assert bank.spent == after


def test_accuracy_against_eps_is_that_of_the_checks_sweep(bank, tmp_path, given):
    draw(bank, tmp_path, "bright")
    budgets, curve, _, eps, chance, *_ = given["accuracy_over_eps"]
    assert (budgets[0], budgets[-1], eps, chance) == (0.0, 1.0, EPS, 0.25)
    assert curve.value[0] == float((bank.correct()).double().mean())
    four = bank.correct() & bank.pgd_at(4 / 255, SMALL.sweep_steps).stands
    assert curve.value[budgets.index(4 / 255)] == pytest.approx(float(four.double().mean()))
    assert curve.value[-1] == 0
    assert all(low <= v <= high for v, low, high in zip(*curve[:1], *curve[1:], strict=True))


def test_accuracy_against_steps_counts_an_image_that_one_start_breaks_as_broken(
    bank, tmp_path, given
):
    draw(bank, tmp_path, "bright", steps=10)
    starts, curves, _, marked, _ = given["accuracy_over_steps"]
    assert starts.shape == (SMALL.restarts, SMALL.steps + 1)
    together = np.array(curves["cross-entropy, 2 starts together"].value)
    assert (together <= starts.min(0) + 1e-6).all()
    assert marked == {10: "task: 10"}


def test_the_centre_of_a_surface_is_the_image_and_its_right_the_gradient(bank):
    found = surfaces(bank)
    x, y = images()
    names = [int(each.told.split()[1].rstrip(",")) - 100 for each in found]
    assert len(set(names)) == pictures.SHOWN
    middle, side = SMALL.grid // 2, SMALL.grid
    model = Bright()
    for row, each in zip(names, found, strict=True):
        loss = np.asarray(each.loss)
        assert loss.shape == (side, side)
        here = x[row : row + 1].clone().requires_grad_()
        at_image = functional.cross_entropy(model(here), y[row : row + 1])
        (g,) = torch.autograd.grad(at_image, here)
        assert loss[middle, middle] == pytest.approx(float(at_image.detach()), rel=1e-5)
        ahead = (x[row : row + 1] + 2 * EPS * g.sign()).clamp(0, 1)
        expected = functional.cross_entropy(model(ahead), y[row : row + 1])
        assert loss[middle, -1] == pytest.approx(float(expected), rel=1e-5)
        assert ((np.asarray(each.margin) > 0)[middle, -1]) == bool(model(ahead).argmax() != y[row])


def test_images_that_stand_and_images_that_fall_are_both_shown(bank):
    fates = [each.told.rpartition(": ")[2] for each in surfaces(bank)]
    assert sorted(fates) == ["falls to PGD"] * 2 + ["survives PGD"] * 2


def test_a_model_without_gradient_has_no_picture_of_attacks_by_gradient(tmp_path):
    class Rounded(Bright):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x.round(decimals=1))

    bank = Bank(subject_of(Rounded()), SMALL)
    assert draw(bank, tmp_path, "rounded") == []
    assert draw(bank, tmp_path, "rounded", WORST) == ["figures/audit_adaptive.png"]
