"""Check 30: tasks with a known answer, on networks whose gradient is whole, and on one without."""

import pytest
import torch
from torch import nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.readout import (
    BinaryTask,
    Features,
    _certain,
    _readout,
    binary_readout,
)
from aal_bench.audit.table import QUICK

SMALL = QUICK._replace(steps=20, restarts=1, readouts=8)


class Network(nn.Module):
    """A random convolution, 64 features, three classes."""

    def __init__(self, levels: int | None = None) -> None:
        super().__init__()
        self.levels = levels
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.last = nn.Linear(16 * 16, 3)

    def forward(self, x):
        if self.levels is not None:
            x = (x * self.levels).round() / self.levels
        return self.last(self.conv(x - 0.5).relu().flatten(1))


@pytest.fixture
def made(subject):
    """made(network) -> a bank of twelve random images, all classified correctly."""

    def make(network: nn.Module, **fields) -> Bank:
        x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        y = network.eval()(x).argmax(1)
        return Bank(subject(network, x, y, classes=3, **fields), SMALL)

    return make


def network(levels: int | None = None) -> Network:
    torch.manual_seed(0)
    return Network(levels)


def test_the_features_are_what_the_last_linear_layer_multiplies(made):
    net = network()
    x = made(net).x
    seen = Features(net)(x)
    assert torch.allclose(seen @ net.last.weight.T + net.last.bias, net(x), atol=1e-6)


def test_every_task_has_an_adversarial_in_the_ball_and_its_image_is_none(made):
    net = network()
    bank = made(net)
    part = bank.subject.parts[0]
    torch.manual_seed(1)
    tasks = [_readout(bank, part, image) for image in part.x[:6]]
    tasks = _certain(part, [task for task in tasks if task is not None])
    assert len(tasks) == 6
    judge = BinaryTask(Features(net), tasks)
    images = torch.stack([task.x for task in tasks])
    corners = torch.stack([task.corner for task in tasks])
    assert (judge(images).argmax(1) == 0).all()
    assert (judge(corners).argmax(1) == 1).all()
    assert bank.subject.threat.violation(corners, images).norm < 1e-6
    assert corners.min() >= 0
    assert corners.max() <= 1


def test_pgd_solves_the_tasks_of_a_network_with_a_whole_gradient_and_chance_does_not(made):
    bank = made(network())
    outcome = binary_readout(bank)
    assert outcome.verdict == "pass"
    assert outcome.value == 1.0
    assert outcome.measured["random"] <= 0.25
    assert bank.spent.backward > 0


def test_behind_a_quantiser_pgd_finds_nothing_although_there_is_something(made):
    outcome = binary_readout(made(network(levels=60)))
    assert outcome.measured["tasks"] >= 6
    assert outcome.verdict == "fail"
    assert outcome.value < 0.5


def test_a_network_without_a_linear_layer_has_no_features_to_read(made):
    class Means(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    assert binary_readout(made(Means())).verdict == "not applicable"
