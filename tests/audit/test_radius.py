"""Checks 5 to 7: accuracy against eps, with its closed form on a linear model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks import radius
from aal_bench.audit.table import EPS_SWEEP, QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import (
    Detached,
    Mean,
    Quantised,
    Saturated,
    grey,
    linear_task,
    some_digits,
    trained,
)

CHECKS = (radius.monotone_in_eps, radius.large_eps_chance, radius.unbounded_attack)
BUDGET = QUICK._replace(steps=20, restarts=1, large_steps=20)


def test_the_sweep_of_a_linear_model_is_its_closed_form_at_every_eps(subject: MakeSubject) -> None:
    model, x, y = linear_task()
    found = radius.monotone_in_eps(Bank(subject(model, x, y), QUICK))
    assert found.verdict == "pass"
    for k in (0, *EPS_SWEEP):
        closed = float((model.margins(x, y, k / 255) > 0).double().mean())
        assert found.measured[f"eps {k}/255"] == pytest.approx(closed)


def test_the_large_eps_of_a_linear_model_leave_their_closed_form(subject: MakeSubject) -> None:
    model, x, y = linear_task()
    found = radius.large_eps_chance(Bank(subject(model, x, y), QUICK))
    assert found.verdict == "pass"
    for name, eps in (("large", found.measured["eps"]), ("128/255", 128 / 255)):
        closed = float((model.margins(x, y, eps) > 0).double().mean())
        assert found.measured[name] == pytest.approx(closed)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_trained_network_and_a_saturated_one_whose_margin_has_a_gradient_pass(
    check: Any, subject: MakeSubject
) -> None:
    for model in (trained(), Saturated(base=trained())):
        assert check(Bank(subject(model, *some_digits(60)), BUDGET)).verdict == "pass"


@pytest.mark.parametrize("check", CHECKS[1:], ids=lambda check: check.__name__)
def test_a_model_without_usable_gradient_stands_at_any_eps_and_fails(
    check: Any, subject: MakeSubject
) -> None:
    found = check(Bank(subject(Quantised(base=trained()), *some_digits(60)), BUDGET))
    assert found.verdict == "fail"


def test_a_model_that_cannot_be_differentiated_is_not_judged(subject: MakeSubject) -> None:
    from aal_bench.audit.examine import one
    from aal_bench.audit.table import BY_NUMBER

    bank = Bank(subject(Detached(base=trained()), *some_digits(60)), BUDGET)
    for number, check in zip((5, 6, 7), CHECKS, strict=True):
        found = one(bank, BY_NUMBER[number], check)
        assert found.verdict == "not decided"
        assert "check 12" in found.sentence


def window(d: Tensor) -> Tensor:
    """Negative for 0.0294 < d < 0.0318 alone, and from both sides the way leads there."""
    return 100 * ((d - 0.0306).abs() - 0.0012)


def test_a_shell_of_errors_that_large_steps_jump_over_fails_5(subject: MakeSubject) -> None:
    x, y = grey()
    # At 8/255 = 0.0314 PGD comes to rest inside; beyond, it jumps from one side to the other.
    bank = Bank(subject(Mean(window), x, y, classes=2), QUICK)
    found = radius.monotone_in_eps(bank)
    assert found.verdict == "fail"
    assert found.measured["eps 8/255"] == 0
    assert found.measured["eps 16/255"] > 0.3


def test_at_the_tasks_eps_the_sweep_takes_the_beginning_of_pgd(subject: MakeSubject) -> None:
    bank = Bank(subject(*linear_task()), QUICK)
    bank.pgd()
    before = bank.spent
    radius.monotone_in_eps(bank)
    assert bank.spent.backward - before.backward == 100 * 20 * (len(EPS_SWEEP) - 1)


def test_an_eps_between_those_of_the_sweep_is_swept_as_well(subject: MakeSubject) -> None:
    found = radius.monotone_in_eps(Bank(subject(*linear_task(), eps="24/255"), BUDGET))
    assert list(found.measured) == [
        f"eps {k}/255" for k in (0, 1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
    ]


def test_the_large_eps_is_the_median_half_distance_to_another_class_by_plain_loops(
    subject: MakeSubject,
) -> None:
    x, y = some_digits(80)
    nearest = []
    for i in range(80):
        apart = [float((x[i] - x[j]).abs().max()) / 2 for j in range(80) if int(y[i]) != int(y[j])]
        nearest.append(min(apart))
    expected = sorted(nearest)[39]  # the lower of the two in the middle
    assert 64 / 255 < expected < 128 / 255
    found = radius.large_eps(Bank(subject(trained(), x, y), BUDGET))
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_large_eps_is_64_of_255_for_close_classes_and_never_over_128(
    subject: MakeSubject,
) -> None:
    x, y = torch.full((10, 3, 4, 4), 0.5), torch.arange(10) % 2
    model, *_ = linear_task()
    x[1::2] += 0.1
    assert radius.large_eps(Bank(subject(model, x, y), BUDGET)) == 64 / 255
    x[0::2], x[1::2] = 0.0, 1.0
    far = radius.large_eps(Bank(subject(model, x, y), BUDGET))
    assert far == pytest.approx(0.5, abs=1e-6)
    assert far <= 128 / 255


def test_further_losses_are_tried_on_what_is_left_alone(subject: MakeSubject) -> None:
    bank = Bank(subject(Saturated(base=trained()), *some_digits(60)), BUDGET)
    left = bank.correct() & bank.pgd_at(1.0, BUDGET.large_steps).stands
    before = bank.spent
    radius.unbounded_attack(bank)
    added = bank.spent.backward - before.backward
    assert 0 < added <= BUDGET.large_steps * int(left.sum()) * len(radius.FURTHER)
