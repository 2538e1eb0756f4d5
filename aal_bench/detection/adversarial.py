"""The attack inside a detector's training step: the very methods of classification, on its loss."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aal_bench.detection.objective import DetectionObjective, Targets, targets_of
from aal_bench.detection.pixels import PixelSpace
from aal_bench.errors import UserError
from aal_bench.methods.base import Batch, Method
from aal_bench.methods.updates import Plain


class Clock(NamedTuple):
    """Where training is."""

    epoch: int = 0
    progress: float = 0.0
    """In [0, 1]."""
    lr: float = 0.0
    """Of this step, warm-up and scaling included."""


class Adversarial:
    """What a detector trains with: a method, its update and the precision of the forward passes.

    Args:
        method: attacks and states the loss.
        update: what happens around the optimiser step.
        bf16: autocast the network's passes to bfloat16; the loss stays in float32.
        channels_last: lay out so the images; and the weights, by whoever arms the detector.
    """

    def __init__(
        self, method: Method, update: Plain, bf16: bool = False, channels_last: bool = False
    ) -> None:
        update.check(method)
        self.method, self.update = method, update
        self.bf16 = bf16
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def owns_step(self) -> bool:
        """Whether it must stand where the optimiser steps, and not only where the loss is taken."""
        return type(self.update) is not Plain or self.method.replays > 1

    def objective(self, detector: Any) -> DetectionObjective:
        """The detector's loss under this precision."""
        kind = next(detector.parameters()).device.type
        if not self.bf16:
            return DetectionObjective(detector, autocast=nullcontext)
        return DetectionObjective(detector, autocast=lambda: torch.autocast(kind, torch.bfloat16))

    def loss(self, detector: Any, inputs: Tensor, samples: list[Any]) -> dict[str, Tensor]:
        """The losses of a preprocessed batch, under attack where the method attacks.

        ``after_step`` of the method is called before the optimiser's step: the batch is over here.

        Raises:
            UserError: the method or its update owns the optimiser's step, which plain data-parallel
                training does not hand over.
        """
        if self.owns_step:
            raise UserError(
                f"{self._owner} owns the optimiser step: train in one process, or with"
                " model_wrapper_cfg = dict(type='MMSeparateDistributedDataParallel')"
            )
        objective = self.objective(detector)
        if _is_clean(self.method):
            # Nothing to do in pixel space: the very inputs and losses of MMDetection.
            return objective.losses(inputs.contiguous(memory_format=self.memory_format), samples)
        batch, x_adv = self._attacked(detector, objective, inputs, samples)
        loss = self.method.loss(detector, batch, x_adv, objective)
        self.method.after_step(batch, x_adv)
        return {"loss_total": loss, **self._log(objective)}

    def step(
        self, detector: Any, inputs: Tensor, samples: list[Any], optimizer: Any
    ) -> dict[str, Tensor]:
        """One whole training step, optimiser included (an MMEngine ``OptimWrapper``)."""
        objective = self.objective(detector)
        batch, x_adv = self._attacked(detector, objective, inputs, samples)

        def descend() -> None:
            optimizer.step()
            optimizer.zero_grad()

        loss = inputs.new_zeros(())
        for _ in range(self.method.replays):
            loss = self.update(
                detector,
                lambda: self.method.loss(detector, batch, x_adv, objective),
                optimizer.backward,
                descend,
                batch.progress,
                list(self.method.extra_modules().values()),
            )
            self.method.after_replay(batch)
        self.method.after_step(batch, x_adv)
        return {"loss": loss, **self._log(objective)}

    @property
    def _owner(self) -> str:
        name = self.method if self.method.replays > 1 else self.update
        return type(name).__name__

    def _attacked(
        self, detector: Any, objective: DetectionObjective, inputs: Tensor, samples: list[Any]
    ) -> tuple[Batch, Tensor]:
        batch = self._batch(objective.space, inputs, targets_of(samples, inputs))
        self.method.before_step(batch)
        x_adv = self.method.attack(detector, batch, objective)
        return batch, batch.targets.restored(x_adv, batch.x)

    def _batch(self, space: PixelSpace, inputs: Tensor, targets: Targets) -> Batch:
        now = clock()
        x = space.pixels(inputs).contiguous(memory_format=self.memory_format)
        return Batch(
            x=x,
            targets=targets,
            idx=torch.arange(len(x), device=x.device),
            epoch=now.epoch,
            progress=now.progress,
            lr=now.lr,
        )

    def _log(self, objective: DetectionObjective) -> dict[str, Tensor]:
        # No name may hold "loss": MMEngine would add it to what is descended.
        return {**objective.parts, **{name: v.detach() for name, v in self.method.log.items()}}


def _is_clean(method: Method) -> bool:
    """Whether a method leaves batch and loss as they are, and asks for no step."""
    kept = ("attack", "loss", "before_step", "after_step")
    same = all(getattr(type(method), name) is getattr(Method, name) for name in kept)
    return same and not method.attacks


def clock() -> Clock:
    """Where the current Runner is; the start where there is none."""
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    steps = hub.get_info("max_iters")
    if steps is None or "train/lr" not in hub.log_scalars:
        return Clock()
    lr = float(hub.get_scalar("train/lr").current())
    return Clock(int(hub.get_info("epoch")), int(hub.get_info("iter")) / steps, lr)
