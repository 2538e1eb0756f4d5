"""Small networks that declare a gate or heads, of which it is known what each attack must find."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aal_bench.aal.attention import insert_gate
from aal_bench.again.class_gate import ClassGate
from aal_bench.again.heads import insert_class_gates
from aal_bench.attacks.adaptive.budget import QUICK, Setting
from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start

CLASSES, SIDE = 4, 8
EPS = 0.015
SETTING = Setting(EPS, EPS / 5, CLASSES)
ONCE = QUICK._replace(steps=20, check=7, apgd_steps=20, targets=CLASSES - 1)
"""One start, and no number of steps that divides another."""


@pytest.fixture
def images():
    """Twelve images far from the box's walls, and their labels; float64."""
    torch.manual_seed(3)
    x = torch.rand(12, 3, SIDE, SIDE, dtype=torch.float64) * 0.4 + 0.3
    return x, torch.arange(12) % CLASSES


@pytest.fixture
def gated():
    """Convolution, spatial gate, linear classifier: f -> V (M * f), whose gate follows x."""
    torch.manual_seed(1)
    layers = OrderedDict(
        stem=nn.Conv2d(3, 5, 3, padding=1),
        head=nn.Sequential(nn.Flatten(), nn.Linear(5 * SIDE * SIDE, CLASSES)),
    )
    model = insert_gate(nn.Sequential(layers).double(), "head")
    gate = model.get_submodule("head.0")
    x = torch.rand(64, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        f = model.stem(x)  # pyright: ignore
        seen = gate.conv(torch.stack([f.max(1).values, f.mean(1)], 1))
        gate.bn.weight.fill_(2 / float(seen.std()))
        gate.bn.bias.fill_(-2 * float(seen.mean() / seen.std()))
    return model.eval()


class Read(nn.Module):
    """Features (B,2K,1,1): the mean of each of K bands of the image, then K ones."""

    def forward(self, x):
        bands = x.mean((1, 3)).view(len(x), CLASSES, -1).mean(2)
        return torch.cat([bands, torch.ones_like(bands)], 1)[:, :, None, None]


@pytest.fixture
def hiding():
    """A class-gated network whose final logits have no gradient at all.

    a_k = band_k + 1, and the gate W[argmax a] opens the k-th of the ones: final = onehot(argmax a).
    In the ball each band moves by eps and no more, so that an image stands if and only if its own
    band leads by more than 2 eps: in closed form what no attack on the final logits can find.
    """
    model = nn.Sequential(OrderedDict(read=Read(), head=nn.Flatten()))
    gate = ClassGate(CLASSES, 2 * CLASSES)
    headed = insert_class_gates(model.double(), {"read": gate.double()})
    eye = torch.eye(CLASSES, dtype=torch.float64)
    with torch.no_grad():
        gate.fc.weight.copy_(torch.cat([eye, eye], 1))
        gate.fc.bias.zero_()

    class Ones(nn.Module):
        def forward(self, features):
            return 5 * features[:, CLASSES:]

    headed.model.head = nn.Sequential(nn.Flatten(), Ones())
    return headed.eval()


@pytest.fixture
def bands():
    """Sixteen images whose own band leads by a known amount, from 0.1 eps to 3.1 eps."""
    lead = EPS * (0.1 + 0.2 * torch.arange(16, dtype=torch.float64))
    y = torch.arange(16) % CLASSES
    x = torch.full((16, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    width = SIDE // CLASSES
    for image, (label, more) in enumerate(zip(y.tolist(), lead.tolist(), strict=True)):
        x[image, :, label * width : (label + 1) * width] += more
    return x, y, lead > 2 * EPS


@pytest.fixture
def headed():
    """A class-gated network with gradients everywhere: conv, gate, linear classifier; float64."""
    torch.manual_seed(5)
    layers = OrderedDict(
        stem=nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh()),
        head=nn.Sequential(nn.Flatten(), nn.Linear(6 * SIDE * SIDE, CLASSES)),
    )
    gate = ClassGate(CLASSES, 6)
    model = insert_class_gates(nn.Sequential(layers).double(), {"stem": gate.double()}).eval()
    x = torch.rand(64, 3, SIDE, SIDE, dtype=torch.float64) * 0.4 + 0.3
    with torch.no_grad():
        gate.fc.bias.sub_(model.auxiliary_logits(x)[0].mean(0))  # every class is chosen at times
    return model


class Own(nn.Module):
    """Somebody's own network with two heads, which knows nothing of this package."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.first, self.second, self.last = (nn.Linear(4, CLASSES) for _ in range(3))

    def pooled(self, x):
        return self.stem(x).mean((2, 3))

    def forward(self, x):
        return self.logits(x)

    def logits(self, x):
        return self.last(self.pooled(x).sin())

    def auxiliary_logits(self, x):
        return [self.first(self.pooled(x)), self.second(self.pooled(x))]


class OwnGate(nn.Module):
    """Somebody's own gate: M = sigmoid(sum_c f)."""

    def __init__(self):
        super().__init__()
        self.readings, self.value = [], None

    def forward(self, f):
        mask = f.sum(1, keepdim=True).sigmoid() if self.value is None else f[:, :1] * 0 + self.value
        for reading in self.readings:
            reading.M = mask
        return f * mask

    @contextmanager
    def reading(self):
        class Reading:
            M = None

        self.readings.append(Reading())
        yield self.readings[-1]
        self.readings.pop()

    @contextmanager
    def pinned(self, value):
        self.value = value
        yield
        self.value = None


@pytest.fixture
def lab():
    """The numbers of these networks, and the plain ways to do what the attacks do."""
    return SimpleNamespace(
        CLASSES=CLASSES,
        EPS=EPS,
        SETTING=SETTING,
        ONCE=ONCE,
        Own=Own,
        OwnGate=OwnGate,
        climbed=climbed,
        attacked=attacked,
    )


def climbed(loss, x, setting=SETTING, budget=ONCE, seed=0, eps=None):
    """PGD in one piece on `loss` (x' -> scalar), from the start that the generator gives."""
    torch.manual_seed(seed)
    radius = float(setting.eps) if eps is None else eps
    start = uniform_start(x, radius)
    return linf_pgd(loss, x, start, radius, float(setting.alpha), budget.steps)


def attacked(run, model, x, y, seed=0):
    """An attack's x', drawn from the same numbers."""
    torch.manual_seed(seed)
    with attacking(model):
        return run(model, x, y)
