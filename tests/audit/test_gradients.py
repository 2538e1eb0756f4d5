"""Checks 11 and 12: gradients exist, and are the model's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aal_bench.audit.accounts import NoGradient
from aal_bench.audit.bank import Bank, raise_if_broken
from aal_bench.audit.checks.gradients import autograd_complete, gradients_exist
from aal_bench.audit.examine import examine, finite
from aal_bench.audit.outcome import Outcome
from aal_bench.audit.record import Finding
from aal_bench.audit.slopes import in_float64, slopes_of
from aal_bench.audit.table import BY_NUMBER, QUICK
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
    assert in_float64(made, made.subject.parts[0])[1].x.dtype == torch.float64


def test_a_model_that_insists_on_float32_is_judged_in_float32(bank: Any) -> None:
    class Insists(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.base(x.float())

    made = bank(Insists(base=trained()))
    assert in_float64(made, made.subject.parts[0])[1].x.dtype == torch.float32
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


class RaisesOffTheData(Around):
    """Answers images whose pixels are multiples of 1/16, as the digits are, and no others."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(((16 * x - (16 * x).round()).abs() > 1e-3).any()):
            raise RuntimeError("index out of range")
        return self.base(x)


class NaNOffTheData(Around):
    """NaN logits where a pixel is no multiple of 1/16."""

    def forward(self, x: Tensor) -> Tensor:
        off = ((16 * x - (16 * x).round()).abs() > 1e-3).flatten(1).any(1)
        return self.base(x).masked_fill(off[:, None], torch.nan)


@pytest.mark.parametrize("kind", [RaisesOffTheData, NaNOffTheData])
def test_a_model_that_breaks_under_attack_is_no_robust_one(kind, subject) -> None:
    x, y = some_digits(40)
    made = subject(kind(base=trained()), (16 * x).round() / 16, y, classes=10)
    found, _ = examine(made, QUICK._replace(steps=20), checks=[BY_NUMBER[n] for n in (1, 5, 11)])
    assert "fail" in {check.verdict for check in found.checks}
    assert all(check.verdict != "not decided" for check in found.checks)


def test_a_broken_chain_is_told_from_any_other_error() -> None:
    with pytest.raises(NoGradient):
        raise_if_broken(RuntimeError("element 0 of tensors does not require grad"))
    raise_if_broken(RuntimeError("CUDA error: an illegal memory access"))  # raises nothing


def test_nan_figures_of_a_pass_are_a_failure_and_are_spelt_in_the_record() -> None:
    judged = finite(Outcome("pass", "Fine.", value=float("nan"), measured={"a": float("inf")}))
    assert judged.verdict == "fail"
    written = Finding.of(BY_NUMBER[18], judged)
    assert (written.value, written.measured) == ("not finite (nan)", {})
