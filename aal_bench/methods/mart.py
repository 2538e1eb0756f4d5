"""MART (Wang et al. 2020, ICLR: misclassification-aware adversarial training)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from aal_bench.attacks.linf import gaussian_start
from aal_bench.methods.base import Batch, Method, Objective, Options, Plan, Recipe, fp32, stepwise

LIFT = 1e-12
"""The official code adds it to probabilities before their logarithm."""


class MARTOptions(Options):
    """Options of MART."""

    beta: float = Field(5.0, ge=0)
    """lambda, the weight of the divergence: 5 for ResNet-18, 6 for WideResNets officially."""
    start_std: float = Field(0.001, ge=0)
    """Standard deviation of the Gaussian start of the inner attack."""


class MART(Method):
    """min_W BCE(p(x'), y) + lambda KL(p(x) || p(x')) (1 - p_y(x)), x' maximising CE.

    BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k). Cost with 10 steps: 12 forwards, 10 backwards
    to x, 2 to the weights.
    """

    Options = MARTOptions
    options: MARTOptions
    recipe = Recipe(
        train=stepwise(120, (74, 89, 99), 3.5e-3, lr=0.01),
        crafting={"step": "0.007", "steps": 10},
        source="train_resnet.py of YisenWang/MART, for a ResNet-18, which takes no normalisation"
        " there; it counts epochs from 1. WideResNets have settings of their own there.",
        eps_031=True,
    )

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        return Plan(
            self.cross_entropy_plan_objective(batch, objective),
            start=gaussian_start(batch.x, self.options.start_std),
            eps=self.threat.eps,
            alpha=self.threat.step,
            steps=self.threat.steps,
        )

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        clean, adversarial = fp32(model(batch.x)), fp32(model(x_adv))
        missed = missed_probability(clean, batch.targets)
        robust = (divergence(clean, adversarial) * missed).mean()
        return boosted_cross_entropy(adversarial, batch.targets).mean() + self.options.beta * robust


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """(B,): -log p_y - log(1 - max_{k != y} p_k) of logits (B, K); constants as official."""
    p = logits.softmax(1)
    others = p.scatter(1, y[:, None], -torch.inf).amax(1)
    hit = logits.log_softmax(1).gather(1, y[:, None])[:, 0]
    return -hit - (1.0001 - others + LIFT).log()


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """(B,): KL(p(x) || p(x')) of two logits (B, K).

    Officially log p is taken without the lift, and its gradient is NaN where p underflows to 0.
    """
    p = clean.softmax(1)
    log_p, log_q = ((logits.softmax(1) + LIFT).log() for logits in (clean, adversarial))
    return (p * (log_p - log_q)).sum(1)


def missed_probability(clean: Tensor, y: Tensor) -> Tensor:
    """(B,): 1 - p_y(x), through which the gradient flows as in the official code."""
    return 1.0000001 - clean.softmax(1).gather(1, y[:, None])[:, 0]
