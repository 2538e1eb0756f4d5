"""The pictures of a classification run: curves, the selective attack, accuracy against eps."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from aal_bench import figures
from aal_bench.adapters.pictures import identity, is_selective, metrics, selective
from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start
from aal_bench.data.splits import Images
from aal_bench.evidence import wilson
from aal_bench.methods.base import Method

if TYPE_CHECKING:
    from aal_bench.adapters.classification import Classification

SHOWN = 5
"""Images in the picture of the selective attack."""
MEASURED = 200
"""Images on the curve of accuracy against eps: a picture, not a result."""
MULTIPLES = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4)
"""Budgets of that curve in units of the task's eps."""


def draw(adapter: Classification, method: Method, model: nn.Module, folder: Path) -> list[str]:
    """Draw into ``figures/``; returns the paths relative to `folder`."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    told = identity(adapter.run)
    drawn: list[str] = []
    rows = metrics(folder / "metrics.jsonl")
    if rows:
        figures.training_curves(rows, target / "training.png", told)
        drawn.append("figures/training.png")
    if is_selective(method, model):
        # A copy: a method that crafts in train mode moves the running statistics.
        shown, path = next(_batches(adapter, SHOWN)), target / "selective_attack.png"
        selective(adapter, method, deepcopy(model), shown, path, told)
        drawn.append("figures/selective_attack.png")
    if adapter.task.threat.norm == "Linf":
        _against_eps(adapter, model, target / "accuracy_eps.png", told)
        drawn.append("figures/accuracy_eps.png")
    return drawn


def _attacks(
    adapter: Classification, model: nn.Module, x: Tensor, y: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """FGSM and PGD with step eps / 4, so that the curve of PGD bends with eps alone."""
    objective = adapter.objective(model)

    def inner(x_adv: Tensor) -> Tensor:
        return objective(x_adv, y, reduction="sum")

    torch.manual_seed(0)
    with attacking(model, bn="eval"):
        one = linf_pgd(inner, x, x, eps, eps, 1)
        many = linf_pgd(inner, x, uniform_start(x, eps), eps, eps / 4, adapter.task.attack.steps)
    return one, many


def _batches(adapter: Classification, count: int) -> Iterator[Images]:
    order = torch.arange(min(count, len(adapter.test)))
    size = min(len(order), adapter.task.evaluation.batch_size)
    device = torch.device(adapter.run.device)
    yield from adapter.test.batches(order, size, augment="none", pad=0, seed=0, device=device)


def _against_eps(adapter: Classification, model: nn.Module, path: Path, told: str) -> None:
    """A sweep of its own, beside the protocol: its numbers are not in the evidence."""
    radius, steps = adapter.task.threat.radius, adapter.task.attack.steps
    budgets = [multiple * radius for multiple in MULTIPLES if multiple * radius <= 1]
    names = ("FGSM", f"PGD-{steps}")
    correct = {name: [0] * len(budgets) for name in names}
    n = 0
    for images in _batches(adapter, MEASURED):
        x, y = images.x, images.y
        n += len(y)
        for i, eps in enumerate(budgets):
            for name, x_adv in zip(names, _attacks(adapter, model, x, y, eps), strict=True):
                with torch.no_grad():
                    correct[name][i] += int((model(x_adv).argmax(1) == y).sum())
    curves = {}
    for name, counts in correct.items():
        low, high = zip(*(wilson(k, n) for k in counts), strict=True)
        curves[name] = figures.Curve([k / n for k in counts], low, high)
    figures.accuracy_against_eps(
        budgets,
        curves,
        path,
        radius,
        chance=1 / adapter.task.data.classes,
        title=f"{told}\nAccuracy against eps, the first {n} test images",
    )
