"""ATTA: perturbations handed from epoch to epoch (Zheng et al. 2020, arXiv 1912.11969)."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from aal_bench.aal.gradients import clip
from aal_bench.attacks.linf import gaussian_start
from aal_bench.errors import UserError
from aal_bench.methods.base import Batch, Objective, Plan, Recipe, Threat, stepwise
from aal_bench.methods.trades import TRADES, TRADESOptions

LIMIT = 8 * 2**30
"""Bytes of kept perturbations, all of which are in every checkpoint: CIFAR's are 0.5 GB."""


class ATTAOptions(TRADESOptions):
    """Options of ATTA; `beta` acts with ``loss = "trades"`` only."""

    steps: int = Field(1, ge=1)
    """k: steps of the attack in every epoch, in place of the task's."""
    alpha: float = Field(0.015 / 0.031, gt=0)
    """Step size as a share of eps: officially .015/.031 for k = 1 and .007/.031 for k = 10."""
    reset: int = Field(10, ge=1)
    """Epochs after which all perturbations begin anew, before epochs 10, 20, ... counted from 1."""
    loss: Literal["mat", "trades"] = "mat"
    """``mat``: CE at x'; ``trades``: the loss of TRADES. The attack maximises CE with both."""
    divide_by_batch: bool = False
    """Divide the mean CE of ``mat`` by the batch size once more, a bug of the official code."""

    @model_validator(mode="after")
    def _divides_mat(self) -> ATTAOptions:
        if self.divide_by_batch and self.loss != "mat":
            raise ValueError('divide_by_batch is about loss = "mat"')
        return self


class ATTA(TRADES):
    """min_W CE(f(x'), y), x' by k steps that begin where those of the last epoch ended.

    The perturbation of every training image is kept, as float16, on its zero-padded canvas: where
    the crop lay, mirrored back if it was flipped. The next epoch reads its own crop of it. At
    first, and every `reset` epochs, it is Gaussian. Keeps 6 (H + 2 pad)(W + 2 pad) bytes for each
    training image. Cost with k = 1: 2 forwards, 1 backward to x, 1 to the weights; with TRADES'
    loss 3, 1 and 2. Outside a step of training its attack begins at a Gaussian perturbation.
    """

    Options = ATTAOptions
    options: ATTAOptions  # type: ignore[assignment]
    update_defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    augmentations: ClassVar[tuple[str, ...] | None] = ("none", "shift", "crop-flip")
    recipe = Recipe(
        train=stepwise(38, (29, 35), 2e-4, batch_size=64),
        source="train_atta_cifar.py and data-config/cifar-atta-1-mat.json of haizhongzheng/ATTA,"
        " for a WideResNet-34-10; method.divide_by_batch=true takes over its loss too.",
        eps_031=True,
    )

    def __init__(self, options: ATTAOptions, threat: Threat) -> None:
        super().__init__(options, threat)
        self._images: int | None = None
        self._kept: Tensor | None = None
        """(N, C, H + 2 pad, W + 2 pad) float16 in pixel units, by position in the training set."""
        self._round: int | None = None
        """How many resets were due when `_kept` was drawn."""
        self._stepping: Tensor | None = None
        """``batch.idx`` of the step that is being taken: only there do positions mean ours."""

    def check(self, classes: int, images: int, shape: tuple[int, int, int]) -> None:
        size = 2 * images * prod(shape)
        if size > LIMIT:
            raise UserError(
                f"method atta would keep {size / 2**30:.0f} GiB of perturbations, and does so up to"
                f" {LIMIT / 2**30:.0f} GiB: choose smaller images, or fewer with --limit-train"
            )

    def remember(self, images: int) -> None:
        self._images = images

    def before_step(self, batch: Batch) -> None:
        self._stepping = batch.idx
        due = (batch.epoch + 1) // self.options.reset
        if due == self._round and self._kept is not None:
            self._kept = self._kept.to(batch.x.device)
            return
        if self._kept is None:
            self._kept = torch.empty(self._shape(batch), dtype=torch.float16)
        # From the global generator, whose state is in the checkpoint with the perturbations.
        self._kept = self._kept.to(batch.x.device).normal_(0, self.options.start_std)
        self._round = due

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        return Plan(
            self.cross_entropy_plan_objective(batch, objective),
            start=self._start(batch),
            eps=self.threat.eps,
            alpha=self.options.alpha * self.threat.eps,
            steps=self.options.steps,
        )

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        if self.options.loss == "trades":
            return super().loss(model, batch, x_adv, objective)
        loss = objective(x_adv, batch.targets)
        return loss / len(batch.x) if self.options.divide_by_batch else loss

    def after_step(self, batch: Batch, x_adv: Tensor) -> None:
        assert self._kept is not None
        self._kept[canvas_index(batch)] = (x_adv - batch.x).to(self._kept.dtype)
        self._stepping = None

    def _start(self, batch: Batch) -> Tensor:
        if self._kept is None or batch.idx is not self._stepping:
            return gaussian_start(batch.x, self.options.start_std)
        kept = self._kept[canvas_index(batch)].to(batch.x.dtype)
        return (batch.x + clip(kept, self.threat.eps)).clamp(0, 1)

    def _shape(self, batch: Batch) -> tuple[int, ...]:
        if self._images is None:
            raise RuntimeError("ATTA keeps all perturbations: remember(images) comes first")
        border = 0 if batch.aug is None else 2 * batch.aug.pad
        channels, height, width = batch.x.shape[1:]
        shape = (channels, height + border, width + border)
        self.check(0, self._images, shape)
        return (self._images, *shape)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "round": self._round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept, self._round = state["kept"], state["round"]


def canvas_index(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the batch's pixels lie on the padded canvases: reading and writing alike.

    Four int64 tensors that broadcast to (B, C, H, W), so that ``canvas[index]`` is what the
    batch's own augmentation makes of the canvases.
    """
    channels, height, width = batch.x.shape[1:]
    c, i, j = (torch.arange(n, device=batch.x.device) for n in (channels, height, width))
    rows, columns = i[None], j[None]
    if batch.aug is not None:
        rows = batch.aug.top[:, None] + i
        columns = torch.where(batch.aug.flip[:, None] != 0, width - 1 - j, j)
        columns = batch.aug.left[:, None] + columns
    return (
        batch.idx[:, None, None, None],
        c[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
