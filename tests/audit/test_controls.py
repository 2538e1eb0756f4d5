"""Checks 28 and 29: the audit's attack on networks that it must break."""

import pytest
import torch
from torch import nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.controls import known_broken_control, undefended_control
from aal_bench.audit.control import control_network
from aal_bench.audit.table import QUICK
from aal_bench.data import digits

SMALL = QUICK._replace(steps=20, restarts=1, control_images=600)


class Linear(nn.Module):
    """Two classes, z_1 - z_0 = <w, x> + b; robust where its size is above eps |w|_1."""

    def __init__(self, seed: int = 0, side: int = 4) -> None:
        super().__init__()
        w = torch.randn(3 * side * side, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(torch.stack([-w, w]) / 2)
        self.bias = nn.Parameter(torch.tensor([0.5, -0.5]) * w.sum() / 2)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias

    def distance(self, x):
        z = self(x).detach()
        return (z[:, 1] - z[:, 0]).abs() / (self.weight[1] - self.weight[0]).detach().abs().sum()


def grey(n, seed=0, side=4):
    """Images so far from black and white that the box binds no attack."""
    return 0.5 + 0.2 * (
        torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) - 0.5
    )


@pytest.fixture(scope="module")
def handwritten():
    """Training and test images of the digits at 8 pixels, with labels."""
    found = digits.read(8)
    train = torch.from_numpy(found.train.images).float() / 255, torch.from_numpy(found.train.labels)
    test = torch.from_numpy(found.test.images).float() / 255, torch.from_numpy(found.test.labels)
    return train, (test[0][:60], test[1][:60])


def bank_of(subject, handwritten, model=None, **fields):
    (x, y), test = handwritten
    fields = {"eps": "64/255", "training_images": lambda n: (x[:n], y[:n]), **fields}
    return Bank(
        subject(model or nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), *test, **fields), SMALL
    )


def test_the_attack_leaves_nothing_to_a_network_trained_without_attack(subject, handwritten):
    bank = bank_of(subject, handwritten)
    outcome = undefended_control(bank)
    assert outcome.measured["clean"] > 0.85
    assert outcome.measured["left"] == 0
    assert outcome.verdict == "pass"


def test_the_control_is_the_same_network_every_time_and_its_training_is_paid_for(
    subject, handwritten
):
    nets, spent = [], []
    for seed in (1, 2):
        bank = bank_of(subject, handwritten)
        torch.manual_seed(seed)
        nets.append(control_network(bank))
        spent.append(bank.spent)
    assert nets[0] is not None
    assert nets[1] is not None
    pairs = zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert spent[0] == spent[1]
    assert spent[0].backward == 500 * 64


def test_what_is_left_to_a_linear_network_is_what_its_distances_say(subject):
    model, x = Linear(), grey(60)
    y = model(x).argmax(1)
    robust = int((model.distance(x) > 2 / 255).sum())
    made = subject(model, x, y, eps="2/255", undefended=model)
    outcome = undefended_control(Bank(made, SMALL))
    assert outcome.measured["left"] == pytest.approx(robust / 60)
    assert robust > 10
    # It falls at 64/255: the attack works, and the classes are far apart beside 2/255.
    assert not bool((model.distance(x) > 64 / 255).any())
    assert outcome.measured["left at the large eps"] == 0
    assert outcome.verdict == "not decided"
    assert "far apart" in outcome.sentence


def test_an_attack_that_does_not_move_is_found_out(subject):
    model, x = Linear(), grey(60)
    made = subject(model, x, model(x).argmax(1), eps="64/255", undefended=model)
    assert undefended_control(Bank(made, SMALL)).verdict == "pass"
    made = subject(model, x, model(x).argmax(1), eps="64/255", undefended=model, step=0.0)
    assert undefended_control(Bank(made, SMALL)).verdict == "fail"


def test_a_control_that_guesses_shows_nothing(subject, handwritten):
    constant = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    nn.init.zeros_(constant[1].weight)
    outcome = undefended_control(bank_of(subject, handwritten, undefended=constant))
    assert outcome.verdict == "not decided"


def test_without_a_network_and_without_training_images_there_is_no_control(subject, handwritten):
    outcome = undefended_control(bank_of(subject, handwritten, training_images=None))
    assert outcome.verdict == "not applicable"


def test_larger_logits_hide_nothing_from_the_margin_although_they_do_from_cross_entropy(subject):
    model, x = Linear(), grey(60)
    y = model(x).argmax(1)
    standing = float((model.distance(x) > 4 / 255).double().mean())
    outcome = known_broken_control(Bank(subject(model, x, y, eps="4/255"), SMALL))
    assert outcome.verdict == "pass"
    assert outcome.measured["all"] == outcome.measured["own"] == pytest.approx(standing, abs=1e-6)
    assert outcome.measured["cross-entropy"] > standing + 0.2


class Guarded(Linear):
    """Drops every gradient that is large: what saturation makes of a margin's."""

    def forward(self, x):
        if x.requires_grad:
            x = x * 1.0
            x.register_hook(lambda g: torch.where(g.abs().amax() > 1e3, torch.zeros_like(g), g))
        return super().forward(x)


def test_a_network_whose_saturated_copy_stands_is_found_out(subject):
    model, x = Guarded(), grey(60)
    y = model(x).argmax(1)
    outcome = known_broken_control(Bank(subject(model, x, y, eps="4/255"), SMALL))
    assert outcome.measured["own"] == pytest.approx(
        float((model.distance(x) > 4 / 255).double().mean()), abs=1e-6
    )
    assert outcome.verdict == "fail"
