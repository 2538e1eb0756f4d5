"""Checks 21 and 22: profiles on which one large step and many small ones part ways."""

import torch
from torch import Tensor

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.leaks import catastrophic_overfitting, label_leaking
from aal_bench.audit.subject import Claims
from aal_bench.audit.table import QUICK
from tests.audit.conftest import MakeSubject
from tests.audit.models import Mean, grey, linear_task, some_digits, trained

EPS = 8 / 255
BUDGET = QUICK._replace(steps=20, restarts=1)


def hole(d: Tensor) -> Tensor:
    """Negative between 0.25 and 0.75 of eps; FGSM jumps over it to where it is positive again."""
    return (d.abs() / EPS - 0.5).abs() - 0.25


def collapsed(subject: MakeSubject, **fields) -> Bank:
    x, y = grey()
    return Bank(subject(Mean(hole), x + 0.1 * EPS, y, classes=2, step=EPS / 10, **fields), BUDGET)


def test_a_linear_model_and_a_trained_network_at_a_small_eps_pass_both(
    subject: MakeSubject,
) -> None:
    for made in (subject(*linear_task()), subject(trained(), *some_digits(100), eps="1/255")):
        bank = Bank(made, BUDGET)
        assert catastrophic_overfitting(bank).verdict == "pass"
        assert label_leaking(bank).verdict == "pass"


def test_a_model_that_resists_one_step_and_falls_to_ten_fails_21(subject: MakeSubject) -> None:
    found = catastrophic_overfitting(collapsed(subject))
    assert found.verdict == "fail"
    assert found.severity is None  # the check's own: unreliable
    assert (found.measured["fgsm"], found.measured["pgd-10"]) == (1, 0)


def test_the_same_gap_of_a_network_trained_without_attack_is_a_warning(
    subject: MakeSubject,
) -> None:
    run = Claims(training={"overfitting": None}, method_known=True)
    found = catastrophic_overfitting(collapsed(subject, claims=run))
    assert (found.verdict, found.severity) == ("fail", "warning")
    assert "without attack" in found.sentence
    fgsm = catastrophic_overfitting(collapsed(subject, claims=run, method="fgsm"))
    assert (fgsm.verdict, fgsm.severity) == ("fail", None)


def test_a_gap_of_a_network_of_which_nothing_is_claimed_and_that_one_step_breaks_is_a_warning(
    subject: MakeSubject,
) -> None:
    x, y = grey()
    # Forty images stand against one step alone; sixty against nothing.
    shifts = torch.where(torch.arange(100) < 60, 0.2, 0.1)[:, None, None, None] * EPS

    def profile(d: Tensor) -> Tensor:
        return torch.where(d.detach() > 1.15 * EPS, -0 * d - 1, hole(d))

    fields = {"classes": 2, "step": EPS / 10, "method": "unknown"}
    found = catastrophic_overfitting(Bank(subject(Mean(profile), x + shifts, y, **fields), BUDGET))
    assert found.measured["fgsm"] == 0.4
    assert (found.verdict, found.severity) == ("fail", "warning")
    assert "nothing is claimed" in found.sentence
    claimed = Claims(robust=0.4)
    bank = Bank(subject(Mean(profile), x + shifts, y, **fields, claims=claimed), BUDGET)
    assert catastrophic_overfitting(bank).severity is None


def test_a_gap_beside_which_iterated_attacks_leave_half_is_a_warning(
    subject: MakeSubject,
) -> None:
    x, y = grey()
    # Sixty images stand against anything; forty against one step alone.
    shifts = torch.where(torch.arange(100) < 60, 2.0, 0.1)[:, None, None, None] * EPS
    made = subject(Mean(lambda d: hole(d) + 9 * (d > 0.9 * EPS)), x + shifts, y, classes=2)
    bank = Bank(made, BUDGET)
    found = catastrophic_overfitting(bank)
    assert found.measured["fgsm"] - found.measured["pgd-10"] > 0.25
    assert (found.verdict, found.severity) == ("fail", "warning")
    assert "no collapse" in found.sentence


def test_a_gap_that_few_images_carry_is_not_decided(subject: MakeSubject) -> None:
    x, y = grey(5)
    made = subject(Mean(hole), x + 0.1 * EPS, y, classes=2, step=EPS / 10)
    assert catastrophic_overfitting(Bank(made, BUDGET)).verdict == "not decided"


SEEN = {"epoch": 7, "rule": "fall", "before": 0.625, "now": 0.031, "clean": 0.9, "fgsm": 0.95}


def test_a_collapse_that_training_saw_and_did_not_overcome_fails_21(subject: MakeSubject) -> None:
    model, x, y = linear_task()
    claims = Claims(training={"overfitting": {**SEEN, "recovered": False}})
    found = catastrophic_overfitting(Bank(subject(model, x, y, claims=claims), BUDGET))
    assert (found.verdict, found.severity) == ("fail", None)
    assert "epoch 7" in found.sentence
    assert "62.5 % to 3.1 %" in found.sentence


def test_a_collapse_that_training_overcame_passes_21(subject: MakeSubject) -> None:
    model, x, y = linear_task()
    claims = Claims(training={"overfitting": {**SEEN, "recovered": True}})
    found = catastrophic_overfitting(Bank(subject(model, x, y, claims=claims), BUDGET))
    assert found.verdict == "pass"


def answering(d: Tensor) -> Tensor:
    """Wrong at d = 0, and right again at eps, where the ascent of its own loss leads."""
    return (d.abs() / EPS - 0.4).abs() - 0.5


def test_a_model_that_fgsm_improves_fails_21_and_22(subject: MakeSubject) -> None:
    x, y = grey()
    x += 0.1 * EPS
    bank = Bank(subject(Mean(answering), x, y, classes=2), BUDGET)
    assert not bool(bank.correct().any())
    assert bool(bank.fgsm_correct().all())
    assert catastrophic_overfitting(bank).verdict == "fail"
    found = label_leaking(bank)
    assert found.verdict == "fail"
    # The predicted label is the wrong one: away from it the image moves to the other side.
    assert found.measured["clean"] == 0


def test_where_every_prediction_is_correct_both_fgsm_are_one(subject: MakeSubject) -> None:
    model, x, _ = linear_task()
    bank = Bank(subject(model, x, model(x).argmax(1)), BUDGET)
    found = label_leaking(bank)
    assert found.value == 0
    assert found.measured["true"] == found.measured["predicted"]


def test_fgsm_of_a_wrong_prediction_corrects_a_linear_model_as_its_closed_form_says(
    subject: MakeSubject,
) -> None:
    model, x, y = linear_task()
    bank = Bank(subject(model, x, y), BUDGET)
    guessed = model(x).argmax(1)
    fooled = model.margins(x, guessed, EPS) < 0  # FGSM of the prediction changes it
    predicted_correct = torch.where(guessed == y, ~fooled, fooled)
    found = label_leaking(bank)
    assert found.verdict == "pass"
    assert round(100 * found.measured["predicted"]) == int(predicted_correct.sum())
