"""Other networks in the audited one's place: what the audit's own attacks are tried on.

Attacks that fail on a network without a defence say nothing of one with a defence (Carlini et al.
2019, arXiv 1902.06705).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.audit.bank import Bank
from aal_bench.training.passes import counting_passes

SIDE = 32
"""Larger images are averaged down to so many pixels before the control's first layer."""
BATCHES = 500
"""Steps of its training, of 64 images each."""
BATCH = 64
RATE = 2e-3
"""Adam's, falling to 0 along a cosine."""


class InPlace(nn.Module):
    """A network that stands for another one; see `beside`."""

    def __init__(self, model: nn.Module, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.model, x)


def beside(bank: Bank, stand_in: Callable[[nn.Module], nn.Module]) -> Bank:
    """A bank about other networks on the same images: ``stand_in(model)`` of every part.

    What it spends is its own: charge it to `bank` when all is made.
    """
    parts = tuple(part._replace(model=stand_in(part.model).eval()) for part in bank.subject.parts)
    subject = replace(bank.subject, parts=parts, network=parts[0].model)
    return Bank(subject, bank.budget, bank.thresholds)


def undefended(bank: Bank) -> nn.Module | None:
    """The subject's undefended network, or else a `control_network`."""
    given = bank.subject.undefended
    return control_network(bank) if given is None else given.eval()


def control_network(bank: Bank) -> nn.Module | None:
    """A small network trained without attack on some of the task's training images.

    min_W CE(f(x), y), 500 steps of 64 images, each seen as it is: memorised images make for a
    network with no defence at all. None where the subject has no training images.
    """
    if bank.subject.training_images is None:
        return None
    return bank.once("control network", lambda: _trained(bank))


def _trained(bank: Bank) -> nn.Module:
    subject = bank.subject
    assert subject.training_images is not None
    x, y = subject.training_images(bank.budget.control_images)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.enable_grad():
        torch.manual_seed(subject.seed)
        network = small_network(subject.classes, min(x.shape[2:])).to(x.device)
        with counting_passes(network) as counted:
            _fit(network, x, y)
    bank.charge((counted["forward"], counted["backward"]))
    return network.eval().requires_grad_(False)


def small_network(classes: int, size: int) -> nn.Sequential:
    """Four convolutions with batch norm on at most 32 x 32 pixels; x (B,3,H,W) -> logits (B,K)."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(SIDE)] if size > SIDE else []
    side, channels = min(size, SIDE), 3
    for width in (32, 32, 64, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        if side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(classes))


def _fit(network: nn.Sequential, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        network.eval()(x[:1])  # the last layer finds its width
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, BATCHES)
    for _ in range(BATCHES):
        rows = torch.randint(len(x), (BATCH,), device=x.device)
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimiser.step()
        falling.step()
