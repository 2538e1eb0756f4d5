import math

import pytest
import torch

from aal_bench.training.sums import Sums

CPU = torch.device("cpu")


def test_means_are_means_and_small_losses_survive_a_long_epoch():
    sums = Sums(CPU)
    losses = [1e4 if step == 0 else 1e-4 for step in range(20_000)]
    for step, loss in enumerate(losses):
        sums.add(step, torch.tensor(loss), {"mean_k": torch.tensor(0.25 + step % 2)})
    # float32 would lose every 1e-4 beside 1e4; what is left is the rounding of the summands
    assert sums.means()["loss"] == pytest.approx(math.fsum(losses) / 20_000, rel=1e-9)
    assert sums.means()["mean_k"] == 0.75
    assert sums.bad_step() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_remembered(bad):
    sums = Sums(CPU)
    for step, loss in enumerate([1.0, 2.0, bad, 1.0, bad], start=40):
        sums.add(step, torch.tensor(loss), {})
    assert sums.bad_step() == 42


def test_half_an_epoch_saved_and_continued_is_the_whole_epoch():
    def add(sums, steps):
        for step in steps:
            sums.add(step, torch.tensor(1 / (step + 3)), {"a": torch.tensor(float(step))})
        sums.seconds += 1.5
        return sums

    whole = add(Sums(CPU), range(7))
    resumed = Sums(CPU)
    resumed.load_state_dict(add(Sums(CPU), range(4)).state_dict())
    add(resumed, range(4, 7))
    assert resumed.means() == whole.means()
    assert resumed.seconds == 3.0
    assert resumed.means()["a"] == 3.0
