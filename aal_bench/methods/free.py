"""Free adversarial training (Shafahi et al. 2019, arXiv 1904.12843)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from aal_bench.aal.gradients import clip, surfacing_sign
from aal_bench.config import Strict
from aal_bench.methods.base import Batch, Method, Objective, Recipe, Threat


class FreeOptions(Strict):
    """Options of free training."""

    replays: int = Field(8, ge=1)
    """m: updates on each batch; 8 as on CIFAR; 4 as on ImageNet and, since, for detectors."""


class Free(Method):
    """Weights and perturbation step on one backward pass, m times on each batch.

    delta <- clip(delta + eps sign(grad), -eps, eps), kept across replays and batches, as in its
    authors' code (other code also clips it to the image's range before it is kept). Cost: m
    forwards and m backwards for each batch; its authors divide the epochs by m.
    """

    Options = FreeOptions
    options: FreeOptions  # type: ignore[assignment]
    recipe = Recipe(
        train={
            "epochs": 10,
            "batch_size": 128,
            "lr": 0.04,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "onecycle",
        },
        options={"replays": 8},
        source="train_free.py of locuslab/fast_adversarial, CIFAR10, for a PreActResNet-18: 10"
        " epochs of 8 replays cost what 80 of standard training do. Its rate peaks half-way, ours"
        " at 40 %, and moves with every replay, ours with every batch.",
    )

    def __init__(self, options: FreeOptions, threat: Threat) -> None:
        super().__init__(options, threat)  # type: ignore[arg-type]
        self._delta: Tensor | None = None
        self._perturbed: Tensor | None = None

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, Any]:
        return {"replays": 4} if family == "detection" else {}

    @property
    def replays(self) -> int:
        return self.options.replays

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """No pass of its own: x with the perturbation that earlier updates left."""
        kept = self._delta
        fits = (
            kept is not None and kept.shape[1:] == batch.x.shape[1:] and len(kept) >= len(batch.x)
        )
        if not fits:
            self._delta = torch.zeros_like(batch.x)
        return self._x_adv(batch)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        """The loss at the *current* perturbation, whose gradient the same backward pass gives."""
        self._perturbed = self._x_adv(batch).requires_grad_()
        return objective(self._perturbed, batch.targets)

    def after_replay(self, batch: Batch) -> None:
        assert self._delta is not None
        assert self._perturbed is not None
        gradient = self._perturbed.grad
        assert gradient is not None
        own = self._delta[: len(batch.x)]
        moved = clip(own + self.threat.eps * surfacing_sign(gradient), self.threat.eps)
        self._delta = torch.cat([moved, self._delta[len(batch.x) :]])
        self._perturbed = None

    def state_dict(self) -> dict[str, Any]:
        return {"delta": self._delta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._delta = state["delta"]

    def _x_adv(self, batch: Batch) -> Tensor:
        assert self._delta is not None
        self._delta = self._delta.to(batch.x.device)  # a resumed state begins on the CPU
        return (batch.x + self._delta[: len(batch.x)]).clamp(0, 1).detach()
