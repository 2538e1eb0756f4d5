"""Checks 11 and 12: gradients exist, and are the model's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.gradients import autograd_complete, gradients_exist
from aal_bench.audit.slopes import in_float64, slopes_of
from aal_bench.audit.table import QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import (
    Around,
    Detached,
    Mean,
    Quantised,
    Saturated,
    Stochastic,
    StraightThrough,
    grey,
    linear_task,
    some_digits,
    trained,
)


@pytest.fixture
def bank(subject: MakeSubject) -> Any:
    """Make a bank of a network and 60 digits."""
    return lambda model: Bank(subject(model, *some_digits(60)), QUICK)


def test_a_trained_network_passes_both(bank: Any) -> None:
    made = bank(trained())
    assert gradients_exist(made).verdict == "pass"
    assert autograd_complete(made).verdict == "pass"


def test_a_linear_model_passes_both_with_the_l1_norm_of_its_weight_as_slope(
    subject: MakeSubject,
) -> None:
    bank = Bank(subject(*linear_task()), QUICK)
    assert gradients_exist(bank).verdict == "pass"
    assert autograd_complete(bank).verdict == "pass"
    slopes = slopes_of(bank, bank.subject.parts[0])
    norm = bank.subject.network.weight.detach().double().abs().sum().expand(100)
    torch.testing.assert_close(slopes.claimed, norm)
    torch.testing.assert_close(slopes.near, norm)


def test_logits_times_1e4_fail_11_under_cross_entropy_and_not_under_dlr(bank: Any) -> None:
    found = gradients_exist(bank(Saturated(base=trained())))
    assert found.verdict == "fail"
    assert found.measured["ce zero"] > 50
    assert found.measured["dlr zero"] == 0


def test_saturation_is_no_fault_of_autograd(bank: Any) -> None:
    assert autograd_complete(bank(Saturated(base=trained()))).verdict == "pass"


def test_a_rounding_quantiser_fails_11_and_moves_without_gradient_in_12(bank: Any) -> None:
    made = bank(Quantised(base=trained()))
    found = gradients_exist(made)
    assert found.verdict == "fail"
    assert found.measured["ce zero"] == int(made.correct().sum())
    complete = autograd_complete(made)
    assert complete.verdict == "fail"
    assert complete.measured["moving"] > 50


def test_a_broken_chain_fails_11_and_12_instead_of_passing_as_robust(bank: Any) -> None:
    made = bank(Detached(base=trained()))
    for check in (gradients_exist, autograd_complete):
        found = check(made)
        assert found.verdict == "fail"
        assert "does not require grad" in found.sentence


def test_a_straight_through_gradient_passes_11_and_fails_12_as_flat(bank: Any) -> None:
    made = bank(StraightThrough(base=trained()))
    assert gradients_exist(made).verdict == "pass"
    found = autograd_complete(made)
    assert found.verdict == "fail"
    assert found.measured["flat"] > 50


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def test_a_gradient_of_the_wrong_sign_fails_12(bank: Any) -> None:
    class Against(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.base(Reversed.apply(x))

    found = autograd_complete(bank(Against(base=trained())))
    assert found.verdict == "fail"
    assert found.measured["wrong"] == 60


def test_a_random_model_is_judged_by_its_slope_not_by_its_noise(bank: Any) -> None:
    torch.manual_seed(0)
    assert autograd_complete(bank(Stochastic(base=trained()))).verdict == "pass"


def test_one_image_without_gradient_is_enough_for_11(subject: MakeSubject) -> None:
    x, y = grey()
    x[0] = 0.3  # where the profile is flat
    bank = Bank(subject(Mean(lambda d: (d + 0.1).relu() + 1), x, y, classes=2), QUICK)
    found = gradients_exist(bank)
    assert found.verdict == "fail"
    assert found.measured["ce zero"] == 1


def test_a_wrong_image_without_gradient_is_no_fault(subject: MakeSubject) -> None:
    x, y = grey()
    x[0], y[0] = 0.3, 1
    bank = Bank(subject(Mean(lambda d: (d + 0.1).relu() + 1), x, y), QUICK)
    assert gradients_exist(bank).verdict == "pass"


def test_a_gradient_that_is_not_finite_fails_11(subject: MakeSubject) -> None:
    x, y = grey()
    model = Mean(lambda d: 1 + d.abs().sqrt())  # at d = 0: infinite times zero
    found = gradients_exist(Bank(subject(model, x, y, classes=2), QUICK))
    assert found.verdict == "fail"
    assert found.measured["ce not finite"] == 100


def test_finite_differences_are_taken_in_float64_where_the_model_can(bank: Any) -> None:
    made = bank(trained())
    assert in_float64(made, made.subject.parts[0])[1].dtype == torch.float64


def test_a_model_that_insists_on_float32_is_judged_in_float32(bank: Any) -> None:
    class Insists(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.base(x.float())

    made = bank(Insists(base=trained()))
    assert in_float64(made, made.subject.parts[0])[1].dtype == torch.float32
    assert autograd_complete(made).verdict == "pass"


def test_a_network_without_biases_on_black_pixels_passes_12(bank: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 64, 10, bias=False),
    )
    assert autograd_complete(bank(model)).verdict == "pass"
