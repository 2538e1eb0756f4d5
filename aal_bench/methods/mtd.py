"""Multi-task-domain adversarial training of detectors (Zhang & Wang 2019, arXiv 1907.10310)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start
from aal_bench.methods.base import Batch, Method, Objective, Options


class MTDOptions(Options):
    """Options of MTD."""

    choose: Literal["image", "batch"] = "image"
    """Whose total loss decides between the two attacks: each image's, or the batch's as in the only
    public implementation."""
    start: Literal["clean", "uniform"] = "clean"
    """Where the single step begins."""
    clean_weight: float = Field(0.5, ge=0, le=1)
    """Weight of the clean batch in the training loss; a half, as that implementation trains on
    clean and attacked images one to one."""


class MTD(Method):
    """x' = the stronger, by the total loss, of one step along L_cls and one along L_loc.

    The gradients of the two tasks disagree, and a step along their sum serves neither. Cost with
    the default weight: 5 forwards (one gives both gradients) and 4 backwards.
    """

    Options = MTDOptions
    options: MTDOptions

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        eps = self.threat.eps
        start = batch.x if self.options.start == "clean" else uniform_start(batch.x, eps)
        with attacking(model, bn=self.options.craft_bn):
            guided = [
                linf_pgd(_constant, batch.x, start, eps, eps, 1, gradient=gradient)
                for gradient in self._gradients(start, batch, objective)
            ]
            with torch.no_grad():
                by_cls, by_loc = (objective(v, batch.targets, reduction="none") for v in guided)
        if self.options.choose == "batch":
            by_cls, by_loc = (v.sum().expand_as(v) for v in (by_cls, by_loc))
        stronger = (by_loc > by_cls)[:, None, None, None]
        self.log = {"loc_stronger": (by_loc > by_cls).float().mean()}
        return torch.where(stronger, guided[1], guided[0])

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        attacked, weight = objective(x_adv, batch.targets), self.options.clean_weight
        if not weight:
            return attacked
        return (1 - weight) * attacked + weight * objective(batch.x, batch.targets)

    def _gradients(self, start: Tensor, batch: Batch, objective: Objective) -> list[Tensor]:
        x = start.detach().clone().requires_grad_()
        parts = objective.parts_of(x, batch.targets)  # pyright: ignore[reportFunctionMemberAccess]
        last = len(parts) - 1
        return [
            torch.autograd.grad(loss, x, retain_graph=i < last)[0] for i, loss in enumerate(parts)
        ]


def _constant(_: Tensor) -> Tensor:
    raise AssertionError("a single step whose gradient is known asks for no loss")
