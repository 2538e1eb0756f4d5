"""Checks 1 to 4 and 17 on models whose attacks have an answer on paper."""

import pytest
import torch
from torch import Tensor, nn

from aal_bench.attacks.linf import uniform_start
from aal_bench.audit.bank import Bank
from aal_bench.audit.checks import steps
from aal_bench.audit.table import FULL, QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import Mean, Stochastic, grey, linear_task, some_digits, trained

EPS = 8 / 255
CHECKS = (
    steps.iterative_beats_one_step,
    steps.convergence,
    steps.restarts,
    steps.finished_optimisation,
    steps.silent_success,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_linear_model_passes(check, subject: MakeSubject) -> None:
    assert check(Bank(subject(*linear_task()), QUICK)).verdict == "pass"


def valley(d: Tensor) -> Tensor:
    """Falls from d = 0 to a minimum above zero at eps/4, rises, and is negative from 0.9 eps on."""
    near = 1 - 3.2 * (d.abs() / EPS) + 6.4 * (d.abs() / EPS) ** 2
    return torch.where(d.abs() < 0.9 * EPS, near, -torch.ones_like(d))


def test_one_step_that_jumps_over_a_local_minimum_beats_pgd_and_check_1_fails(
    subject: MakeSubject,
) -> None:
    x, y = grey()
    x += 0.05 * EPS  # off the top of the profile, on which there is no way down
    bank = Bank(subject(Mean(valley), x, y, classes=2, step=EPS / 10), QUICK)
    found = steps.iterative_beats_one_step(bank)
    assert found.verdict == "fail"
    # FGSM moves every pixel by eps; PGD comes to rest near eps/4, where the model is right.
    assert (found.measured["fgsm"], found.measured["pgd-10"]) == (0, 1)
    assert found.measured["fgsm-only"] == 1


def test_a_step_too_small_to_cross_the_ball_fails_checks_2_and_4(subject: MakeSubject) -> None:
    x, y = grey()
    # From u uniform in the ball, moving by t eps and clipping: the mean is at t - t^2/4 of eps,
    # 0.36 after 20 of these steps and 0.75 after 50.
    bank = Bank(subject(Mean(lambda d: 1 - d / (0.6 * EPS)), x, y, classes=2, step=EPS / 50), QUICK)
    found = steps.convergence(bank)
    assert found.verdict == "fail"
    assert found.measured["pgd-20"] == 1
    assert found.measured["pgd-50"] < 0.05
    steeper = Mean(lambda d: 2 - d / EPS)  # never wrong, and the loss rises to the last step
    unfinished = steps.finished_optimisation(
        Bank(subject(steeper, x, y, classes=2, step=EPS / 100), QUICK)
    )
    assert unfinished.verdict == "fail"
    assert unfinished.value == 1


class Ratchet(nn.Module):
    """Wrong where the first pixel is over 1/2 + eps/2; below 1/2 it is flat, and no way up."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        up = (x[:, 0, 0, 0] - 0.5).relu() / EPS
        return torch.stack([self.scale * (0.5 - up), torch.zeros_like(up)], 1)


def test_starts_that_decide_the_outcome_fail_check_3_by_the_share_of_good_starts(
    subject: MakeSubject,
) -> None:
    x, y = grey()
    made = subject(Ratchet(), x, y, classes=2)
    found = steps.restarts(Bank(made, QUICK))
    below = []
    for restart in range(QUICK.restarts):
        with torch.random.fork_rng():
            torch.manual_seed(made.seed + 1000 * restart)
            below.append(uniform_start(x, EPS)[:, 0, 0, 0] <= 0.5)
    assert found.verdict == "fail"
    assert found.measured["one"] == pytest.approx(float(below[0].float().mean()))
    assert found.measured["all"] == pytest.approx(float((below[0] & below[1]).float().mean()))


def test_where_no_attack_failed_none_can_be_unfinished(subject: MakeSubject) -> None:
    x, y = grey(10)
    bank = Bank(subject(Mean(lambda d: 0.01 - d.abs() / EPS), x + EPS / 9, y, classes=2), QUICK)
    assert steps.finished_optimisation(bank).verdict == "not applicable"


def test_a_success_that_is_none_when_asked_again_fails_check_17(subject: MakeSubject) -> None:
    torch.manual_seed(0)
    bank = Bank(
        subject(Stochastic(base=trained()), *some_digits(100)), QUICK._replace(steps=20, restarts=1)
    )
    assert steps.silent_success(bank).verdict == "fail"


def test_the_full_budget_also_compares_100_with_200_steps(subject: MakeSubject) -> None:
    x, y = grey(40)
    budget = FULL._replace(steps=50, restarts=1)
    # As above: 100 of these steps bring the mean to 0.75 of eps, 200 of them to eps.
    crawling = subject(Mean(lambda d: 1 - d / (0.95 * EPS)), x, y, classes=2, step=EPS / 100)
    found = steps.convergence(Bank(crawling, budget))
    assert found.verdict == "fail"
    assert found.measured["pgd-50"] == 1
    assert found.measured["pgd-200"] < 0.05
