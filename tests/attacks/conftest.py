"""A network and images of which it is known, by construction, which attack fells which image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aal_bench.adapters.attack_stage import Victim, run_stage
from aal_bench.adapters.classification import make_stage
from aal_bench.config import Task
from aal_bench.data.splits import InMemory
from aal_bench.evidence import Evidence

EPS = 0.05
SIZE = 8
STANDS, FALLS_TO_CE, FALLS_TO_T, FALLS_TO_FAB, FALLS_TO_SQUARE = range(5)


class Gauntlet(nn.Module):
    """Its logits read kind and label from two pixels, and the brightness of all others.

    t = mean(x - 1/2) / eps is within [-1, 1] in the ball. The margin of the true class over the
    next one is a function of t that belongs to the kind:

    - stands: never negative;
    - falls to APGD-CE: decreases linearly;
    - falls to APGD-T: likewise, but so steeply that cross-entropy underflows to a gradient of 0;
    - falls to FAB-T: negative only in a thin band near x, where the tangent at x crosses zero; a
      step of 2 eps jumps over it, and beyond it the gradient leads away;
    - falls to Square: negative only in a wide band that is jumped over likewise, and to which no
      gradient points.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        seen = torch.ones(3, SIZE, SIZE)
        seen[0, 0, :2] = 0
        self.register_buffer("seen", seen)
        self.scale = nn.Parameter(torch.ones(()))

    def t(self, x: Tensor) -> Tensor:
        return ((x - 0.5) * self.seen).mean((1, 2, 3)) / EPS

    def margin(self, kind: Tensor, t: Tensor) -> Tensor:
        thin = torch.where(t < 0.3, 1 - 4 * t, torch.where(t < 0.4, -2.3 + 7 * t, 0.7 - 0.4 * t))
        wide = 0.5 - 0.05 * t - 0.6 * ((t > 0.4) & (t < 0.9))
        by_kind = (2 + 0.1 * t, 0.5 - t, 250 - 500 * t, thin, wide)
        return torch.stack(by_kind).gather(0, kind[None])[0]

    def forward(self, x: Tensor) -> Tensor:
        kind = (x[:, 0, 0, 0].detach() * 4).round().long().clamp(0, 4)
        label = (x[:, 0, 0, 1].detach() * 9).round().long().clamp(0, self.classes - 1)
        rest = -1 - 0.001 * torch.arange(self.classes, device=x.device)
        logits = rest.expand(len(x), -1)
        second = torch.zeros(len(x), 1)
        logits = logits.scatter(1, ((label + 1) % self.classes)[:, None], second)
        margin = self.margin(kind, self.t(x))[:, None]
        return logits.scatter(1, label[:, None], margin) * self.scale


class Images(NamedTuple):
    pixels: Tensor
    """uint8 (N, 3, 8, 8)."""
    kinds: Tensor
    labels: Tensor

    @property
    def x(self) -> Tensor:
        return self.pixels / 255

    def split(self, labels: Tensor | None = None) -> InMemory:
        return InMemory(self.pixels, self.labels if labels is None else labels)


@pytest.fixture(scope="session")
def gauntlet():
    """gauntlet(classes): the network in eval mode, without weight gradients."""
    return lambda classes=10: Gauntlet(classes).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def images():
    """images(kinds, labels): noise about grey, of mean brightness 1/2."""

    def draw(kinds, labels) -> Images:
        kinds, labels = torch.as_tensor(kinds), torch.as_tensor(labels)
        generator = torch.Generator().manual_seed(1)
        x = 0.5 + 0.2 * (torch.rand(len(kinds), 3, SIZE, SIZE, generator=generator) - 0.5)
        x -= ((x - 0.5) * Gauntlet().seen).mean((1, 2, 3), keepdim=True)
        x[:, 0, 0, 0], x[:, 0, 0, 1] = kinds / 4, labels / 9
        return Images((x * 255).round().to(torch.uint8), kinds, labels)

    return draw


@pytest.fixture(scope="session")
def task():
    """task(classes): Linf 0.05, PGD step 0.0125, batches of 12, seed 0."""

    def make(classes: int = 10, eps: str = str(EPS), batch_size: int = 12, **threat) -> Task:
        return Task.model_validate(
            {
                "name": "gauntlet",
                "title": "gauntlet",
                "data": {"name": "gauntlet", "classes": classes, "size": SIZE},
                "threat": {"eps": eps, **threat},
                "attack": {"step": "0.0125"},
                "train": {"epochs": 1, "lr": 0.1},
                "model": "cnn4",
                "evaluation": {"batch_size": batch_size, "seed": 0},
            }
        )

    return make


@pytest.fixture(scope="session")
def evaluate():
    """evaluate(task, model, split, stages): evidence of the stages, run as the runner runs them."""

    def run(task, model, split, stages, fooled=None, saved=None, evidence=None) -> Evidence:
        if evidence is None:
            evidence = Evidence(np.arange(len(split)), split.labels.numpy())
        victim = Victim(model, split, torch.device("cpu"), task.evaluation.batch_size)
        for name in stages:
            run_stage(
                make_stage(name, task),
                victim,
                evidence,
                fooled or (lambda *_: None),
                saved or (lambda *_: None),
            )
        return evidence

    return run
