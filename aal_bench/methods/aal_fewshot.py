"""AAL for few-shot learning: the background of the support images is attacked (kernel 1 - M*M).

The paper attacks "the background of images in the support set during training", but the training it
builds on (RFS, IER) has no support set: four readings, F1 to F4, are switches.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from aal_bench.aal.attention import gate_of
from aal_bench.aal.options import Kernel, Selective
from aal_bench.aal.selective import second_attention
from aal_bench.errors import UserError
from aal_bench.methods.aal import AAL
from aal_bench.methods.base import Batch, Episodic, Objective, Threat
from aal_bench.methods.episodes import EpisodeTargets
from aal_bench.methods.fgsm import FGSM
from aal_bench.methods.ier import IER
from aal_bench.methods.rfs import RFS


class SelectiveFewShot(Selective):
    """The switches of AAL, and which images are the support set."""

    kernel: Kernel = Field(
        default="one_minus_m2", description="k of Eq. 2; 1 - M*M spends eps off the mask"
    )
    reading: Literal["F1", "F2", "F3", "F4"] = Field(
        default="F1",
        description="F1: every training image is attacked. F2: half of each batch. F3: the last "
        "share of training is on episodes, their support attacked, prototype CE on clean queries. "
        "F4: training is clean; at test an attacked copy of each support image joins its others",
    )
    finetune: float = Field(
        default=0.1, gt=0, lt=1, description="F3: share of the epochs that train on episodes"
    )
    finetune_queries: int = Field(
        default=15, ge=1, description="F3: query images of each class of a training episode"
    )


class AALFewShot(AAL):
    """Wraps a pre-training method: Alg. 1 on its training images, read as `reading` says."""

    Options = SelectiveFewShot
    options: SelectiveFewShot  # type: ignore[assignment]
    without_gate: ClassVar[set[str]] = {
        *AAL.without_gate,
        *("reading", "finetune", "finetune_queries"),
    }

    idle_in: ClassVar[dict[str, tuple[str, ...]]] = {
        "F1": ("finetune", "finetune_queries"),
        "F2": ("finetune", "finetune_queries", "second_att"),
        "F3": ("clean_weight",),
        "F4": (
            *("finetune", "finetune_queries", "start", "second_att"),
            *("clean_weight", "craft_bn", "detach_mask"),
        ),
    }
    """Reading -> the options that do not act in it, or not on all that they would be read as.
    F2 has clean images beside the attacked, and an injected mask would know their labels."""

    def _idle(self) -> dict[str, bool]:
        return {name: self._changed(name) for name in self.idle_in[self.options.reading]}

    @property
    def head(self) -> str:
        return "logistic-attacked" if self.options.reading == "F4" else self.wrapped.head

    @property
    def training_head(self) -> str:
        return "prototype" if self.options.reading == "F3" else self.wrapped.training_head

    def episodes(self, ways: int, shots: int) -> Episodic | None:
        if self.options.reading != "F3":
            return None
        begins = 1 - self.options.finetune
        return Episodic(ways, shots, self.options.finetune_queries, per_epoch=1, begins=begins)

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        targets, reading = batch.targets, self.options.reading
        episodic = isinstance(targets, EpisodeTargets)
        if reading == "F4" or (reading == "F3" and not episodic):
            self.association = None
            return batch.x
        x_adv = super().attack(model, batch, objective)
        if isinstance(targets, EpisodeTargets):
            return torch.where(targets.in_support()[:, None, None, None], x_adv, batch.x)
        if reading == "F2":
            return torch.cat([x_adv[: len(x_adv) // 2], batch.x[len(x_adv) // 2 :]])
        return x_adv

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        if not isinstance(batch.targets, EpisodeTargets):
            return super().loss(model, batch, x_adv, objective)
        if self.association is None:  # control = no_gate
            return objective(x_adv, batch.targets)
        with second_attention(gate_of(model), self.association, self.options):
            return objective(x_adv, batch.targets)


class _AttackedRFS(FGSM, RFS):
    """RFS on images attacked by FGSM: what AAL confines to the mask."""

    attacks: ClassVar[bool] = True


class _AttackedIER(FGSM, IER):
    """IER whose sixteen views are of the image attacked by FGSM on its class loss."""

    attacks: ClassVar[bool] = True


class AALRFS(AALFewShot):
    """AAL on RFS."""

    base = _AttackedRFS


class AALIER(AALFewShot):
    """AAL on IER: the attacked image takes the place of the first of its sixteen views."""

    base = _AttackedIER

    def __init__(self, options: SelectiveFewShot, threat: Threat) -> None:
        super().__init__(options, threat)
        if options.second_att != "recompute":
            # The masks are of the first view; the training pass is on sixteen.
            raise UserError("IER trains on sixteen views of an image: set second_att=recompute")


class AALPaper(AALIER):
    """AAL on IER at the initial rate that the paper prints; IER's own is 0.05."""

    train_defaults: ClassVar[dict[str, Any]] = {"lr": 0.1}
