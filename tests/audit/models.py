"""Networks with a known fault, one each, around a network that really classifies digits.

Each is also a builder for ``--model tests/audit/models.py:Saturated``; untrained there. And models
whose attacks have an answer on paper: a linear one, and one that sees only the mean of its pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.aal.attention import gate_of
from aal_bench.aal.kernels import kernel, upsample
from aal_bench.attacks.stages import Stage
from aal_bench.data import digits
from aal_bench.data.sources import Pixels

SIZE = 8


def convolutional(classes: int, size: int) -> nn.Sequential:
    """Two small convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * (size // 2) ** 2, classes),
    )


def some_digits(count: int, split: str = "test") -> tuple[Tensor, Tensor]:
    """The first `count` images (N,3,8,8) of a split of the embedded digits, and their labels."""
    pixels = getattr(digits.read(SIZE), split)
    assert isinstance(pixels, Pixels)
    x = torch.from_numpy(pixels.images[:count]).float() / 255
    return x, torch.from_numpy(pixels.labels[:count])


@cache
def _trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, (x, y) = convolutional(10, SIZE), some_digits(1437, "train")
        optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(8):
            for rows in torch.randperm(len(y)).split(64):
                optimiser.zero_grad()
                functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimiser.step()
        return model.eval().requires_grad_(True)


def trained() -> nn.Module:
    """A copy of `convolutional`, trained on the digits for a second, without attack."""
    return copy.deepcopy(_trained())


class Around(nn.Module):
    """A network around `convolutional`."""

    def __init__(self, classes: int = 10, size: int = SIZE, base: nn.Module | None = None) -> None:
        super().__init__()
        self.base = convolutional(classes, size) if base is None else base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


class Saturated(Around):
    """Logits times 1e4: cross-entropy's gradient is rounded to zero."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.base(x)


class Quantised(Around):
    """Pixels rounded to 16 levels: the gradient is zero, without any complaint."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base((15 * x).round() / 15)


class Detached(Around):
    """The same with the chain broken: autograd raises."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = (15 * x).round() / 15
        return self.base(x)


class StraightThrough(Around):
    """The same with the gradient of the identity: a gradient, but not the model's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x + ((15 * x).round() / 15 - x).detach())


class Stochastic(Around):
    """Noise on the pixels, also in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x + 0.2 * torch.randn_like(x))


class BatchStatistics(Around):
    """Logits standardised over the batch: an image's answer depends on its neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.base(x)
        return (logits - logits.mean(0)) / (logits.std(0, correction=0) + 1e-3)


class Softmax(Around):
    """Probabilities instead of logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x).softmax(1)


class Optimising(Around):
    """Three steps on the pixels towards a lower entropy before the answer."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            with torch.enable_grad():
                moved = x.detach().requires_grad_()
                logits = self.base(moved)
                entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum()
                (g,) = torch.autograd.grad(entropy, moved)
            x = x - 0.01 * g.sign()
        return self.base(x)


class LabelDependent(Around):
    """Uses the label where somebody gives one."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.base(x)
        return logits if y is None else logits + 100 * functional.one_hot(y, logits.shape[1])


class Kept(Around):
    """Uses labels that somebody left in an attribute."""

    def __init__(self, classes: int = 10, size: int = SIZE, base: nn.Module | None = None) -> None:
        super().__init__(classes, size, base)
        self.labels: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.base(x)
        if self.labels is None:
            return logits
        return logits + 100 * functional.one_hot(self.labels, logits.shape[1])


class Linear(nn.Module):
    """Two classes: z = (-m/2, m/2), m = w (x - 1/2). FGSM, PGD and the worst case are one."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        m = (x - 0.5).flatten(1) @ self.weight.flatten()
        return torch.stack([-m / 2, m / 2], 1)

    def margins(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """Smallest signed margin (N,) in the ball and the box, pixel by pixel, in float64."""
        sign = (2 * y - 1).double()[:, None, None, None]
        w, x = self.weight.detach().double(), x.double()
        worst = torch.where(sign * w > 0, (x - eps).clamp_min(0), (x + eps).clamp_max(1))
        return (sign * w * (worst - 0.5)).flatten(1).sum(1)


def linear_task(count: int = 100) -> tuple[Linear, Tensor, Tensor]:
    """A linear model, uniform images (N,3,4,4), labels of which one in twenty is wrong."""
    generator = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(3, 4, 4, generator=generator))
    x = torch.rand(count, 3, 4, 4, generator=generator)
    y = model(x).argmax(1)
    y[::20] = 1 - y[::20]
    return model, x, y


class Mean(nn.Module):
    """z = (p, -p) / 2, p = profile(d), d the mean pixel's distance from 1/2.

    Of a grey image with label 0 an attack with eps reaches every d in [-eps, eps], and goes where
    the profile falls.
    """

    def __init__(self, profile: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.profile = profile
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        m = self.scale * self.profile(x.mean((1, 2, 3)) - 0.5)
        return torch.stack([m, -m], 1) / 2


def grey(count: int = 100) -> tuple[Tensor, Tensor]:
    """Grey images (N,3,4,4) of label 0."""
    return torch.full((count, 3, 4, 4), 0.5), torch.zeros(count, dtype=torch.int64)


class LinearDigits(nn.Module):
    """z = W x + b: FGSM on the margin to each class is the worst case there is."""

    def __init__(self, classes: int = 10, size: int = SIZE) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((x - 0.5).flatten(1))


class MaskedFGSM(Stage):
    """An evaluation attack that is itself masked: one step of eps k(M) with the gate's own M."""

    package = "aal-bench"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        gate = gate_of(model)
        with gate.reading() as reading:
            x_adv = x.detach().requires_grad_()
            loss = functional.cross_entropy(model(x_adv), y, reduction="sum")
            (g,) = torch.autograd.grad(loss, x_adv)
        size = (x.shape[-2], x.shape[-1])
        share = upsample(kernel(reading.M.detach(), "m2"), size)
        return (x + self.eps * share * g.sign()).clamp(0, 1)
