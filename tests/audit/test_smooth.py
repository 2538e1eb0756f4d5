"""Checks 18 to 20 against closed forms in numpy, and against a baseline."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks import smooth
from aal_bench.audit.table import QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import Mean, Saturated, grey, linear_task, some_digits, trained

BUDGET = QUICK._replace(steps=20, restarts=1)
EPS = 8 / 255


def softplus(m: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, m)


def test_a_linear_model_passes_18_and_its_gradients_are_parallel(subject: MakeSubject) -> None:
    bank = Bank(subject(*linear_task()), BUDGET)
    assert smooth.stable_loss(bank).verdict == "pass"
    aligned = smooth.gradient_alignment(bank)
    assert aligned.verdict == "pass"
    assert aligned.value == pytest.approx(1, abs=1e-4)


def test_the_change_of_the_loss_is_that_of_plain_numpy_on_the_same_offsets(
    subject: MakeSubject,
) -> None:
    model, x, y = linear_task(20)
    bank = Bank(subject(model, x, y), BUDGET._replace(offsets=5))
    bank.clean()
    torch.manual_seed(3)
    found = smooth.stable_loss(bank).measured["change"]
    torch.manual_seed(3)
    w = model.weight.detach().numpy().astype(np.float64)
    sign = 1 - 2 * y.numpy()  # label 0: the loss is softplus(m)

    def loss(images: np.ndarray) -> np.ndarray:
        return softplus(sign * ((images.astype(np.float64) - 0.5) * w).sum((1, 2, 3)))

    changes = []
    for _ in range(5):
        offset = (torch.rand_like(x) - 0.5).numpy() * 8 / 255
        moved = np.clip(x.numpy() + offset, 0, 1)
        changes.append(np.minimum(np.abs(loss(moved) - loss(x.numpy())) / loss(x.numpy()), 1))
    assert found == pytest.approx(np.mean(changes), rel=1e-4)


def test_a_loss_that_oscillates_within_the_offsets_fails_18_and_19(subject: MakeSubject) -> None:
    class Ripple(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            m = 3 * torch.sin(1000 * x).sum((1, 2, 3))
            return torch.stack([m, -m], 1)

    torch.manual_seed(0)
    x = torch.rand(50, 3, 4, 4)
    bank = Bank(subject(Ripple(), x, Ripple()(x).argmax(1), classes=2), BUDGET)
    assert smooth.stable_loss(bank).verdict == "fail"
    found = smooth.gradient_alignment(bank)
    assert found.verdict == "fail"
    assert abs(found.measured["cosine"]) < 0.2


def test_a_loss_that_is_rounded_to_zero_in_float32_is_no_division_by_zero(
    subject: MakeSubject,
) -> None:
    bank = Bank(subject(Saturated(base=trained()), *some_digits(40)), BUDGET)
    assert math.isfinite(smooth.stable_loss(bank).measured["change"])
    assert math.isfinite(smooth.gradient_alignment(bank).measured["cosine"])


def test_the_direction_of_a_tiny_gradient_counts_like_any_other(subject: MakeSubject) -> None:
    sure = linear_task()[0]
    sure.weight.data *= 15  # gradients down to 1e-30, whose squares underflow
    x, y = linear_task()[1:]
    y = sure(x).argmax(1)
    assert float(Bank(subject(sure, x, y), BUDGET).gradient().abs().amax((1, 2, 3)).min()) < 1e-20
    found = smooth.gradient_alignment(Bank(subject(sure, x, y), BUDGET))
    assert found.value == pytest.approx(1, abs=1e-4)


def test_perturbations_of_fgsm_and_pgd_on_a_linear_model_agree(subject: MakeSubject) -> None:
    found = smooth.gradient_alignment(Bank(subject(*linear_task()), BUDGET))
    assert found.measured["fgsm and pgd"] == pytest.approx(1, abs=1e-4)


def test_the_error_of_linearisation_is_its_closed_form(subject: MakeSubject) -> None:
    # m falls as 2 - d/eps and FGSM and PGD both end at d = eps; L = softplus(-m), slope sigmoid.
    bank = Bank(subject(Mean(lambda d: 2 - d / EPS), *grey(), classes=2), BUDGET)
    change = softplus(np.array(-1.0)) - softplus(np.array(-2.0))
    slope = 1 / (1 + math.exp(2))
    expected = abs(change - slope) / change
    found = smooth.local_linearity(bank)
    assert found.verdict == "not applicable"
    assert found.measured["error"] == pytest.approx(expected, rel=1e-3)


def test_perturbations_that_change_nothing_are_left_out_and_counted(subject: MakeSubject) -> None:
    x, y = grey()
    x[:30] = 0.2  # flat there
    bank = Bank(subject(Mean(lambda d: 2 - (d + 0.1).relu() / EPS), x, y, classes=2), BUDGET)
    found = smooth.local_linearity(bank)
    assert found.measured["left out"] == 60
    assert math.isfinite(found.measured["error"])


def test_a_model_is_no_worse_than_itself_as_baseline(subject: MakeSubject) -> None:
    bank = Bank(subject(trained(), *some_digits(50), baseline=trained()), BUDGET)
    for check in (smooth.stable_loss, smooth.gradient_alignment, smooth.local_linearity):
        found = check(bank)
        assert found.verdict == "pass"
        assert "baseline" in found.measured


def test_the_baseline_is_what_the_ratios_are_relative_to(subject: MakeSubject) -> None:
    x, y = grey()
    gentle = Mean(lambda d: 2 - 0.05 * d / EPS)
    curved = Mean(lambda d: 2 - d / EPS - (d / EPS) ** 2)
    bank = Bank(subject(curved, x, y, classes=2, baseline=gentle), BUDGET)
    own = Bank(subject(gentle, x, y, classes=2), BUDGET)
    found = smooth.local_linearity(bank)
    assert found.verdict == "fail"
    expected = smooth.local_linearity(own).measured["error"]
    assert found.measured["baseline"] == pytest.approx(expected, rel=1e-4)
    assert smooth.stable_loss(bank).verdict == "fail"  # over twice the baseline's change


def test_the_baselines_passes_are_the_audits(subject: MakeSubject) -> None:
    made = subject(trained(), *some_digits(20), baseline=trained())
    bank, alone = Bank(made, BUDGET), Bank(made, BUDGET)
    smooth.stable_loss(bank)
    smooth._loss_change(alone)
    assert bank.spent.forward == 2 * alone.spent.forward
