"""Relations: a learnt comparison of a query with the sum of each class's support features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.fewshot.heads.base import Head
from aal_bench.methods.base import fp32


class Relation(Head):
    """Logits are the scores of the network's ``relation``, the module that the method built.

    The relation of the paper is their sigmoid, which the loss applies: an attack on the sigmoid
    would find no gradient where it saturates, and take that for robustness.
    """

    def fit(self, features: Tensor, labels: Tensor, ways: int, model: nn.Module) -> nn.Module:
        """As `Head.fit`; the readout leaves the mode of the network's ``relation`` as it is."""
        chosen = functional.one_hot(labels, ways).to(features)
        shape: tuple[int, int, int] = model.feature_shape  # pyright: ignore[reportAssignmentType]
        return Relations(model.relation, chosen.T @ features, shape)  # pyright: ignore[reportArgumentType]

    def loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Mean over the classes of (relation - [class is the query's])^2, for each query."""
        wanted = functional.one_hot(labels, logits.shape[1])
        each = (fp32(logits).sigmoid() - wanted).square().mean(1)
        if reduction == "none":
            return each
        return each.mean() if reduction == "mean" else each.sum()


class Relations(nn.Module):
    """features (Q, D) -> scores (Q, ways) with the classes' sums (ways, D)."""

    sums: Tensor

    def __init__(self, relation: nn.Module, sums: Tensor, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.relation, self.shape = relation, shape
        self.register_buffer("sums", sums)

    def forward(self, features: Tensor) -> Tensor:
        ways, count = len(self.sums), len(features)
        classes = self.sums.expand(count, -1, -1)
        queries = features[:, None].expand(-1, ways, -1)
        # A class's channels come before the query's, as in the official code.
        pairs = torch.stack([classes, queries], 2).view(count * ways, -1, *self.shape[1:])
        return self.relation(pairs).view(count, ways)
