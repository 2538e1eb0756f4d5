"""A small smooth network in float64 that counts its own passes; methods as the runner has them."""

import pytest
import torch
from torch import Tensor, nn

from aal_bench import registry
from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.base import Batch, Threat

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


class _Counted(torch.autograd.Function):
    """x * weight, and a note of which of the two each backward pass differentiates."""

    @staticmethod
    def forward(ctx, x, weight, counts):
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        counts["forward"] += 1
        return x * weight

    @staticmethod
    def backward(ctx, *grads):
        (grad,), (x, weight) = grads, ctx.saved_tensors
        to_x, to_weights, _ = ctx.needs_input_grad
        ctx.counts["to_input"] += to_x
        ctx.counts["to_weights"] += to_weights
        by_weight = (grad * x).sum((0, 2, 3), keepdim=True) if to_weights else None
        return grad * weight if to_x else None, by_weight, None


class Toy(nn.Module):
    """Three smooth, normalised layers for 8x8 images and 5 classes; says where gates go."""

    gate_sites = {"post_bn_relu": "body", "post_conv1": "norm"}  # noqa: RUF012
    gate_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"forward": 0, "to_input": 0, "to_weights": 0}
        self.weight = nn.Parameter(torch.ones(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.SiLU()
        self.body = nn.Sequential(
            nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(), nn.Linear(96, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = _Counted.apply(x, self.weight, self.counts)
        return self.body(self.act(self.norm(self.conv(seen))))


@pytest.fixture
def toy():
    """toy(seed) -> the network in training mode, its running statistics away from 0 and 1."""

    def build(seed: int = 0) -> Toy:
        torch.manual_seed(seed)
        net = Toy().double().train()
        with torch.no_grad():
            net(torch.rand(32, 3, 8, 8, dtype=torch.float64))
        net.counts.update(forward=0, to_input=0, to_weights=0)
        return net

    return build


@pytest.fixture
def batch() -> Batch:
    """Six 8x8 images that fill the box, and their labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=generator)
    return Batch(x=x, targets=torch.tensor([0, 3, 1, 4, 2, 0]), idx=torch.arange(6), lr=0.1)


@pytest.fixture
def make():
    """make("pgd", craft_bn="train") -> the registered method with those options."""

    def build(name: str, threat: Threat | None = None, **options):
        method = registry.load(registry.method_row(name).target)
        return method(method.Options(**options), threat or Threat(EPS, ALPHA, STEPS))

    return build


@pytest.fixture
def update():
    """update("awp", gamma=0.01) -> the registered update with those options."""

    def build(name: str, **options):
        kind = registry.load(registry.find("update", name).row.target)
        return kind(kind.Options(**options))

    return build


@pytest.fixture
def train():
    """train(net, method, update, batch, steps) -> losses; the step of design section 3, SGD."""

    def run(net, method, update, batch, steps: int = 1, seed: int = 7) -> list[float]:
        optimizer = torch.optim.SGD(
            method.param_groups(net), lr=0.1, momentum=0.9, weight_decay=5e-4
        )
        objective = cross_entropy(net)

        def step() -> None:
            optimizer.step()
            optimizer.zero_grad()

        losses = []
        torch.manual_seed(seed)
        for number in range(steps):
            method.before_step(batch)
            x_adv = method.attack(net, batch, objective)
            loss = update(
                net,
                lambda x_adv=x_adv: method.loss(net, batch, x_adv, objective),
                lambda value: value.backward(),
                step,
                number / steps,
            )
            method.after_step(batch, x_adv)
            losses.append(loss.item())
        return losses

    return run
