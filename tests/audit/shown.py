"""A small audit as its readers get it: a linear network on made images, really examined."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.examine import examine
from aal_bench.audit.record import Audit, WorstCase
from aal_bench.audit.subject import Part, Subject
from aal_bench.audit.table import BY_NUMBER, QUICK, Budget
from aal_bench.schema import Environment
from aal_bench.threat import Threat

EPS = 8 / 255
SMALL = QUICK._replace(steps=30, sweep_steps=20, large_steps=20, grid=5, random_points=10)
ENVIRONMENT = Environment(
    python="3.11.9",
    torch="2.15.0",
    packages={"torch": "2.15.0"},
    aal_bench={"version": "0.1.0", "commit": "c0ffee", "dirty": False},  # pyright: ignore[reportArgumentType]
)
WORST = WorstCase(
    clean=0.95,
    usual=0.5,
    robust=0.25,
    attacks={"T1-full": 0.55, "U1-head-1": 0.3},
    diagnostic={"T5-masked-fgsm": 0.9},
)


class Bright(nn.Module):
    """Logits (B,4): `factor` times the mean brightness of each quarter of the image's rows."""

    def __init__(self, factor: float = 20.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.mean((1, 3)).unflatten(1, (4, -1)).mean(2)


def images(n: int = 24) -> tuple[Tensor, Tensor]:
    """x (n,3,8,8) with one quarter brighter by up to 0.2, and which one it is."""
    y = torch.arange(n) % 4
    x = 0.4 + 0.01 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for row, label in enumerate(y.tolist()):
        x[row, :, 2 * label : 2 * label + 2] += 0.02 + 0.18 * row / n
    return x, y


def subject_of(model: nn.Module, **fields: Any) -> Subject:
    """The audit's subject: `model` on `images` under 8/255."""
    x, y = images()
    rows = np.arange(100, 100 + len(y))
    base: dict[str, Any] = {"threat": Threat(eps="8/255"), "step": EPS / 4, "classes": 4}  # pyright: ignore[reportArgumentType]
    return Subject(parts=(Part(model.eval(), x, y, rows),), network=model, **base | fields)


def audited(
    model: nn.Module,
    checks: Iterable[int] = (1, 2, 3, 11, 20),
    budget: Budget = SMALL,
    **fields: Any,
) -> tuple[Audit, Bank]:
    """The audit of `model` by `checks`, and the bank of what was made."""
    examined, bank = examine(subject_of(model), budget, checks=[BY_NUMBER[n] for n in checks])
    told: dict[str, Any] = {
        "subject": {
            "task": "bright",
            "threat": "Linf 8/255",
            "model": "linear",
            "method": "standard",
            "checkpoint": "c0ffee" + 58 * "0",
            "seed": 0,
        },
        "created": "2026-01-01T00:00:00+00:00",
        "command": ["aal-bench", "audit", "model.pt", "--quick"],
        "environment": ENVIRONMENT,
    }
    return Audit(**examined.model_dump(), **told | fields), bank
