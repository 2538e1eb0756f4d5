"""The learning rate as a closed form, against torch's schedulers and interpolation."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from aal_bench.config import Train
from aal_bench.training.schedule import learning_rate

EPOCHS, STEPS = 10, 70


def rates(**options) -> list[float]:
    train = Train.model_validate({"epochs": EPOCHS, "lr": 0.2, **options})
    return [learning_rate(train, step, STEPS) for step in range(STEPS)]


def scheduled(make) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler, seen = make(optimizer), []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_is_torchs_annealing_per_step():
    expected = scheduled(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS))
    assert rates(schedule="cosine") == pytest.approx(expected, abs=1e-12)
    assert 0 < rates(schedule="cosine")[-1] < 1e-3


@pytest.mark.parametrize("milestones", [(0.5, 0.75), (0.3, 0.6, 0.9), (0.1,)])
def test_steps_are_torchs_milestones(milestones):
    at = [round(milestone * STEPS + 0.4999) for milestone in milestones]  # the next whole step
    expected = scheduled(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, at, gamma=0.2))
    found = rates(schedule="step", milestones=milestones, decay=0.2)
    assert found == pytest.approx(expected, rel=1e-12)


def test_one_cycle_is_the_triangle_of_fast_adversarial_training_at_mid_step():
    """np.interp([0, 2/5, 1] -> [0, lr, 0]) as in that code; the middle of a step is never 0."""
    expected = np.interp((np.arange(STEPS) + 0.5) / STEPS, [0, 0.4, 1], [0, 0.2, 0])
    found = rates(schedule="onecycle")
    assert found == pytest.approx(expected.tolist(), rel=1e-12)
    assert min(found) > 0
    assert np.mean(found) == pytest.approx(0.1, rel=1e-2)


def test_constant_is_constant():
    assert rates(schedule="constant") == [0.2] * STEPS


def test_warm_up_rises_in_equal_steps_and_then_lets_go():
    found = rates(schedule="cosine", warmup_epochs=2.0)
    plain = rates(schedule="cosine")
    factors = np.divide(found, plain)
    assert factors[:14].tolist() == pytest.approx((np.arange(1, 15) / 14).tolist())
    assert found[14:] == plain[14:]
