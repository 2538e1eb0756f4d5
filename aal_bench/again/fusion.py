"""Hybrid feature fusion, HFF: a feature map takes on statistics between its own and a partner's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

LIFT = 1e-5
"""Added to variances before the root, as in the official code."""
Partner = Literal["batch_perm", "clean"]
"""A': the features of other images of the batch, or of the same images without attack."""
Gamma = Literal["batch", "sample", "quarter"]
"""Weights of the four statistics: one Dirichlet draw for the batch or for each image, or 1/4."""


class Draws(NamedTuple):
    """What is random in one pass."""

    order: Tensor | None
    """Of the batch, whose features at these positions are the partners; None: the clean ones."""
    gamma: Tensor
    """(B,4) or (1,4)."""
    fused: Tensor | None
    """0-dim bool; None: fused for certain."""


class HFF(nn.Module):
    """A -> sigma^ (A - mu) / sigma + mu^, sigma^ and mu^ mixed from four maps' channel statistics.

    mu^ = sum_i gamma_i mu_i and sigma^ likewise over A, A', AdaIN(A, A') and AdaIN(A', A), with
    gamma ~ Dirichlet(1,1,1,1). As AdaIN(A, A') has the statistics of A' and AdaIN(A', A) those of
    A, this is MixStyle (Zhou et al. 2021) with lambda = gamma_1 + gamma_4 ~ Beta(2,2), up to
    `LIFT`. Gradients flow through all statistics. It has no parameters, and is the identity outside
    `clean_pass` and `attacked_pass`.

    Args:
        partner: A'.
        gamma: the draw of the weights.
        p: probability that a pass is fused.
    """

    def __init__(
        self, partner: Partner = "batch_perm", gamma: Gamma = "batch", p: float = 1.0
    ) -> None:
        super().__init__()
        self.partner: Partner = partner
        self.gamma: Gamma = gamma
        self.p = p
        self._pass: Literal["plain", "clean", "attacked"] = "plain"
        self._noted: Tensor | None = None
        self._drawn: Draws | None = None

    def forward(self, features: Tensor) -> Tensor:
        if self._pass == "plain":
            return features
        if self._pass == "clean" and self.partner == "clean":
            self._noted = features
            return features
        drawn = self.draw(features) if self._drawn is None else self._drawn
        if self._pass == "clean":
            self._drawn = drawn
        fused = fusion(features, self._other(features, drawn), drawn.gamma)
        if drawn.fused is None:
            return fused
        # Not a branch: the draw stays on the device.
        return torch.where(drawn.fused, fused, features)

    def draw(self, features: Tensor) -> Draws:
        """Everything random of one pass, from torch's generator."""
        device, order = features.device, None
        if self.partner == "batch_perm":
            order = torch.randperm(len(features), device=device)
        gamma = weights(self.gamma, features)
        return Draws(order, gamma, None if self.p == 1 else torch.rand((), device=device) < self.p)

    def _other(self, features: Tensor, drawn: Draws) -> Tensor:
        if drawn.order is not None:
            return features[drawn.order]
        if self._noted is None:
            raise RuntimeError("HFF fuses with clean features: pass the clean batch first")
        return self._noted

    @contextmanager
    def clean_pass(self) -> Iterator[None]:
        """The clean pass that goes before an attacked one.

        Its features are kept where they are the partner. Otherwise they are fused themselves, and
        the attacked pass by the same draws: a divergence between the two passes is then that of the
        attack, and not of their statistics.
        """
        # Of a step that failed between its two passes something may be left.
        self._pass, self._noted, self._drawn = "clean", None, None
        try:
            yield
        finally:
            self._pass = "plain"

    @contextmanager
    def attacked_pass(self) -> Iterator[None]:
        """The attacked pass, after which whatever was kept is forgotten."""
        self._pass = "attacked"
        try:
            yield
        finally:
            self._pass, self._noted, self._drawn = "plain", None, None


def fusion(features: Tensor, other: Tensor, gamma: Tensor) -> Tensor:
    """The four-term form, in at least float32 inside.

    Args:
        features: A (B,C,h,w).
        other: A', likewise.
        gamma: (B,4) or (1,4), rows summing to 1.

    Returns:
        (B,C,h,w) in the dtype of `features`.
    """
    lifted = torch.promote_types(features.dtype, torch.float32)
    a, b = features.to(lifted), other.to(lifted)
    four = [statistics(part) for part in (a, b, adain(a, b), adain(b, a))]
    shares = gamma.to(lifted).unbind(1)
    mean, deviation = (
        sum(
            share[:, None, None, None] * pair[which]
            for share, pair in zip(shares, four, strict=True)
        )
        for which in (0, 1)
    )
    own_mean, own_deviation = four[0]
    return (deviation * (a - own_mean) / own_deviation + mean).to(features.dtype)


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Adaptive instance normalisation (Huang and Belongie 2017): content in style's statistics."""
    (mean, deviation), (to_mean, to_deviation) = statistics(content), statistics(style)
    return to_deviation * (content - mean) / deviation + to_mean


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + `LIFT`) of each channel, (B,C,1,1) each.

    A map of one pixel has no spread: its variance is 0.
    """
    pixels = features.shape[2] * features.shape[3]
    variance, mean = torch.var_mean(features, (2, 3), correction=min(1, pixels - 1), keepdim=True)
    return mean, (variance + LIFT).sqrt()


def weights(kind: Gamma, like: Tensor) -> Tensor:
    """Rows gamma (B,4) or (1,4) on `like`'s device: the gaps between three uniforms in [0, 1]."""
    rows = len(like) if kind == "sample" else 1
    if kind == "quarter":
        return torch.full((rows, 4), 0.25, device=like.device)
    cuts = torch.rand(rows, 3, device=like.device).sort(1).values
    ends = torch.zeros(rows, 1, device=like.device), torch.ones(rows, 1, device=like.device)
    return torch.cat([ends[0], cuts, ends[1]], 1).diff(dim=1)
