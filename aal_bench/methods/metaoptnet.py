"""MetaOptNet with a support vector machine (Lee et al. 2019, arXiv 1904.03758)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from aal_bench.methods.episodes import EpisodicMethod, EpisodicOptions


class MetaOptNetOptions(EpisodicOptions):
    """Options of MetaOptNet; the defaults are the official code's for mini-ImageNet."""

    train_shots: int | None = Field(default=15, ge=1)
    """More shots than are tested; 10 on tieredImageNet."""
    train_queries: int = Field(default=6, ge=1)
    c: float = Field(default=0.1, gt=0)
    """C of the support vector machine."""
    iterations: int = Field(default=15, ge=1)
    """Newton steps of its quadratic program; the solver in qpth's place takes what it needs."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target spread over the other classes; 0 on tieredImageNet."""


class MetaOptNet(EpisodicMethod):
    """min_W CE(scale * SVM(f(support))(f(query)), y), through the optimum of the machine's dual.

    The official code (kjunelee/MetaOptNet) has 16,000 unpooled features of a wider ResNet-12; here
    they are the run's network's. Its rate falls by .06, .2 and .2 after a third, two thirds and
    five sixths of training; here by the same factor each time, to the same end.
    """

    Options = MetaOptNetOptions
    options: MetaOptNetOptions
    precision: ClassVar[Literal["fp32"] | None] = "fp32"
    train_defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "batch_size": 8,
        "schedule": "step",
        "milestones": [1 / 3, 2 / 3, 5 / 6],
        "decay": 0.134,
    }

    @property
    def head(self) -> str:
        return "svm"

    def build(self, model: nn.Module) -> nn.Module:
        """Add the learnt scale of the logits, ``model.svm_scale``; 1 at first."""
        model.svm_scale = nn.Parameter(torch.ones(()))
        return model
