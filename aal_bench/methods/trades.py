"""TRADES (Zhang et al. 2019, arXiv 1901.08573)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.attacks.linf import gaussian_start
from aal_bench.methods.base import Batch, Method, Objective, Options, Plan, Recipe, fp32, stepwise


class TRADESOptions(Options):
    """Options of TRADES."""

    beta: float = Field(6.0, ge=0)
    """Weight of the robust term; 6 in the official code, and 0 is standard training."""
    start_std: float = Field(0.001, ge=0)
    """Standard deviation of the Gaussian start of the inner attack."""


class TRADES(Method):
    """min_W CE(f(x), y) + beta KL(p(x) || p(x')), x' maximising that KL, label-free.

    The clean probabilities are taken once per attack (the official code repeats the clean forward
    in each of the ten steps): 13 forwards, 10 backwards to x, 2 to the weights.
    """

    Options = TRADESOptions
    options: TRADESOptions
    update_defaults: ClassVar[dict[str, dict[str, Any]]] = {
        # Officially from the tenth of 200 epochs on.
        "awp": {"gamma": 0.005, "warmup": 9 / 200}
    }
    recipe = Recipe(
        train=stepwise(76, (74,), 2e-4),
        crafting={"step": "0.007", "steps": 10},
        source="train_trades_cifar10.py of yaodongyu/TRADES, which counts epochs from 1 and ends"
        " before its later drops. Its WideResNet-34-10 is chosen by --model, and takes no"
        " normalisation there.",
        eps_031=True,
    )

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        with torch.no_grad():
            clean = fp32(model(batch.x)).softmax(1)

        def divergence(x_adv: Tensor) -> Tensor:
            return functional.kl_div(fp32(model(x_adv)).log_softmax(1), clean, reduction="sum")

        return Plan(
            divergence,
            start=gaussian_start(batch.x, self.options.start_std),
            eps=self.threat.eps,
            alpha=self.threat.step,
            steps=self.threat.steps,
        )

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        clean = fp32(model(batch.x))
        adversarial = fp32(model(x_adv))
        robust = functional.kl_div(
            adversarial.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean"
        )
        return functional.cross_entropy(clean, batch.targets) + self.options.beta * robust
