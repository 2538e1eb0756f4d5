"""MMEngine hooks: a loss that is not finite ends the run; what a resumed run must find again."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from aal_bench.data.augment import mixed_seed
from aal_bench.detection.wrapped import bare
from aal_bench.errors import RunFailed

CHECK_EVERY = 20
"""Steps between checks, each of which waits for the device."""


@HOOKS.register_module()
class StopOnBadLoss(Hook):
    """Ends training at the first loss that is NaN or infinite, before it can be saved.

    Raises:
        RunFailed: names the step and the last epoch that was saved.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._first_bad: torch.Tensor | None = None

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Note the step where its loss is bad; look every so often."""
        loss = outputs["loss"].detach()
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=loss.device, dtype=torch.int64)
        bad = (self._first_bad < 0) & ~torch.isfinite(loss)
        self._first_bad = torch.where(bad, runner.iter, self._first_bad)
        if (runner.iter + 1) % CHECK_EVERY == 0:
            self._look(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Look before the epoch is saved."""
        self._look(runner)
        state = runner.model.state_dict()
        floats = [value for value in state.values() if value.is_floating_point()]
        if not bool(torch.stack([value.isfinite().all() for value in floats]).all()):
            self._stop(runner, "weights are", runner.iter - 1)

    def _look(self, runner: Any) -> None:
        if self._first_bad is not None and int(self._first_bad) >= 0:
            self._stop(runner, "loss is", int(self._first_bad))

    def _stop(self, runner: Any, what: str, step: int) -> None:
        saved = f"epoch {runner.epoch} is saved" if runner.epoch else "no epoch is saved"
        raise RunFailed(
            f"the {what} not finite at step {step + 1} of {runner.max_iters}"
            f" (epoch {runner.epoch + 1}; {saved}); lower train.lr, or train.grad_clip, or raise"
            " train.warmup_epochs"
        )


@HOOKS.register_module()
class Resumable(Hook):
    """Seeds every epoch, and keeps a method's own state in the checkpoint.

    A run that was killed continues at the last epoch as if nothing had happened: the same order,
    augmentation (`seeded`), random starts and perturbations.
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Any) -> None:
        """Seed torch and the data set by (seed, epoch)."""
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, "epoch"):
            dataset.epoch = runner.epoch
        seed = mixed_seed(mixed_seed(runner.seed, runner.epoch), runner.rank)
        torch.manual_seed(seed % 2**63)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the method's state."""
        method = _method(runner)
        if method is not None:
            checkpoint["aal_bench"] = method.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        method = _method(runner)
        if method is not None and "aal_bench" in checkpoint:
            method.load_state_dict(checkpoint["aal_bench"])


def _method(runner: Any) -> Any:
    adversarial = getattr(bare(runner.model), "adversarial", None)
    return None if adversarial is None else adversarial.method
