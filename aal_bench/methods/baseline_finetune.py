"""A baseline for few-shot image classification: pre-train, fine-tune (Dhillon et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.methods.base import Batch, Method, Objective, Options, fp32


class BaselineFinetuneOptions(Options):
    """Options of the baseline; the defaults are the official code's."""

    mixup: float = Field(default=0.25, ge=0)
    """alpha of mixup's Beta(alpha, alpha); 0: none."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target spread over all classes."""
    finetune_lr: float = Field(default=5e-5, gt=0)
    """Adam's, for each test episode."""
    finetune_epochs: int = Field(default=25, ge=0)
    """Steps of each test episode; 0: the support-based initialisation answers."""
    transductive: bool = False
    """Follow each step by one on the entropy of the queries' predictions, the paper's main row."""
    entropy_weight: float = Field(default=1.0, ge=0)
    """Of that entropy."""


class BaselineFinetune(Method):
    """Cross-entropy over all training classes with mixup and label smoothing; then fine-tuning.

    Mixup is fastai's, which the official code (amazon-science/few-shot-baseline) uses: each image
    has a weight of its own, the larger of w and 1 - w with w ~ Beta(alpha, alpha).
    """

    Options = BaselineFinetuneOptions
    options: BaselineFinetuneOptions
    attacks: ClassVar[bool] = False
    mixture: tuple[Tensor, Tensor]
    """Of this step: weights (B,) in [1/2, 1], and whose images are mixed in, int64 (B,)."""

    @property
    def head(self) -> str:
        return "finetune"

    def before_step(self, batch: Batch) -> None:
        """Draw the mixture here, so that the loss is pure."""
        count, alpha = len(batch.x), self.options.mixup
        weight = torch.ones(count)
        if alpha:
            drawn = torch.distributions.Beta(alpha, alpha).sample((count,))
            weight = torch.maximum(drawn, 1 - drawn)
        self.mixture = weight.to(batch.x), torch.randperm(count).to(batch.x.device)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        weight, other = self.mixture
        share = weight[:, None, None, None]
        logits = fp32(model(share * x_adv + (1 - share) * x_adv[other]))

        def loss(labels: Tensor) -> Tensor:
            return functional.cross_entropy(
                logits, labels, reduction="none", label_smoothing=self.options.label_smoothing
            )

        return (weight * loss(batch.targets) + (1 - weight) * loss(batch.targets[other])).mean()
