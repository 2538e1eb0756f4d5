"""PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import nn

from aal_bench.attacks.linf import uniform_start
from aal_bench.methods.base import Batch, Method, Objective, Plan, Recipe


class PGD(Method):
    """min_W CE(f(x'), y) with x' from `steps` sign steps started at U(-eps, eps).

    Cost with 10 steps: 11 forwards, 10 backwards to x, 1 to the weights.
    """

    recipe = Recipe(
        train={
            "epochs": 200,
            "batch_size": 128,
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "step",
            "milestones": (0.5, 0.75),
            "decay": 0.1,
        },
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
