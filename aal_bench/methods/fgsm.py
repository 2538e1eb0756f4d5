"""FGSM adversarial training (Goodfellow et al. 2015, arXiv 1412.6572)."""

from __future__ import annotations

from torch import nn

from aal_bench.methods.base import Batch, Method, Objective, Plan


class FGSM(Method):
    """min_W CE(f(x'), y) with x' = clip(x + eps sign(grad CE)), started at x.

    Known to collapse (catastrophic overfitting, arXiv 2001.03994): a result, not a bug. Cost: 2
    forwards, 1 backward to x, 1 to the weights.
    """

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        inner = self.cross_entropy_plan_objective(batch, objective)
        return Plan(inner, start=batch.x, eps=self.threat.eps, alpha=self.threat.eps, steps=1)
