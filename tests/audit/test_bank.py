import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aal_bench.audit.accounts import NoGradient, Passes
from aal_bench.audit.bank import Bank, loss_of
from aal_bench.audit.branch import Branch, beginning
from aal_bench.audit.subject import Part, Subject
from aal_bench.audit.table import QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import Detached, Linear, linear_task, some_digits, trained

BUDGET = QUICK._replace(steps=10, restarts=2)


@pytest.fixture
def bank(subject: MakeSubject) -> Bank:
    return Bank(subject(*linear_task()), BUDGET)


def test_the_gradient_of_a_linear_models_margin_is_its_weight(bank: Bank) -> None:
    w = bank.subject.network.weight
    sign = (1 - 2 * bank.y)[:, None, None, None]  # label 0: the loss rises with m
    torch.testing.assert_close(bank.gradient("margin"), sign * w.detach())


def test_fgsm_of_a_linear_model_is_its_worst_case_in_ball_and_box(bank: Bank) -> None:
    worst = bank.subject.network.margins(bank.x, bank.y, bank.subject.eps)
    assert torch.equal(bank.fgsm_correct(), worst > 0)


def test_pgd_of_a_linear_model_ends_at_its_worst_case(bank: Bank) -> None:
    model, run = bank.subject.network, bank.pgd()
    worst = model.margins(bank.x, bank.y, bank.subject.eps)
    reached = model.margins(run.x_adv, bank.y, 0)
    torch.testing.assert_close(reached, worst, rtol=0, atol=1e-4)
    assert torch.equal(run.stands, worst > 0)


def test_every_point_of_pgd_stays_in_ball_and_box(bank: Bank) -> None:
    for run in (*bank.starts(), bank.run_pgd(64 / 255, 0.1, 5), bank.run_pgd(1.0, 0.1, 5)):
        assert float(run.x_adv.min()) >= 0
        assert float(run.x_adv.max()) <= 1
    eps = bank.subject.eps
    assert float((bank.pgd().x_adv - bank.x).abs().max()) <= eps + 1e-6
    assert float((bank.pgd().first - bank.x).abs().max()) <= eps + 1e-6


def test_the_first_fooling_iterate_of_pgd_fools_and_none_before_it_does(
    subject: MakeSubject,
) -> None:
    bank = Bank(subject(trained(), *some_digits(60)), BUDGET)
    run = bank.pgd()
    fooled = ~run.stands
    assert bool(fooled.any())
    assert bool((bank.predictions(run.first) != bank.y)[fooled].all())
    assert torch.equal(run.first[~fooled], run.x_adv[~fooled])


def test_pgd_of_fewer_steps_is_the_beginning_of_pgd_of_more(bank: Bank) -> None:
    subject = bank.subject
    short, long = (bank.run_pgd(subject.eps, subject.step, steps) for steps in (3, 10))
    torch.testing.assert_close(short.loss, long.loss[:4])
    assert torch.equal(short.correct, long.correct[:4])


def test_starts_differ_and_the_same_start_repeats(bank: Bank) -> None:
    subject = bank.subject
    again = bank.run_pgd(subject.eps, subject.step, BUDGET.steps)
    assert torch.equal(again.loss, bank.pgd().loss)
    assert not torch.equal(bank.pgd(1).loss[0], bank.pgd(0).loss[0])


def test_pgd_costs_one_pass_forward_and_back_for_each_step_and_one_forward(bank: Bank) -> None:
    with bank.charging(1):
        bank.pgd()
    assert bank.spent == Passes(100 * (BUDGET.steps + 1), 100 * BUDGET.steps)


