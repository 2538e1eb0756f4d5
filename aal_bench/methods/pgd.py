"""PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import nn

from aal_bench.attacks.linf import uniform_start
from aal_bench.methods.base import Batch, Method, Objective, Plan, Recipe, stepwise


class PGD(Method):
    """min_W CE(f(x'), y) with x' from `steps` sign steps started at U(-eps, eps).

    Cost with 10 steps: 11 forwards, 10 backwards to x, 1 to the weights.
    """

    recipe = Recipe(
        train=stepwise(200, (100, 150), 5e-4),
        options={"craft_bn": "train"},
        crafting={"step": "2/255", "steps": 10},
        source="train_cifar.py of locuslab/robust_overfitting (Rice et al. 2020), for a"
        " PreActResNet-18. Its reflecting crops have no counterpart here; the epoch that it stops"
        " at is train.select=best, on held-out training images.",
    )

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        return Plan(
            self.cross_entropy_plan_objective(batch, objective),
            start=uniform_start(batch.x, self.threat.eps),
            eps=self.threat.eps,
            alpha=self.threat.step,
            steps=self.threat.steps,
        )
