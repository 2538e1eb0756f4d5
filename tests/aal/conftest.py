"""A small smooth gated network in float64, and the clean pass that every method makes."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.aal.options import Gate, Selective
from aal_bench.aal.selective import associative_mask


@pytest.fixture
def gated():
    """gated(stride=2): mask at half the image's resolution. Evaluation mode, a varied mask."""

    def build(stride: int = 1, **options) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 4, 3, stride, 1),
                act=nn.SiLU(),
                body=nn.Conv2d(4, 6, 3, padding=1),
                out=nn.SiLU(),
                pool=nn.AdaptiveAvgPool2d(2),
                flat=nn.Flatten(),
                head=nn.Linear(24, 5),
            )
        ).double()
        insert_gate(net, "body", Gate(**{"bn_weight_init": 1, **options}), channels=4)
        with torch.no_grad():
            gate_of(net).conv.weight.mul_(5)
            net.head.weight.mul_(10)
        return net.eval()

    return build


@pytest.fixture
def batch():
    """Three 8x8 images well inside the box, and their labels."""
    torch.manual_seed(1)
    return 0.3 + 0.4 * torch.rand(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 1])


@pytest.fixture
def clean_pass():
    def run(net, x, y, options=None, xi1=0.1, step=8 / 255, generator=None):
        x = x.clone().requires_grad_()
        with gate_of(net).reading() as reading:
            loss = F.cross_entropy(net(x), y, reduction="sum")
        options = options or Selective()
        return associative_mask(loss, x, reading.M, options, xi1, step, generator)

    return run


@pytest.fixture
def passes():
    """passes(net) -> {"forward", "backward"}, counted by hooks from then on."""

    def count(net: nn.Module) -> dict[str, int]:
        seen = {"forward": 0, "backward": 0}

        def backward(_grad: torch.Tensor) -> None:
            seen["backward"] += 1

        def forward(_module, _inputs, output: torch.Tensor) -> None:
            seen["forward"] += 1
            if output.requires_grad:
                output.register_hook(backward)

        net.register_forward_hook(forward)
        return seen

    return count
