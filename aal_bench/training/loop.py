"""The only training loop of our own.

What competes is the method; the loop is the same for all: autocast where the hardware has it,
channels_last, data on the device, fused SGD, no host synchronisation inside an epoch except one
finite-loss check every `CHECK_EVERY` steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.config import Run
from aal_bench.data.splits import Split
from aal_bench.errors import RunFailed, UserError
from aal_bench.files import write_text
from aal_bench.methods.base import Batch, Method, Objective
from aal_bench.methods.updates import Plain
from aal_bench.progress import Task, track
from aal_bench.training import checkpoint
from aal_bench.training.schedule import learning_rate

CHECK_EVERY = 20
"""Steps between checks that every loss so far was finite; each is one host synchronisation."""


class Setting(NamedTuple):
    """What the loop is given by an adapter."""

    run: Run
    model: nn.Module
    method: Method
    update: Plain
    make_objective: Callable[[nn.Module], Objective]
    train: Split
    validate: Callable[[nn.Module], dict[str, float]] | None
    """model -> ``val_clean``, ``val_pgd`` on the held-out part of the training data."""
    folder: Path


class Trained(NamedTuple):
    """What training left: the weights to evaluate, and the record."""

    last: dict[str, Tensor]
    best: dict[str, Tensor] | None
    record: dict[str, Any]


def seed_of(*parts: int) -> int:
    """Mix integers into one 63-bit seed, so that (seed, epoch) pairs never coincide."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = (mixed ^ part) * 0xBF58476D1CE4E5B9 % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


