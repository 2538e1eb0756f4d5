"""Every adversarial, loss and output of a detector's audit, made once and shared by the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aal_bench.aal.gradients import surfacing_sign
from aal_bench.attacks.linf import attacking, input_gradient, uniform_start
from aal_bench.audit.accounts import Accounts
from aal_bench.audit.bank import raise_if_broken
from aal_bench.audit.detection.subject import DetectionSubject
from aal_bench.audit.table import THRESHOLDS, Budget, Thresholds

if TYPE_CHECKING:
    from aal_bench.adapters.detection_stage import DetectionBatch
    from aal_bench.detection.objective import DetectionObjective, Targets


class Slopes(NamedTuple):
    """What one backward pass says at the images themselves."""

    loss: Tensor
    """(N,)"""
    gradient: list[Tensor]
    """Batch by batch, (B,3,H,W)."""


class Ascent(NamedTuple):
    """One run of PGD on all audited images."""

    loss: Tensor
    """(S+1, N): at the random start, then after each step."""
    best: list[Tensor]
    """Batch by batch (B,3,H,W): the iterate of the highest loss."""
    last: list[Tensor]
    """Likewise the last iterate."""

    @property
    def highest(self) -> Tensor:
        """(N,) loss of the best iterate; NaN where any was."""
        return self.loss.amax(0)


class DetectorBank(Accounts):
    """What the checks share about one detector under one budget.

    A loss is the detector's total of one image as if it were alone in its batch, a tensor (N,) in
    float32 on the CPU over all audited images; images are lists of batches on the model's device.
    """

    def __init__(
        self, subject: DetectionSubject, budget: Budget, thresholds: Thresholds = THRESHOLDS
    ) -> None:
        super().__init__(subject.seed)
        self.subject, self.budget, self.thresholds = subject, budget, thresholds

    # ---- what is shared ----------------------------------------------------------------------

    @property
    def x(self) -> list[Tensor]:
        """The audited images."""
        return [batch.x for batch in self.subject.batches]

    def slopes(self) -> Slopes:
        """Losses and gradients at the images.

        Raises:
            NoGradient: the detector cannot be differentiated.
        """
        return self.once("gradient", self._slopes)

    def fgsm(self) -> list[Tensor]:
        """FGSM's images: x + eps sign(gradient), in the box."""
        return self.moved(self.slopes().gradient, self.subject.eps)

    def fgsm_loss(self) -> Tensor:
        """(N,) loss of FGSM's images."""
        return self.once("fgsm", lambda: self.losses(self.fgsm()))

    def pgd(self) -> Ascent:
        """PGD of the budget's steps under the task's eps and step; fewer steps are its beginning.

        Raises:
            NoGradient: the detector cannot be differentiated.
        """
        subject, steps = self.subject, self.budget.detector_steps
        return self.once("pgd", lambda: self.ascend(subject.eps, subject.step, steps))

    def pgd_at(self, eps: float) -> Ascent:
        """PGD of the budget's sweep at another eps, its step the same share of it."""
        step = eps * self.subject.step / self.subject.eps
        return self.once(
            f"pgd {255 * eps:g}/255",
            lambda: self.ascend(eps, step, self.budget.detector_sweep_steps),
        )

    def outputs(self) -> list[Tensor]:
        """Everything that the head says of the images, (B,-1) batch by batch."""
        return self.once("outputs", lambda: self.answers(self.x))

    # ---- primitives, counted -----------------------------------------------------------------

    def losses(self, x: list[Tensor]) -> Tensor:
        """Loss (N,) of the images `x`."""
        found = []
        for batch, images in zip(self.subject.batches, x, strict=True):
            with self.asking(self.subject.model) as objective, torch.no_grad():
                found.append(objective(images, batch.targets, reduction="none").cpu())
        return torch.cat(found)

    def answers(self, x: list[Tensor]) -> list[Tensor]:
        """What the head says of the images `x`, (B,-1) batch by batch."""
        return [
            self.answer(images, batch.targets)
            for batch, images in zip(self.subject.batches, x, strict=True)
        ]

    def answer(self, x: Tensor, targets: Targets) -> Tensor:
        """What the head says of one batch, (B,-1); it is shown no annotation."""
        model = self.subject.model
        with self.asking(model) as objective, torch.no_grad():
            outputs = model.bbox_head(model.extract_feat(objective.space.inputs(x, targets.inside)))
        return torch.cat([level.flatten(1) for kind in outputs for level in kind], 1).float()

    def moved(self, direction: list[Tensor], length: float | list[Tensor]) -> list[Tensor]:
        """X + length sign(direction), in the box; padded borders stay."""
        lengths = length if isinstance(length, list) else [length] * len(direction)
        return [
            batch.targets.restored((batch.x + by * surfacing_sign(g)).clamp(0, 1), batch.x)
            for batch, g, by in zip(self.subject.batches, direction, lengths, strict=True)
        ]

    def ascend(self, eps: float, step: float, steps: int, model: Any = None) -> Ascent:
        """PGD from a uniform start, every loss kept; on another detector where one is given.

        One forward and one backward for each step, and one forward for the last iterate.

        Raises:
            NoGradient: the detector cannot be differentiated.
        """
        model = self.subject.model if model is None else model
        found = [
            self._guarded(lambda batch=batch: self._ascend(model, batch, eps, step, steps))
            for batch in self.subject.batches
        ]
        loss, best, last = zip(*found, strict=True)
        return Ascent(torch.cat(loss, 1), list(best), list(last))

    @contextmanager
    def asking(self, model: Any) -> Iterator[DetectionObjective]:
        """The objective of a detector in eval mode, its passes counted."""
        from aal_bench.detection.objective import DetectionObjective

        model.eval()
        with self.counting(model.backbone.conv1):
            yield DetectionObjective(model)

    def _slopes(self) -> Slopes:
        loss, gradient = [], []
        for batch in self.subject.batches:
            each, g = self._guarded(lambda batch=batch: self._slope(batch))
            loss.append(each)
            gradient.append(g)
        return Slopes(torch.cat(loss), gradient)

    def _slope(self, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def summed(x: Tensor) -> Tensor:
            each = objective(x, batch.targets, reduction="none")
            seen.append(each.detach().cpu())
            return each.sum()

        with (
            self.asking(self.subject.model) as objective,
            attacking(self.subject.model, bn="eval"),
        ):
            g = input_gradient(summed, batch.x)
        return seen[0], g

    def _ascend(
        self, model: Any, batch: DetectionBatch, eps: float, step: float, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, targets = batch
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(self.seed)
            x_adv = targets.restored(uniform_start(x, eps), x)
        losses: list[Tensor] = []
        best, highest = x_adv, x.new_full((len(x),), -torch.inf)
        with self.asking(model) as objective, attacking(model, bn="eval"):
            for number in range(steps + 1):
                x_adv = x_adv.detach().requires_grad_(number < steps)
                with torch.set_grad_enabled(number < steps):
                    each = objective(x_adv, targets, reduction="none")
                seen = each.detach()
                higher = seen > highest
                best = torch.where(higher[:, None, None, None], x_adv.detach(), best)
                highest = torch.where(higher, seen, highest)
                losses.append(seen.cpu())
                if number < steps:
                    (g,) = torch.autograd.grad(each.sum(), x_adv)
                    moved = x_adv.detach() + step * surfacing_sign(g)
                    moved = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)
                    x_adv = targets.restored(moved, x)
        return torch.stack(losses), best, x_adv.detach()

    def _guarded(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RuntimeError as error:
            raise_if_broken(error)
            raise
