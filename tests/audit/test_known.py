"""Known-bad models are called unreliable by the check named for it, known-good ones pass all."""

from collections.abc import Callable

import pytest
import torch

from aal_bench.audit.examine import examine
from aal_bench.audit.table import BY_NUMBER, QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import (
    Around,
    BatchStatistics,
    Detached,
    LabelDependent,
    Optimising,
    Quantised,
    Saturated,
    Softmax,
    Stochastic,
    linear_task,
    some_digits,
    trained,
)

BUDGET = QUICK._replace(steps=20, restarts=2, sweep_steps=10, large_steps=20, square_queries=100)
FAULTS: dict[type[Around], int] = {
    Saturated: 11,
    Quantised: 11,
    Detached: 12,
    Stochastic: 13,
    BatchStatistics: 13,
    Softmax: 14,
    Optimising: 15,
    LabelDependent: 16,
}
JUDGING = [*range(1, 9), *range(10, 23)]
"""The checks that look at the model alone: no claim, no other network, no gate, no control."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_known_fault_fails_the_check_named_for_it(
    fault: Callable[..., Around], subject: MakeSubject
) -> None:
    number = FAULTS[fault]
    made = subject(fault(base=trained()), *some_digits(40), eps="24/255")
    examined, _ = examine(made, BUDGET, checks=[BY_NUMBER[number]])
    (found,) = examined.checks
    assert found.verdict == "fail"
    assert found.severity == BY_NUMBER[number].severity
    assert found.sentence.endswith(".")


def test_a_linear_model_passes_every_check_that_applies_with_its_closed_form(
    subject: MakeSubject,
) -> None:
    model, x, y = linear_task()
    examined, bank = examine(subject(model, x, y), QUICK, checks=[BY_NUMBER[k] for k in JUDGING])
    assert {found.verdict for found in examined.checks} <= {"pass", "not applicable"}
    assert torch.equal(bank.survivors(), model.margins(x, y, bank.subject.eps) > 0)
    assert len(examined.checks) == len(JUDGING)


def test_the_checks_share_what_they_make_and_the_audit_says_what_that_saved(
    subject: MakeSubject,
) -> None:
    examined, bank = examine(
        subject(*linear_task()), BUDGET, checks=[BY_NUMBER[k] for k in (1, 2, 3, 4, 8, 10, 17)]
    )
    cost = examined.cost
    assert (cost.forwards, cost.backwards) == bank.spent
    assert cost.naive_backwards > 3 * cost.backwards