class Loop:
    """One run of training. `fit` continues from ``checkpoints/state.pt`` where there is one."""

    def __init__(self, setting: Setting) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        run = setting.run
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if run.precision == "bf16" else "no",
            cpu=run.device == "cpu",
        )
        if self.accelerator.num_processes > 1:
            raise UserError("training runs in one process so far: start it without a launcher")
        self.setting, self.run = setting, run
        self.device = torch.device(run.device)
        self.model = setting.model.to(self.device, memory_format=torch.channels_last)
        for module in setting.method.extra_modules().values():
            module.to(self.device, memory_format=torch.channels_last)
        options = run.task.train
        optimizer = torch.optim.SGD(
            setting.method.param_groups(self.model),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            fused=self.device.type in {"cpu", "cuda"},
        )
        self.network, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        if run.compile:
            self.network = torch.compile(self.network)
        self.objective = setting.make_objective(self.network)
        self.averaged = self._averaged()
        self.steps_per_epoch = -(-len(setting.train) // options.batch_size)
        self.steps = self.steps_per_epoch * options.epochs
        self.epoch = self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.seconds = 0.0
        self.passes: tuple[float, float] | None = None
        self._clear_sums()

    def _averaged(self) -> Any:
        if self.run.ema is None:
            return None
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        # Buffers are averaged too: batch norm's statistics must be those of the averaged weights.
        return AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(self.run.ema), use_buffers=True
        )

    def _clear_sums(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device, dtype=torch.float64)
        self.log_sums: dict[str, Tensor] = {}
        self.count = 0
        self.first_bad = torch.full((), -1, device=self.device, dtype=torch.int64)
        self.epoch_began = time.perf_counter()

    # ---- one step ----------------------------------------------------------------------------

    def take_step(self, batch: Batch) -> None:
        """before_step -> attack -> update -> after_step; the first step is counted."""
        for group in self.optimizer.param_groups:
            group["lr"] = batch.lr * group.get("lr_factor", 1.0)
        if self.passes is None:
            with counting_passes(self.model) as counted:
                loss = self._attack_and_update(batch)
            self.passes = (counted["forward"] / len(batch.idx), counted["backward"] / len(batch.idx))
        else:
            loss = self._attack_and_update(batch)
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self._account(loss)

    def _attack_and_update(self, batch: Batch) -> Tensor:
        method = self.setting.method
        method.before_step(batch)
        x_adv = method.attack(self.network, batch, self.objective)
        loss = self.setting.update(
            self.model,
            lambda: method.loss(self.network, batch, x_adv, self.objective),
            self.accelerator.backward,
            self._optimise,
            batch.progress,
        )
        method.after_step(batch, x_adv)
        return loss

    def _optimise(self) -> None:
        clip = self.run.task.train.grad_clip
        if clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _account(self, loss: Tensor) -> None:
        bad = (self.first_bad < 0) & ~torch.isfinite(loss)
        self.first_bad = torch.where(bad, self.step, self.first_bad)
        self.loss_sum += loss
        for name, value in self.setting.method.log.items():
            self.log_sums[name] = self.log_sums.get(name, 0.0) + value.detach()
        self.count += 1
        self.step += 1
        if self.step % CHECK_EVERY == 0:
            self._stop_when_not_finite()

    def _stop_when_not_finite(self) -> None:
        step = int(self.first_bad)
        if step >= 0:
            raise RunFailed(
                f"the loss is not finite at step {step} (epoch {step // self.steps_per_epoch + 1});"
                " lower train.lr or set train.grad_clip=1.0"
            )

    # ---- epochs ------------------------------------------------------------------------------

    def fit(self) -> Trained:
        """Train to the end, or from the last checkpoint to the end."""
        self._resume()
        options = self.run.task.train
        with track("train", self.steps) as progress:
            progress.skip(self.step)
            while self.epoch < options.epochs:
                self._run_epoch(progress)
        return self._trained()

    def _run_epoch(self, progress: Task) -> None:
        options, train = self.run.task.train, self.setting.train
        self.model.train()
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(seed_of(self.run.seed, self.epoch, 0))
        order = torch.randperm(len(train), generator=generator)
        batches = train.batches(
            order,
            options.batch_size,
            augment=options.augment,
            pad=options.pad,
            seed=seed_of(self.run.seed, self.epoch, 1),
            device=self.device,
            start=self.step - self.epoch * self.steps_per_epoch,
        )
        for images in batches:
            self.take_step(
                Batch(
                    x=images.x.contiguous(memory_format=torch.channels_last),
                    targets=images.y,
                    idx=images.idx,
                    epoch=self.epoch,
                    progress=self.step / self.steps,
                    lr=learning_rate(options, self.step, self.steps),
                )
            )
            progress.advance()
            every = options.checkpoint_every
            if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                self.seconds += time.perf_counter() - began
                began = time.perf_counter()
                self._save()
        self._stop_when_not_finite()
        self.seconds += time.perf_counter() - began
        self.epoch += 1
        row = self._row()
        self._validate(row)
        self.rows.append(row)
        self._clear_sums()
        self._save()
        progress.advance(0, _headline(row, options.epochs))

    def _row(self) -> dict[str, Any]:
        options = self.run.task.train
        return {
            "epoch": self.epoch,
            "step": self.step,
            "loss": float(self.loss_sum) / self.count,
            "lr": learning_rate(options, self.step - 1, self.steps),
            "seconds": round(time.perf_counter() - self.epoch_began, 3),
            **{name: float(value) / self.count for name, value in self.log_sums.items()},
        }

    def _validate(self, row: dict[str, Any]) -> None:
        options = self.run.task.train
        due = self.epoch % options.validate_every == 0 or self.epoch == options.epochs
        if self.setting.validate is None or not due:
            return
        evaluated = self.averaged.module if self.averaged is not None else self.model
        # Validation draws random starts of its own: it must not shift the training's.
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            row |= self.setting.validate(evaluated)
        if self.best is None or row["val_pgd"] > self.best[0]:
            self.best = (row["val_pgd"], self._weights())

    def _weights(self) -> dict[str, Tensor]:
        source = self.averaged.module if self.averaged is not None else self.model
        return {
            name: value.detach().cpu().contiguous().clone()
            for name, value in source.state_dict().items()
        }

    # ---- records -----------------------------------------------------------------------------

    @property
    def state_path(self) -> Path:
        """The resumable checkpoint."""
        return self.setting.folder / "checkpoints" / "state.pt"

    def _save(self) -> None:
        self._stop_when_not_finite()
        method = self.setting.method
        state = {
            "config": self.run.hash(),
            "seed": self.run.seed,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": {name: m.state_dict() for name, m in method.extra_modules().items()},
            "method": method.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "best": None if self.best is None else {"score": self.best[0], "model": self.best[1]},
            "rows": json.dumps(self.rows),
            "sums": {"loss": self.loss_sum, "count": self.count, "log": self.log_sums},
            "passes": None if self.passes is None else list(self.passes),
            "rng": checkpoint.rng_state(),
        }
        checkpoint.save(self.state_path, state)
        self._write_metrics()

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(self.setting.folder / "metrics.jsonl", lines)

    def _resume(self) -> None:
        if not self.state_path.exists():
            return
        state = checkpoint.load(self.state_path)
        if (state["config"], state["seed"]) != (self.run.hash(), self.run.seed):
            raise UserError(
                f"{self.state_path} belongs to another configuration: choose another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, module in self.setting.method.extra_modules().items():
            module.load_state_dict(state["extra"][name])
        self.setting.method.load_state_dict(state["method"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if state["best"] is not None:
            self.best = (state["best"]["score"], state["best"]["model"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.rows = json.loads(state["rows"])
        self.passes = None if state["passes"] is None else (state["passes"][0], state["passes"][1])
        sums = state["sums"]
        self.loss_sum = sums["loss"].to(self.device)
        self.log_sums = {name: value.to(self.device) for name, value in sums["log"].items()}
        self.count = sums["count"]
        checkpoint.set_rng_state(state["rng"])

    def _trained(self) -> Trained:
        train = self.run.task.train
        record = {
            "epochs": train.epochs,
            "steps": self.steps,
            "images": len(self.setting.train),
            "seconds": round(self.seconds, 2),
            "peak_memory_bytes": _peak_memory(self.device),
            "final": self.rows[-1] if self.rows else {},
            "best_epoch": _best_epoch(self.rows),
            "passes": None if self.passes is None else list(self.passes),
        }
        return Trained(self._weights(), None if self.best is None else self.best[1], record)


@contextmanager
def counting_passes(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count the images that go forward and backward through `model` inside the context."""
    counted = {"forward": 0, "backward": 0}

    def went_forward(_: nn.Module, __: Any, output: Tensor) -> None:
        counted["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(went_backward)

    def went_backward(gradient: Tensor) -> None:
        counted["backward"] += len(gradient)

    hook = model.register_forward_hook(went_forward)
    try:
        yield counted
    finally:
        hook.remove()


def _best_epoch(rows: list[dict[str, Any]]) -> int | None:
    validated = [row for row in rows if "val_pgd" in row]
    return max(validated, key=lambda row: (row["val_pgd"], -row["epoch"]))["epoch"] if validated else None


def _headline(row: dict[str, Any], epochs: int) -> str:
    text = f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}"
    if "val_pgd" in row:
        text += f"  val clean {row['val_clean']:.1%}  val PGD {row['val_pgd']:.1%}"
    return text


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
