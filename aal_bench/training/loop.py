"""The only training loop of our own.

What competes is the method; the loop is the same for all: autocast where the hardware has it,
channels_last, data on the device, fused SGD, no host synchronisation inside an epoch except one
finite-loss check every `CHECK_EVERY` steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from aal_bench.errors import RunFailed, UserError
from aal_bench.files import write_text
from aal_bench.methods.base import Batch
from aal_bench.progress import Task, track
from aal_bench.training import checkpoint, overfitting, record
from aal_bench.training.passes import counting_passes
from aal_bench.training.schedule import learning_rate
from aal_bench.training.step import Setting, Stepper
from aal_bench.training.sums import Sums

CHECK_EVERY = 20
"""Steps between checks that every loss so far was finite; each is one host synchronisation."""


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
    """One run of training. `fit` continues from ``checkpoints/state.pt`` where there is one.

    Raises:
        UserError: the update cannot work with the method, or several processes were launched.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.run = setting, setting.run
        self.options = setting.run.task.train
        self.device = torch.device(setting.run.device)
        setting.method.remember(len(setting.train))
        self.stepper = Stepper(setting)
        self.model = self.stepper.model
        self.steps_per_epoch = -(-len(setting.train) // self.options.batch_size)
        self.steps = self.steps_per_epoch * self.options.epochs
        self.epoch = self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.seconds = 0.0
        self.counted = [0, 0, 0]
        """Images that went forward, that went backward, and that were trained on, so far."""
        self.sums = Sums(self.device)
        self.watch: overfitting.Watch | None = None
        # Elsewhere than in classification the objective gives no image's verdict.
        classifies = setting.run.task.family == "classification"
        if self.options.watch_every and setting.method.attacks and classifies:
            self.watch = overfitting.Watch(setting, seed_of(self.run.seed, 0, 2))

    def fit(self) -> Trained:
        """Train to the end, or from the last checkpoint to the end.

        Raises:
            UserError: the folder's checkpoint is damaged or of another configuration.
            RunFailed: the loss or the weights became NaN or infinite, or the network collapsed and
                ``train.stop_on_overfitting`` is set.
        """
        checkpoint.clear_leftovers(self.state_path)
        if self.state_path.exists():
            self._resume()
        with track("train", self.steps) as progress:
            progress.skip(self.step)
            while self.epoch < self.options.epochs:
                self._run_epoch(progress)
        best = None if self.best is None else self.best[1]
        return Trained(self.stepper.weights(), best, self._record())

    def take_step(self, batch: Batch) -> None:
        """One step of training, its passes counted."""
        with counting_passes(self.setting.counted or self.stepper.network) as counted:
            loss = self.stepper.take(batch)
        spent = (counted["forward"], counted["backward"], len(batch.idx))
        self.counted = [a + b for a, b in zip(self.counted, spent, strict=True)]
        self.sums.add(self.step, loss, self.stepper.method.log)
        self.step += 1
        if self.step % CHECK_EVERY == 0:
            self._stop_on_bad_loss()

    @property
    def passes(self) -> list[float] | None:
        """Forwards and backwards per image and epoch, averaged over training; None before it."""
        forward, backward, images = self.counted
        return [forward / images, backward / images] if images else None

    def _run_epoch(self, progress: Task) -> None:
        self.model.train()
        self._lapped = time.perf_counter()
        every = self.options.checkpoint_every
        for batch in self._batches():
            self.take_step(batch)
            progress.advance()
            if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                self._lap()
                self._save()
        self._lap()
        self._stop_on_bad_loss()
        self.epoch += 1
        row = self._row()
        self._validate(row)
        self._look(row)
        self.rows.append(row)
        self.sums = Sums(self.device)
        self._save()
        progress.advance(0, record.headline(row, self.options.epochs))

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch: all of it, or what follows the step of the checkpoint."""
        options, phases = self.options, self.setting.phases
        train = self.setting.train if phases is None else phases(self.epoch)
        generator = torch.Generator().manual_seed(seed_of(self.run.seed, self.epoch, 0))
        order = torch.randperm(len(train), generator=generator)
        for images in train.batches(
            order,
            options.batch_size,
            augment=options.augment,
            pad=options.pad,
            seed=seed_of(self.run.seed, self.epoch, 1),
            device=self.device,
            start=self.step - self.epoch * self.steps_per_epoch,
        ):
            yield Batch(
                x=images.x.contiguous(memory_format=torch.channels_last),
                targets=images.y,
                idx=images.idx,
                aug=images.aug,
                epoch=self.epoch,
                progress=self.step / self.steps,
                lr=learning_rate(options, self.step, self.steps),
            )

    def _lap(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._lapped
        self.sums.seconds += now - self._lapped
        self._lapped = now

    def _row(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "lr": learning_rate(self.options, self.step - 1, self.steps),
            "seconds": round(self.sums.seconds, 3),
            **self.sums.means(),
        }

    def _validate(self, row: dict[str, Any]) -> None:
        due = self.epoch % self.options.validate_every == 0 or self.epoch == self.options.epochs
        if self.setting.validate is None or not due:
            return
        # Validation draws random starts of its own: it must not shift the training's.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            row |= self.setting.validate(self.stepper.evaluated)
        reached = row[record.selected_by(row)]
        if self.best is None or reached > self.best[0]:
            self.best = (reached, self.stepper.weights())

    # ---- overfitting -------------------------------------------------------------------------

    def _look(self, row: dict[str, Any]) -> None:
        """Say once that the network collapsed; the checkpoint stays that of the epoch before."""
        watch = self.watch
        if watch is None or not watch.due(self.epoch):
            return
        known = watch.found
        row |= watch.look(self.stepper.evaluated, self.epoch)
        if watch.found is None or known is not None:
            return
        seen = f"catastrophic overfitting at epoch {self.epoch}: {overfitting.told(watch.found)}"
        if self.options.stop_on_overfitting:
            self.rows.append(row)
            self._write_metrics()
            raise RunFailed(
                f"{seen}; train with a smaller eps or with pgd, or set"
                " train.stop_on_overfitting=false"
            )
        # Standard error: where it is a terminal, its progress bar lets the line pass above it.
        print(f"warning: {seen}", file=sys.stderr, flush=True)

    # ---- divergence --------------------------------------------------------------------------

    def _stop_on_bad_loss(self) -> None:
        bad = self.sums.bad_step()
        if bad is not None:
            self._stop("loss is", bad)

    def _stop(self, what: str, step: int) -> NoReturn:
        raise RunFailed(
            f"the {what} not finite at step {step + 1} of {self.steps}"
            f" (epoch {step // self.steps_per_epoch + 1});"
            " lower train.lr or set train.grad_clip=1.0"
        )

    # ---- records -----------------------------------------------------------------------------

    @property
    def state_path(self) -> Path:
        """The resumable checkpoint."""
        return self.setting.folder / "checkpoints" / "state.pt"

    def _save(self) -> None:
        """Write the checkpoint and the metrics; a diverged state is never written."""
        self._stop_on_bad_loss()
        if not self.stepper.all_finite():
            self._stop("weights are", self.step - 1)
        state = {
            "config": self.run.hash(),
            "seed": self.run.seed,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "best": None if self.best is None else list(self.best),
            "rows": json.dumps(self.rows),
            "sums": self.sums.state_dict(),
            "counted": self.counted,
            "watch": None if self.watch is None else self.watch.state_dict(),
            "rng": checkpoint.rng_state(self.device),
            **self.stepper.state_dict(),
        }
        checkpoint.save(self.state_path, state)
        self._write_metrics()

    def _resume(self) -> None:
        state = checkpoint.load(self.state_path)
        if (state["config"], state["seed"]) != (self.run.hash(), self.run.seed):
            raise UserError(
                f"{self.state_path} belongs to another configuration: choose another --out"
            )
        self.stepper.load_state_dict(state)
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.rows, self.counted = json.loads(state["rows"]), state["counted"]
        self.sums.load_state_dict(state["sums"])
        if self.watch is not None and state.get("watch") is not None:
            self.watch.load_state_dict(state["watch"])
        checkpoint.set_rng_state(state["rng"], self.device)
        # The process may have been killed between the checkpoint and the metrics.
        self._write_metrics()

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(self.setting.folder / "metrics.jsonl", lines)

    def _record(self) -> dict[str, Any]:
        best = record.best_epoch(self.rows)
        evaluated = best if self.options.select == "best" and best else self.epoch
        return {
            "epochs": self.options.epochs,
            "steps": self.steps,
            "images": len(self.setting.train),
            "seconds": round(self.seconds, 2),
            "peak_memory_bytes": record.peak_memory(self.device),
            "final": self.rows[-1],
            "best_epoch": best,
            "passes": self.passes,
            "overfitting": None if self.watch is None else self.watch.record(evaluated),
        }
