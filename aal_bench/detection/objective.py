"""The loss of a detector as training and attacks share it: total, of the classes, of the boxes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from mmdet.models.utils import unpack_gt_instances
from torch import Tensor

from aal_bench.detection.pixels import PixelSpace, inside_of
from aal_bench.detection.wrapped import bare

Part = Literal["total", "cls", "loc"]


class Targets(NamedTuple):
    """What a batch's loss is taken against."""

    samples: list[Any]
    """B ``DetDataSample`` with ground truth in the coordinates of the images fed."""
    inside: Tensor | None
    """(B, 1, H, W), False on padded borders; None: no padding."""

    def restored(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x_adv` with the border of `x`, which a random start moves too."""
        return x_adv if self.inside is None else torch.where(self.inside, x_adv, x)


def targets_of(samples: list[Any], inputs: Tensor) -> Targets:
    """The targets of a preprocessed batch."""
    return Targets(samples, inside_of(samples, inputs.shape, inputs.device))


class DetectionObjective:
    """objective(x, targets, reduction) of a single-stage detector, x (B, 3, H, W) in [0, 1].

    ``mean`` is the detector's own loss: every image's sum over its priors, divided by the number of
    positive priors of the whole batch. ``sum`` and ``none`` take each image as if it were alone in
    its batch, divided by its own positives, so that its gradient does not depend on the others. An
    image without objects has no positive prior, and SSD's hard-negative mining then mines none: its
    loss and gradient are zero.

    Args:
        detector: a single-stage detector of MMDetection.
        part: ``total``; ``cls``, the classes' loss; ``loc``, the boxes'.
        autocast: makes the context of the network's forward; the loss itself is in float32.
    """

    def __init__(
        self,
        detector: Any,
        part: Part = "total",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.detector, self._part, self._autocast = detector, part, autocast
        self.space = PixelSpace(detector.data_preprocessor)
        self.parts: dict[str, Tensor] = {}
        """Of the latest call with ``mean``: ``cls`` and ``loc``, detached."""

    def part(self, name: Part) -> DetectionObjective:
        """The same detector's loss, `name` of it."""
        return DetectionObjective(self.detector, name, self._autocast)

    def __call__(self, x: Tensor, targets: Targets, reduction: str = "mean") -> Tensor:
        outputs = self._outputs(self.space.inputs(x, targets.inside))
        if reduction == "mean":
            return self._of_batch(outputs, targets)
        each = self._of_images(outputs, targets)
        return each if reduction == "none" else each.sum()

    def losses(self, inputs: Tensor, samples: list[Any]) -> dict[str, Any]:
        """MMDetection's losses of normalised `inputs`, in which nothing is attacked."""
        truth, ignored, metas = unpack_gt_instances(samples)
        return bare(self.detector.bbox_head).loss_by_feat(
            *self._outputs(inputs), truth, metas, ignored
        )

    def parts_of(self, x: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """The losses of the classes and of the boxes, each summed over images, of one forward."""
        outputs = self._outputs(self.space.inputs(x, targets.inside))
        each = self._losses_of_images(outputs, targets)
        cls, loc = (
            torch.stack([self._summed(one, p) for one in each]).sum() for p in ("cls", "loc")
        )
        return cls, loc

    def _outputs(self, inputs: Tensor) -> tuple[Any, ...]:
        detector = self.detector
        with self._autocast():
            outputs = detector.bbox_head(detector.extract_feat(inputs))
        return tuple(
            [level.float() if _half(level) else level for level in kind] for kind in outputs
        )

    def _of_batch(self, outputs: tuple[Any, ...], targets: Targets) -> Tensor:
        head = bare(self.detector.bbox_head)
        truth, ignored, metas = unpack_gt_instances(targets.samples)
        losses = head.loss_by_feat(*outputs, truth, metas, ignored)
        self.parts = {part: self._summed(losses, part).detach() for part in ("cls", "loc")}
        return self._summed(losses, self._part)

    def _of_images(self, outputs: tuple[Any, ...], targets: Targets) -> Tensor:
        each = self._losses_of_images(outputs, targets)
        return torch.stack([self._summed(losses, self._part) for losses in each])

    def _losses_of_images(self, outputs: tuple[Any, ...], targets: Targets) -> list[dict[str, Any]]:
        truth, ignored, metas = unpack_gt_instances(targets.samples)
        each = []
        for i in range(len(targets.samples)):
            own = [[level[i : i + 1] for level in kind] for kind in outputs]
            one = slice(i, i + 1)
            each.append(
                bare(self.detector.bbox_head).loss_by_feat(
                    *own, truth[one], metas[one], ignored[one]
                )
            )
        return each

    def _summed(self, losses: dict[str, Any], part: str) -> Tensor:
        if part == "total":
            return self.detector.parse_losses(losses)[0]
        chosen = {
            name: value for name, value in losses.items() if ("cls" in name) == (part == "cls")
        }
        return self.detector.parse_losses(chosen)[0]


def _half(level: Tensor) -> bool:
    return level.dtype in (torch.bfloat16, torch.float16)
