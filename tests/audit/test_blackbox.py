"""Checks 8 to 10: what an attack that knows less finds beyond the white-box ones."""

import pytest
import torch
from torch import Tensor, nn

from aal_bench.attacks.blackbox import square
from aal_bench.audit import toolkit
from aal_bench.audit.bank import Bank
from aal_bench.audit.checks import blackbox
from aal_bench.audit.table import QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import (
    Quantised,
    Saturated,
    grey,
    linear_task,
    some_digits,
    trained,
)

BUDGET = QUICK._replace(steps=20, restarts=1, square_queries=100, random_points=20)
EPS = "24/255"


def test_nothing_beats_the_white_box_attacks_on_a_linear_model(subject: MakeSubject) -> None:
    model, x, y = linear_task()
    bank = Bank(subject(model, x, y, surrogates=(("its negative", linear_task()[0]),)), BUDGET)
    assert torch.equal(bank.survivors(), model.margins(x, y, bank.subject.eps) > 0)
    for check in (
        blackbox.black_box_weaker,
        blackbox.transfer_weaker,
        blackbox.random_noise_weaker,
    ):
        found = check(bank)
        assert found.verdict == "pass"
        assert found.value == 0


def test_square_fails_check_8_where_gradients_are_masked(subject: MakeSubject) -> None:
    bank = Bank(subject(Quantised(base=trained()), *some_digits(100), eps=EPS), BUDGET)
    found = blackbox.black_box_weaker(bank)
    assert found.verdict == "fail"
    assert found.measured["broken"] >= 3


def test_square_on_the_same_network_without_the_quantiser_breaks_next_to_nothing(
    subject: MakeSubject,
) -> None:
    bank = Bank(subject(trained(), *some_digits(100), eps="8/255"), BUDGET)
    assert int(bank.survivors().sum()) > 20
    assert blackbox.black_box_weaker(bank).verdict == "pass"


def test_square_is_asked_about_the_survivors_alone_and_within_its_queries(
    subject: MakeSubject,
) -> None:
    bank = Bank(subject(trained(), *some_digits(50), eps="4/255"), BUDGET)
    standing = bank.survivors()
    before = bank.spent
    left = toolkit.square(bank, standing)
    assert not bool((left & ~standing).any())
    # Besides its queries: is it right at all, the first stripes, what was found, the verdict.
    most = int(standing.sum()) * (BUDGET.square_queries + 4)
    assert 0 < bank.spent.forward - before.forward <= most
    assert bank.spent.backward == before.backward


def test_square_stays_in_ball_and_box_finds_errors_and_draws_from_its_own_stream() -> None:
    model, (x, y) = trained(), some_digits(40)
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = square(model, x, y, 0.2, queries=50, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert float((found - x).abs().max()) <= 0.2 + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert bool((model(found).argmax(1) != y).any())
    assert torch.equal(square(model, x, y, 0.2, queries=50, seed=0), found)


def test_apgd_t_breaks_what_logits_times_1e4_hide_from_cross_entropy(subject: MakeSubject) -> None:
    bank = Bank(subject(Saturated(base=trained()), *some_digits(20), eps=EPS), BUDGET)
    plain = bank.correct() & bank.pgd().stands
    left = bank.apgd_t()
    assert int(plain.sum()) > int(left.sum())
    assert not bool((left & ~bank.correct()).any())
    assert bank.spent.backward > 100 * int(left.sum())


def test_a_model_that_loses_its_gradient_falls_to_that_of_its_undefended_self(
    subject: MakeSubject,
) -> None:
    masked = subject(Quantised(base=trained()), *some_digits(100), eps=EPS, undefended=trained())
    found = blackbox.transfer_weaker(Bank(masked, BUDGET))
    assert found.verdict == "fail"
    assert found.measured["broken by the undefended network"] > 10


def test_without_another_network_check_9_does_not_apply_and_says_what_to_give(
    subject: MakeSubject,
) -> None:
    found = blackbox.transfer_weaker(Bank(subject(*linear_task()), BUDGET))
    assert found.verdict == "not applicable"
    assert "--surrogate" in found.sentence


def test_every_surrogate_is_named_with_what_it_breaks(subject: MakeSubject) -> None:
    others = (("a twin", trained()), ("another", trained()))
    bank = Bank(subject(trained(), *some_digits(50), eps="4/255", surrogates=others), BUDGET)
    assert bool(bank.survivors().any())
    found = blackbox.transfer_weaker(bank)
    assert found.measured["broken by a twin"] == found.measured["broken by another"] == 0


class Corners(nn.Module):
    """Wrong where the mean distance from grey is over 0.9 eps, which its gradient conceals."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - 0.5).abs().mean((1, 2, 3)).detach()
        m = 0.9 * self.eps - rough + 0 * x.mean((1, 2, 3))
        return torch.stack([m, torch.zeros_like(m)], 1)


def test_noise_at_the_corners_that_breaks_what_gradients_leave_fails_10(
    subject: MakeSubject,
) -> None:
    # Uniform points are at eps/2 on average and never wrong, corners at eps and always.
    bank = Bank(subject(Corners(8 / 255), *grey(), classes=2), BUDGET)
    assert bool(bank.survivors().all())
    found = blackbox.random_noise_weaker(bank)
    assert found.verdict == "fail"
    assert found.value == 1
    one_point = BUDGET._replace(random_points=1)  # the first is not a corner
    uniform = Bank(subject(Corners(8 / 255), *grey(), classes=2), one_point)
    assert blackbox.random_noise_weaker(uniform).verdict == "pass"


def test_noise_is_tried_on_so_many_images_and_points_as_the_budget_has(
    subject: MakeSubject,
) -> None:
    budget = BUDGET._replace(random_images=7, random_points=11)
    bank = Bank(subject(*linear_task()), budget)
    bank.survivors()
    before = bank.spent.forward
    found = blackbox.random_noise_weaker(bank)
    assert found.measured["images"] == 7
    assert bank.spent.forward - before == 77


@pytest.mark.parametrize(
    "check", [blackbox.black_box_weaker, blackbox.random_noise_weaker], ids=["square", "noise"]
)
def test_where_nothing_is_left_nothing_can_be_broken(check, subject: MakeSubject) -> None:
    found = check(Bank(subject(trained(), *some_digits(20), eps="64/255"), BUDGET))
    assert found.verdict == "not applicable"


def test_two_images_that_are_left_decide_nothing(subject: MakeSubject) -> None:
    found = blackbox.random_noise_weaker(
        Bank(subject(Corners(8 / 255), *grey(2), classes=2), BUDGET)
    )
    assert found.verdict == "not decided"
