"""RFS-distill: RFS born again, taught by a network like itself (Tian et al. 2020, sec. 3.3)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.methods.base import Batch, Objective, Options, fp32
from aal_bench.methods.rfs import RFS


class RFSDistillOptions(Options):
    """Options of RFS-distill; the defaults are those of the official command line."""

    gamma: float = Field(0.5, ge=0)
    """Weight of the cross-entropy with the labels."""
    alpha: float = Field(0.5, ge=0)
    """Weight of the divergence from the teacher."""
    temperature: float = Field(4.0, gt=0)
    """T that divides both logits in the divergence."""


class RFSDistill(RFS):
    """min_W gamma CE(f(x), y) + alpha T^2 KL(softmax(t(x) / T) || softmax(f(x) / T)).

    The teacher t is RFS, trained first at the same settings (one generation), in eval mode and
    without gradient, on the same augmented images. Formula and weights are those of the official
    code (WangYueFt/rfs: distill/criterion.py, scripts/run.sh). Cost: 2 forwards, 1 backward, and
    the teacher's training.
    """

    Options = RFSDistillOptions
    options: RFSDistillOptions
    teacher: ClassVar[str | None] = "rfs"
    taught_by: nn.Module | None = None
    """The teacher: neither trained nor saved, a resumed run is given it again."""

    def learn_from(self, teacher: nn.Module) -> None:
        self.taught_by = teacher

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        if self.taught_by is None:
            raise RuntimeError("rfs-distill was given no teacher: learn_from comes before training")
        # The teacher is not prepared for this run: its precision is the objective's.
        with torch.no_grad(), getattr(objective, "autocast", nullcontext)():
            taught = fp32(self.taught_by(x_adv))
        logits = fp32(model(x_adv))
        T = self.options.temperature
        divergence = functional.kl_div(
            (logits / T).log_softmax(1),
            (taught / T).log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        likelihood = functional.cross_entropy(logits, batch.targets)
        return self.options.gamma * likelihood + self.options.alpha * T**2 * divergence
