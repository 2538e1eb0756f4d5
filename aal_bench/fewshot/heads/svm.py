"""Support vector machine: learn2learn's `SVClassifier`, MetaOptNet's head, with a learnt scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.fewshot.heads.base import Head
from aal_bench.methods.base import fp32
from aal_bench.toolkits import learn2learn_import, qpth_absent


class SVM(Head):
    """Crammer and Singer's multi-class machine without bias, in its dual; linear in the features.

    Training descends through the optimum of the quadratic program. Logits are multiplied by the
    network's ``svm_scale``, which the method built.
    """

    def fit(self, features: Tensor, labels: Tensor, ways: int, model: nn.Module) -> nn.Module:
        learn2learn_import.repair()
        qpth_absent.repair()
        from learn2learn.nn import SVClassifier

        with torch.autocast(features.device.type, enabled=False):
            fitted = SVClassifier(
                fp32(features),
                labels,
                ways,
                C_reg=self.options.c,
                max_iters=self.options.iterations,
            )
            # sum over i of alpha_ik f_i: the weights of class k
            weight = fitted.qp_solution.to(fitted.support).T @ fitted.support
        return Linear(weight * model.svm_scale).eval()  # pyright: ignore[reportOperatorIssue]

    def loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy with 1 - eps on the query's class and eps / (ways - 1) on each other."""
        ways = logits.shape[1]
        # torch spreads its smoothing over all classes, the query's included.
        smoothing = self.options.label_smoothing * ways / (ways - 1)
        return functional.cross_entropy(
            fp32(logits), labels, reduction=reduction, label_smoothing=smoothing
        )


class Linear(nn.Module):
    """features (Q, D) -> logits (Q, ways): the product with a weight (ways, D)."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(features.to(self.weight), self.weight)
