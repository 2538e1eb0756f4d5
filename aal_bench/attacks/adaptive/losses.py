"""What the attacks maximise: sums over the batch of final and auxiliary logits' losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from aal_bench.aal.gradients import full_precision
from aal_bench.attacks.adaptive.budget import DLR_CLASSES


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Sum of -log p_y; logits (B,K), labels (B,)."""
    return functional.cross_entropy(full_precision(logits), y, reduction="sum")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Sum of max_{k != y} z_k - z_y: positive where the image is fooled."""
    return _margins(full_precision(logits), y).sum()


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Sum of (max_{k != y} z_k - z_y) / (z_(1) - z_(3)), the margin of two classes as it is.

    Difference of logits ratio, Croce and Hein 2020, arXiv 2003.01690: unchanged when the logits are
    scaled or shifted.
    """
    logits = full_precision(logits)
    if logits.shape[1] < DLR_CLASSES:
        return margin(logits, y)
    ranked = logits.topk(3, 1).values
    return (_margins(logits, y) / (ranked[:, 0] - ranked[:, 2] + 1e-12)).sum()


def _margins(logits: Tensor, y: Tensor) -> Tensor:
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
