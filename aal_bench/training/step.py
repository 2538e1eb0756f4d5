"""One step of training, and everything that it changes: weights, optimiser, average, method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.config import Run, Train
from aal_bench.data.splits import Split
from aal_bench.errors import UserError
from aal_bench.methods.base import Batch, Method, Objective
from aal_bench.methods.updates import Plain

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim.swa_utils import AveragedModel


class Setting(NamedTuple):
    """What training is given by an adapter."""

    run: Run
    model: nn.Module
    method: Method
    update: Plain
    make_objective: Callable[[nn.Module], Objective]
    train: Split
    validate: Callable[[nn.Module], dict[str, float]] | None
    """model -> ``val_clean``, ``val_pgd`` on the held-out part of the training data."""
    folder: Path
    phases: Callable[[int], Split] | None = None
    """The data of each epoch where they differ; all take as many steps as `train`."""
    counted: nn.Module | None = None
    """The part of `model` whose passes are counted; None: all of it."""


class Stepper:
    """The network on its device with autocast, channels_last and fused SGD; takes single steps.

    Raises:
        UserError: the update cannot work with the method, or several processes were launched.
    """

    def __init__(self, setting: Setting) -> None:
        run, train = setting.run, setting.run.task.train
        self.method, self.update = setting.method, setting.update
        self.update.check(self.method)
        self.accelerator = accelerator_for(run)
        device = torch.device(run.device)
        self.model = setting.model
        for module in (self.model, *self.method.extra_modules().values()):
            module.to(device=device).to(memory_format=torch.channels_last)
        self.others = list(self.method.extra_modules().values())
        """Networks of the method's own, trained beside the model."""
        optimizer = make_optimizer(train, self.method.param_groups(self.model))
        self.network: nn.Module
        self.network, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        if set(self.method.companions()) - set(self.method.extra_modules()):
            raise UserError("networks beside the model are for images with labels, so far")
        for name in self.method.companions():
            # The same precision as the network's: autocast is put around its forward pass.
            self.accelerator.prepare_model(self.method.extra_modules()[name])
        if run.compile:
            self.network = torch.compile(self.network)  # pyright: ignore[reportAttributeAccessIssue]
        self.objective = setting.make_objective(self.network)
        self.averaged = averaged(self.model, run.ema)
        self.grad_clip = train.grad_clip

    def take(self, batch: Batch) -> Tensor:
        """before_step -> attack -> update -> after_step; returns the loss, not synchronised."""
        for group in self.optimizer.param_groups:
            group["lr"] = batch.lr * group.get("lr_factor", 1.0)
        method = self.method
        method.before_step(batch)
        x_adv = method.attack(self.network, batch, self.objective)
        loss = batch.x.new_zeros(())
        for _ in range(method.replays):
            loss = self.update(
                self.model,
                lambda: method.loss(self.network, batch, x_adv, self.objective),
                self.accelerator.backward,
                self._optimise,
                batch.progress,
                self.others,
            )
            method.after_replay(batch)
        method.after_step(batch, x_adv)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return loss

    def _optimise(self) -> None:
        if self.grad_clip is not None:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.accelerator.clip_grad_norm_(trained, self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate: the average where there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def weights(self) -> dict[str, Tensor]:
        """A copy of the evaluated network's state on the CPU, contiguous."""
        return {
            name: value.detach().cpu().contiguous().clone()
            for name, value in self.evaluated.state_dict().items()
        }

    def all_finite(self) -> bool:
        """Whether no weight and no running statistic is NaN or infinite; waits for the device."""
        networks = (self.model, *self.others)
        values = [value for network in networks for value in network.state_dict().values()]
        floats = [value for value in values if value.is_floating_point()]
        return bool(torch.stack([value.isfinite().all() for value in floats]).all())

    def state_dict(self) -> dict[str, Any]:
        """Everything that `take` changes, random generators apart."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": {name: m.state_dict() for name, m in self.method.extra_modules().items()},
            "method": self.method.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, module in self.method.extra_modules().items():
            module.load_state_dict(state["extra"][name])
        self.method.load_state_dict(state["method"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])


def make_optimizer(train: Train, weights: Any) -> torch.optim.Optimizer:
    """The optimiser of a task's ``[train]``, one kernel for all weights."""
    common = {"lr": train.lr, "weight_decay": train.weight_decay, "fused": True}
    if train.optimizer == "adam":
        return torch.optim.Adam(weights, betas=(train.momentum, 0.999), **common)
    return torch.optim.SGD(weights, momentum=train.momentum, nesterov=train.nesterov, **common)


def accelerator_for(run: Run) -> Accelerator:
    """The accelerate engine of one run: its precision, on whatever device the run names.

    Raises:
        UserError: several processes were launched.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate keeps one state per process: an earlier run's precision would win otherwise.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if run.precision == "bf16" else "no",
        cpu=run.device == "cpu",
        device_placement=False,  # its own choice is the first GPU, whatever --device says
    )
    if accelerator.num_processes > 1:
        raise UserError("training runs in one process so far: start it without a launcher")
    return accelerator


def averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of `model`, started at its first update; None without decay."""
    if decay is None:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    # Buffers are averaged too: batch norm's statistics must be those of the averaged weights.
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
