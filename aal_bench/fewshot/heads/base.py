"""The contract of a head: from the support set of an episode to a classifier of its queries."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.methods.base import Threat, fp32


class Support(NamedTuple):
    """The support set of one test episode, on the model's device."""

    images: Tensor
    """(n,3,H,W) in [0,1]."""
    copies: Tensor
    """(n,c,3,H,W): augmented copies of each, or the images themselves once."""
    labels: Tensor
    """int64 (n,), 0..ways-1."""
    ways: int

    def fitted_to(self, copies: bool) -> tuple[Tensor, Tensor]:
        """Images (m,3,H,W) and labels (m,) that a head is fitted to."""
        if not copies:
            return self.images, self.labels
        return self.copies.flatten(0, 1), self.labels.repeat_interleave(self.copies.shape[1])


class EpisodeClassifier(nn.Module):
    """Query images (Q,3,H,W) in [0,1] -> logits (Q, ways), each query answered on its own."""

    def __init__(self, model: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.model, self.readout = model, readout

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.model.features(x))  # pyright: ignore[reportCallIssue]


class Head:
    """Base of heads that leave the network as it is and read its features.

    Args:
        options: of the method that the head belongs to.
        threat: the task's, for a head that attacks its support set.
    """

    adapts: ClassVar[bool] = False
    """True: the network itself changes with the episode, so its features cannot be kept."""
    copies: ClassVar[bool] = False
    """True: fitted to augmented copies of the support images."""

    def __init__(self, options: Any, threat: Threat | None = None) -> None:
        self.options, self.threat = options, threat

    def attackable(self) -> None:
        """Refuse to be attacked where the answer to a query depends on the other queries.

        Raises:
            UserError: it does; the message names the option to change.
        """

    def fit(self, features: Tensor, labels: Tensor, ways: int, model: nn.Module) -> nn.Module:
        """The readout: features (Q, D) -> logits (Q, ways), differentiable in them.

        Args:
            features: (n, D) of the support images, with their graph while training.
            labels: int64 (n,), 0..ways-1.
            ways: classes of the episode.
            model: the network, where the head has learnt parts in it.
        """
        raise NotImplementedError(f"{type(self).__name__} fits no readout")

    def loss(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """The query loss that training descends; default: cross-entropy in float32."""
        return functional.cross_entropy(fp32(logits), labels, reduction=reduction)

    def train_logits(
        self, model: nn.Module, support: Tensor, labels: Tensor, query: Tensor, ways: int
    ) -> Tensor:
        """Logits (Q, ways) of one training episode with the graph to the weights.

        Only of heads that adapt: for all others the features of a batch are taken at once.
        """
        raise NotImplementedError(f"{type(self).__name__} adapts nothing")

    def classifier(self, model: nn.Module, support: Support) -> nn.Module:
        """The classifier of one test episode: an ``nn.Module`` from query pixels to logits (Q, K).

        Args:
            model: the trained network in eval mode; not changed.
            support: of the episode.
        """
        images, labels = support.fitted_to(self.copies)
        with torch.no_grad():
            features = model.features(images)  # pyright: ignore[reportCallIssue]
            readout = self.fit(features, labels, support.ways, model)
        return EpisodeClassifier(model, readout).eval()
