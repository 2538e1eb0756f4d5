"""Hybrid feature fusion, HFF: a feature map takes on statistics between its own and a partner's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

LIFT = 1e-5
"""Added to variances before the root, as in the official code."""
Partner = Literal["batch_perm", "clean"]
"""A': the features of other images of the batch, or of the same images without attack."""
Gamma = Literal["batch", "sample", "quarter"]
"""Weights of the four statistics: one Dirichlet draw for the batch or for each image, or 1/4."""


class HFF(nn.Module):
    """A -> sigma^ (A - mu) / sigma + mu^, sigma^ and mu^ mixed from four maps' channel statistics.

    mu^ = sum_i gamma_i mu_i and sigma^ likewise over A, A', AdaIN(A, A') and AdaIN(A', A), with
    gamma ~ Dirichlet(1,1,1,1). As AdaIN(A, A') has the statistics of A' and AdaIN(A', A) those of
    A, this is MixStyle (Zhou et al. 2021) with lambda = gamma_1 + gamma_4 ~ Beta(2,2), up to
    `LIFT`. Gradients flow through all statistics. It has no parameters, and is the identity outside
    `fusing`.

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
        self._doing: Literal["nothing", "noting", "fusing"] = "nothing"
        self._noted: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        if self._doing == "noting":
            self._noted = features
        if self._doing != "fusing":
            return features
        fused = fusion(features, self._other(features), weights(self.gamma, features))
        if self.p == 1:
            return fused
        # Not a branch: the draw stays on the device.
        return torch.where(torch.rand((), device=features.device) < self.p, fused, features)

    def _other(self, features: Tensor) -> Tensor:
        if self.partner == "batch_perm":
            return features[torch.randperm(len(features), device=features.device)]
        if self._noted is None:
            raise RuntimeError("HFF fuses with clean features: pass the clean batch in `noting`")
        return self._noted

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep the features of this context's pass, where the partner is the clean image."""
        self._doing = "noting" if self.partner == "clean" else "nothing"
        try:
            yield
        finally:
            self._doing = "nothing"

    @contextmanager
    def fusing(self) -> Iterator[None]:
        """Fuse this context's training passes, and forget what was noted."""
        self._doing = "fusing"
        try:
            yield
        finally:
            self._doing, self._noted = "nothing", None


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
