"""Logistic regression on unit-length features: the protocol of RFS (Tian et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.errors import RunFailed
from aal_bench.fewshot.heads.base import Head


class Logistic(Head):
    """scikit-learn's multinomial logistic regression: L2, C = 1, L-BFGS, 1,000 iterations.

    Features are divided by their Euclidean length first, in fitting and in answering. For two
    ways scikit-learn fits the binary model, whose penalty is on one weight, not on two.

    Raises:
        RunFailed: features that are not finite, when fitted to them.
    """

    copies = True

    def fit(self, features: Tensor, labels: Tensor, ways: int, model: nn.Module) -> nn.Module:
        from sklearn.linear_model import LogisticRegression

        if not bool(torch.isfinite(features).all()):
            raise RunFailed("the features of a support set are not finite")
        # float64: L-BFGS stops elsewhere in float32, which differs from machine to machine.
        unit = functional.normalize(features.detach().double(), dim=1)
        fitted = LogisticRegression(C=1.0, solver="lbfgs", max_iter=1000)
        fitted.fit(unit.cpu().numpy(), labels.cpu().numpy())
        return Readout(
            torch.from_numpy(fitted.coef_).to(features),
            torch.from_numpy(fitted.intercept_).to(features),
            ways,
        )


class Readout(nn.Module):
    """features (Q, D) -> logits (Q, ways): the linear map on features of unit length."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, ways: int) -> None:
        super().__init__()
        if ways == 2:  # scikit-learn keeps one row: the log-odds of class 1
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        return functional.linear(functional.normalize(features, dim=1), self.weight, self.bias)