def test_what_two_checks_want_is_made_once_and_naively_twice(bank: Bank) -> None:
    for number in (1, 2):
        with bank.charging(number):
            bank.fgsm_correct()  # a gradient (forward and backward) and a verdict
            bank.logits(bank.x)  # its own affair
    assert bank.spent == Passes(100 * (2 + 2), 100)
    assert bank.alone(1) == bank.alone(2) == Passes(100 * (2 + 1), 100)
    assert bank.naive() == Passes(100 * 6, 200)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_losses_are_their_formulas(loss: str) -> None:
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 6
    for row, label, found in zip(
        logits.tolist(), y.tolist(), loss_of(logits, y, loss).tolist(), strict=True
    ):
        others = max(z for k, z in enumerate(row) if k != label)
        ranked = sorted(row, reverse=True)
        expected = {
            "ce": np.log(np.exp(row).sum()) - row[label],
            "margin": others - row[label],
            "dlr": (others - row[label]) / (ranked[0] - ranked[2]),
        }[loss]
        assert found == pytest.approx(expected, rel=1e-4)


def test_dlr_of_three_classes_is_the_margin() -> None:
    logits, y = torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)
    assert torch.equal(loss_of(logits, y, "dlr"), loss_of(logits, y, "margin"))


def test_a_model_without_gradient_says_so_every_time_it_is_asked(subject: MakeSubject) -> None:
    bank = Bank(subject(Detached(base=trained()), *some_digits(10)), BUDGET)
    for _ in range(2):
        with pytest.raises(NoGradient, match="does not require grad"):
            bank.gradient()
        with pytest.raises(NoGradient):
            bank.pgd()


def test_survivors_stand_after_every_attack_of_the_bank(subject: MakeSubject) -> None:
    bank = Bank(subject(trained(), *some_digits(60)), BUDGET)
    expected = bank.correct() & bank.fgsm_correct() & bank.pgd(0).stands & bank.pgd(1).stands
    expected &= bank.pgd(loss="margin").stands
    assert torch.equal(bank.survivors(), expected)


class Offset(nn.Module):
    """One logit is a constant, so that networks of two parts can be told apart."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.value.expand(len(x)), x.mean((1, 2, 3))], 1)


@pytest.fixture
def in_parts(subject: MakeSubject) -> Subject:
    x, y = torch.rand(7, 3, 4, 4), torch.arange(7) % 2
    made = subject(Offset(0.0), x, y)
    parts = (
        Part(Offset(1.0).eval(), x[:4], y[:4], np.arange(4)),
        Part(Offset(2.0).eval(), x[4:], y[4:], np.arange(4, 7)),
    )
    return Subject(**{**made.__dict__, "parts": parts})


def test_each_part_is_answered_by_its_own_network_in_the_order_of_the_images(
    in_parts: Subject,
) -> None:
    logits = Bank(in_parts, BUDGET).clean()
    assert logits[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]


def test_a_branch_sees_the_kept_images_of_each_part_and_its_passes_are_the_trunks(
    in_parts: Subject,
) -> None:
    trunk = Bank(in_parts, BUDGET)
    keep = torch.tensor([False, True, False, True, False, False, True])
    branch = Branch(trunk, keep)
    with trunk.charging(8):
        assert branch.clean()[:, 0].tolist() == [1, 1, 2]
    assert torch.equal(branch.x, trunk.x[keep])
    assert np.concatenate([part.rows for part in branch.subject.parts]).tolist() == [1, 3, 6]
    assert trunk.alone(8) == Passes(3, 0)
    assert branch.spent == Passes(0, 0)


def test_a_branch_drops_the_parts_of_which_no_image_is_left(in_parts: Subject) -> None:
    branch = Branch(Bank(in_parts, BUDGET), torch.arange(7) >= 5)
    assert [len(part.y) for part in branch.subject.parts] == [2]


def test_the_beginning_of_several_parts_goes_on_into_the_next(in_parts: Subject) -> None:
    assert [len(part.y) for part in beginning(in_parts.parts, 6)] == [4, 2]
    assert [len(part.y) for part in beginning(in_parts.parts, 3)] == [3]


def test_a_linear_models_closed_form_is_that_of_the_l1_norm_away_from_the_box() -> None:
    model, x, y = linear_task()
    x = 0.25 + x / 2
    sign, w = 2 * y - 1, model.weight.detach()
    plain = sign * ((x - 0.5).flatten(1) @ w.flatten()) - 0.1 * w.abs().sum()
    torch.testing.assert_close(model.margins(x, y, 0.1).float(), plain, rtol=1e-4, atol=1e-4)
    assert isinstance(model, Linear)
