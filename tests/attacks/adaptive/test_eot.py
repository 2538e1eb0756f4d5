"""Networks that draw numbers: found, attacked on the mean, judged by the majority."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aal_bench.attacks.adaptive.eot import averaged, is_random, majority_errs
from aal_bench.attacks.adaptive.plain import auto_pgd, expected
from aal_bench.attacks.adaptive.search import Seen
from aal_bench.attacks.counting import Counted
from aal_bench.attacks.linf import input_gradient


class Noisy(nn.Module):
    """A linear network on an image with noise of its own."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.linear = scale, nn.Linear(192, 4)

    def forward(self, x):
        return self.linear((x + self.scale * torch.randn_like(x)).sin().flatten(1))


@pytest.fixture
def noisy():
    return Noisy(0.5).double().eval()


class TestIsRandom:
    def test_says_whether_two_calls_differ(self, noisy, images):
        assert is_random(noisy, images[0])
        assert not is_random(Noisy(0.0).double(), images[0])

    def test_takes_rounding_for_rounding(self, images):
        assert not is_random(Noisy(1e-9).double(), images[0])

    def test_finds_one_image_in_many(self, images):
        class Once(Noisy):
            def forward(self, x):
                drawn = torch.zeros_like(x)
                drawn[3] = torch.rand(())
                return self.linear((x + drawn).flatten(1))

        assert is_random(Once(0.0).double(), images[0])

    def test_a_dropout_that_stays_on_is_random_and_one_in_eval_mode_is_not(self, images):
        class Dropped(nn.Module):
            def __init__(self, always):
                super().__init__()
                self.always, self.linear = always, nn.Linear(192, 4).double()

            def forward(self, x):
                return self.linear(F.dropout(x.flatten(1), 0.5, self.always or self.training))

        assert is_random(Dropped(True).eval(), images[0])
        assert not is_random(Dropped(False).eval(), images[0])


def test_the_averaged_gradient_is_the_mean_of_the_draws_gradients(noisy, images):
    x, y = images

    def objective(z, rows):
        return Seen(F.cross_entropy(noisy(z), y[rows], reduction="sum"))

    rows = torch.arange(len(x))
    torch.manual_seed(4)
    found = input_gradient(lambda z: averaged(objective, 6)(z, rows).loss, x)
    torch.manual_seed(4)
    each = [input_gradient(lambda z: objective(z, rows).loss, x) for _ in range(6)]
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    assert not torch.allclose(each[0], each[1])
    assert averaged(objective, 6)(x, rows).logits is None  # no single draw is the verdict


def test_a_verdict_is_that_of_more_than_half_of_the_draws():
    class Scripted(nn.Module):
        """Errs on image i in i of every six calls."""

        calls = 0

        def forward(self, x):
            self.calls += 1
            wrong = torch.arange(len(x)) > (self.calls - 1) % 6
            return F.one_hot(wrong.long(), 2).double()

    errs = majority_errs(Scripted(), torch.zeros(7, 3, 1, 1), torch.zeros(7, dtype=torch.long), 6)
    assert errs.tolist() == [False] * 4 + [True] * 3


def test_t7_spends_so_many_draws_on_every_gradient(noisy, images, lab):
    x, _ = images
    model = Counted(nn.Sequential(noisy, nn.Softmax(1)).eval()).eval()
    y = noisy(x).argmax(1)
    budget = lab.ONCE._replace(steps=6, check=3, samples=5, apgd_steps=4)
    setting = lab.SETTING._replace(eps=1e-9)
    model.watch(x)
    lab.attacked(expected(setting, budget, "ce"), model, x, y)
    forwards, backwards = model.counts()
    stood = forwards == forwards.max()
    assert int(forwards.max()) == 6 * 5 + 2 * 5  # six steps, and two verdicts
    assert set(backwards[stood].tolist()) == {6 * 5}
    model.watch(x)
    lab.attacked(auto_pgd(setting, budget, "ce", samples=5), model, x, y)
    assert set(model.counts()[1].tolist()) == {(4 + 1) * 5}


def test_t7_fells_what_a_single_draws_gradient_does_not(images, lab):
    """A gradient whose sign is a coin's, a little biased: one draw says nothing, twenty do."""

    class Flipped(nn.Module):
        def forward(self, x):
            coin = 1.0 if torch.rand(()) < 0.7 else -1.0
            lead = 0.6 * lab.EPS - (x - x.detach()).mean((1, 2, 3)) * coin
            lead = lead - (x.detach() - images[0][: len(x)]).mean((1, 2, 3))
            return torch.stack([lead + 1e-9 * coin, torch.zeros_like(lead)], 1)

    model, x = Flipped().eval(), images[0]
    y = torch.zeros(len(x), dtype=torch.long)
    setting = lab.SETTING._replace(classes=2)
    few = lab.ONCE._replace(steps=8, check=8, samples=41)
    found = lab.attacked(expected(setting, few, "margin"), model, x, y)
    assert majority_errs(model, found, y, 9).all()
