"""Prototypes: learn2learn's `PrototypicalClassifier`."""

from __future__ import annotations

from torch import Tensor, nn

from aal_bench.fewshot.heads.base import Head
from aal_bench.toolkits import learn2learn_import


class Prototype(Head):
    """Logits are minus the (squared Euclidean or cosine) distance to the mean of each class."""

    def fit(self, features: Tensor, labels: Tensor, ways: int, model: nn.Module) -> nn.Module:
        learn2learn_import.repair()
        from learn2learn.nn import PrototypicalClassifier

        distance = getattr(self.options, "distance", "euclidean")
        return PrototypicalClassifier(features, labels, distance=distance)
