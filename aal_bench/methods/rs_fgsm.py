"""FGSM with a random start (Wong, Rice and Kolter 2020, arXiv 2001.03994)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from aal_bench.attacks.linf import uniform_start
from aal_bench.methods.base import Batch, Method, Objective, Options, Plan, Recipe


class RSFGSMOptions(Options):
    """Options of RS-FGSM."""

    step_over_eps: float = Field(1.25, gt=0)
    """Step size as a multiple of eps: 10/255 at eps 8/255 in the official code."""


class RSFGSM(Method):
    """min_W CE(f(x'), y), one step of 1.25 eps from U(-eps, eps), projected to eps and the box.

    The official code crafts in train mode; here eval mode is the default (`craft_bn`).
    """

    Options = RSFGSMOptions
    options: RSFGSMOptions
    recipe = Recipe(
        train={
            "epochs": 15,
            "batch_size": 128,
            "lr": 0.2,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "onecycle",
        },
        options={"craft_bn": "train"},
        source="train_fgsm.py of locuslab/fast_adversarial, CIFAR10, for a PreActResNet-18. Its"
        " rate peaks half-way, ours at 40 %.",
    )

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        eps = self.threat.eps
        return Plan(
            self.cross_entropy_plan_objective(batch, objective),
            start=uniform_start(batch.x, eps),
            eps=eps,
            alpha=self.options.step_over_eps * eps,
            steps=1,
        )
