"""The loss that few-shot training descends: labelled images, or the queries of episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.fewshot.heads.base import Head
from aal_bench.methods.base import fp32
from aal_bench.methods.episodes import EpisodeTargets


class EpisodeObjective:
    """objective(x, targets, reduction): cross-entropy on labels, `head`'s query loss on episodes.

    Args:
        model: a few-shot network.
        head: answers training episodes.
        autocast: context maker; `accelerate` casts the network's own forward only, and heads read
            its features.
    """

    def __init__(self, model: nn.Module, head: Head, autocast: Any) -> None:
        self.model, self.head, self.autocast = model, head, autocast

    def __call__(self, x: Tensor, targets: Any, reduction: str = "mean") -> Tensor:
        """Loss of x (B,3,H,W); ``none``: of each image, or of each query, episode by episode."""
        with self.autocast():
            if not isinstance(targets, EpisodeTargets):
                return functional.cross_entropy(fp32(self.model(x)), targets, reduction=reduction)
            logits = self._adapted(x, targets) if self.head.adapts else self._read(x, targets)
        labels = targets.query_labels().repeat(targets.count)
        return self.head.loss(torch.cat(logits), labels, reduction)

    def _read(self, x: Tensor, targets: EpisodeTargets) -> list[Tensor]:
        """One forward for all episodes: batch norm sees them together."""
        features = self.model.features(x)  # pyright: ignore[reportCallIssue]
        labels = targets.support_labels()
        return [
            self.head.fit(support, labels, targets.ways, self.model)(query)
            for support, query in zip(
                targets.support(features), targets.query(features), strict=True
            )
        ]

    def _adapted(self, x: Tensor, targets: EpisodeTargets) -> list[Tensor]:
        labels = targets.support_labels()
        return [
            self.head.train_logits(self.model, support, labels, query, targets.ways)
            for support, query in zip(targets.support(x), targets.query(x), strict=True)
        ]
