"""IER: invariant and equivariant representations together (Rizve et al. 2021, arXiv 2103.01315).

Verified in the official code (nayeemrizve/invariance-equivariance: train.py, losses.py, util.py,
dataset/, models/resnet_inv_eq.py): the sixteen transforms and their order; the classes of all
sixteen copies are learnt; both heads are two hidden layers as wide as the features, with batch
norm and ReLU; the loss is a plain sum; the contrastive loss as in `contrastive_loss`; 6,400
negatives, projections of 64, temperature 1; a memory that begins as random unit vectors and takes
in 1 % of the un-normalised projection of transform 0. The schedule (65 epochs at rate 0.05, a tenth
after 60) is the task's.

Ours: the official code draws colour jitter and flip anew for each of the four crops; here the crops
are of one augmented (and, by AAL, attacked) image. It means to leave the batch's own images out of
the negatives, but compares tensors with integers, so that they stay in; here they are out. The
heads keep no running statistics, which nothing reads. The second stage, distillation of all heads,
is not part of `ier`.
"""

from __future__ import annotations

from contextlib import nullcontext
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.methods.base import Batch, Method, Objective, Options, Threat, fp32
from aal_bench.methods.episodes import EpisodeTargets
from aal_bench.methods.ier_memory import Memory, contrastive_loss
from aal_bench.methods.ier_transforms import TRANSFORMS, draw_places, sixteen_transforms


class IEROptions(Options):
    """Options of IER; the defaults are those of the official code."""

    equivariance: float = Field(1.0, ge=0)
    """Weight of the cross-entropy of naming the transform."""
    invariance: float = Field(1.0, ge=0)
    """Weight of the contrastive loss."""
    negatives: int = Field(6400, ge=1)
    """Rows of the memory that a step contrasts with; all other images' where there are fewer."""
    projection: int = Field(64, ge=1)
    """Width of the invariance head's output and of the memory."""
    temperature: float = Field(1.0, gt=0)
    """Of the contrastive loss."""
    memory_momentum: float = Field(0.99, ge=0, le=1)
    """Share of a row of the memory that an update keeps."""


class _Drawn(NamedTuple):
    """The chance in one step, drawn once so that the loss can be taken again."""

    places: Tensor
    negatives: Tensor


class IER(Method):
    """min CE(f(x_k), y) + CE(equivariance(x_k), k) + contrastive(invariance(x_k)), k = 0..15.

    x_k is transform k of the image, or of the attacked image where a subclass attacks. The three
    heads read the same features: the network's classifier, and two heads that only training has.
    Cost: 16 forwards and 16 backwards per image.
    """

    Options = IEROptions
    options: IEROptions
    attacks: ClassVar[bool] = False

    def __init__(self, options: IEROptions, threat: Threat) -> None:
        super().__init__(options, threat)
        self.memory = Memory(options.projection)
        self.heads: dict[str, nn.Module] = {}
        self.drawn: _Drawn | None = None
        self.projected: Tensor | None = None
        """(B, projection): of transform 0 in the latest loss of this step, for `after_step`."""

    def build(self, model: nn.Module) -> nn.Module:
        """Leave the model as it is; make both heads for its features, on its device."""
        width = prod(model.feature_shape)  # pyright: ignore[reportArgumentType, reportCallIssue]
        outputs = {"equivariance": TRANSFORMS, "invariance": self.options.projection}
        like = next(model.parameters())
        self.heads = {
            name: perceptron(width, size).to(like.device, like.dtype)
            for name, size in outputs.items()
        }
        return model

    def extra_modules(self) -> dict[str, nn.Module]:
        return self.heads

    def before_step(self, batch: Batch) -> None:
        """Draw crops and negatives; a batch of episodes (reading F3 of AAL) needs none."""
        self.drawn = self.projected = None
        if isinstance(batch.targets, EpisodeTargets):
            return
        self.memory.reserve(batch.idx)
        self.drawn = _Drawn(
            draw_places(len(batch.x), batch.x.shape[-1], batch.x.device),
            self.memory.draw_negatives(batch.idx, self.options.negatives),
        )

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        """The sum of the three; of `objective` only the precision is used."""
        if self.drawn is None:
            raise RuntimeError("ier: before_step draws what the loss of a step needs")
        x = sixteen_transforms(x_adv, self.drawn.places)
        with getattr(objective, "autocast", nullcontext)():
            features = model.features(x)  # pyright: ignore[reportCallIssue]
            logits = model.network.classifier(features)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            named = self.heads["equivariance"](features)
            projected = self.heads["invariance"](features)
        count = len(batch.x)
        views = fp32(projected).unflatten(0, (TRANSFORMS, count))
        self.projected = views[0].detach()
        transforms = torch.arange(TRANSFORMS, device=x.device).repeat_interleave(count)
        rows = self.memory.rows
        stored, negatives = rows[batch.idx].to(views), rows[self.drawn.negatives].to(views)
        terms = {
            "loss_classes": functional.cross_entropy(
                fp32(logits), batch.targets.repeat(TRANSFORMS)
            ),
            "loss_equivariance": functional.cross_entropy(fp32(named), transforms),
            "loss_invariance": contrastive_loss(views, stored, negatives, self.options.temperature),
        }
        self.log = {name: term.detach() for name, term in terms.items()}
        return (
            terms["loss_classes"]
            + self.options.equivariance * terms["loss_equivariance"]
            + self.options.invariance * terms["loss_invariance"]
        )

    def after_step(self, batch: Batch, x_adv: Tensor) -> None:
        """Take the projections of this step into the memory."""
        if self.projected is not None:
            self.memory.update(batch.idx, self.projected, self.options.memory_momentum)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.rows = state["memory"].clone()


def perceptron(width: int, outputs: int) -> nn.Module:
    """(B, width) -> (B, outputs): two hidden layers of `width`, batch norm of the batch, ReLU."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [
            nn.Linear(width, width),
            nn.BatchNorm1d(width, track_running_stats=False),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Linear(width, outputs))
