"""What a run keeps of MMEngine's training: progress, metrics, the best weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from aal_bench import environment
from aal_bench.config import Run
from aal_bench.detection.wrapped import bare, weights_of
from aal_bench.files import replacing, write_text
from aal_bench.training import record
from aal_bench.training.passes import counting_passes
from aal_bench.training.sums import Sums

FIELD = {"pascal_voc/mAP": "val_map", "coco/bbox_mAP": "val_map"}
"""MMEngine's name of a metric -> ours."""
NAMES = {"loss_cls": "cls", "loss_bbox": "loc"}
"""SSD's name of a part of the loss -> ours."""


class Keeper(Hook):
    """The run's own record: progress, a row of ``metrics.jsonl`` per epoch, the best weights."""

    priority = "LOW"

    def __init__(self, run: Run, folder: Path, progress: Any) -> None:
        self.run, self.folder, self.progress = run, folder, progress
        self.options = run.task.train
        self.rows: list[dict[str, Any]] = []
        self.passes: list[float] | None = None
        self.seconds = 0.0
        self.best: float | None = None

    @property
    def best_path(self) -> Path:
        """The weights of the epoch of highest validation mAP."""
        return self.folder / "checkpoints" / "best.pt"

    def before_train(self, runner: Any) -> None:
        """Say what was done earlier; validate an epoch that was saved but not validated."""
        self.progress.skip(runner.iter)
        last = self.rows[-1] if self.rows else None
        alone = environment.processes() == 1  # the others would have to join in
        if alone and last is not None and self._due(last["epoch"]) and "val_map" not in last:
            runner.val_loop.run()

    def before_train_epoch(self, runner: Any) -> None:
        """Begin the sums, and count the passes of the first step."""
        self.sums = Sums(next(runner.model.parameters()).device)
        self._began = time.perf_counter()
        self._counting = counting_passes(bare(bare(runner.model).backbone).conv1)
        self._counted = self._counting.__enter__()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Add up; nothing waits for the device."""
        if batch_idx == 0:
            self._counting.__exit__(None, None, None)
            images = len(data_batch["inputs"])
            self.passes = [self._counted[way] / images for way in ("forward", "backward")]
        own = {"loss", "loss_total"}
        logged = {name: value for name, value in (outputs or {}).items() if name not in own}
        logged = {NAMES.get(str(name), str(name)): value for name, value in logged.items()}
        self.sums.add(runner.iter, outputs["loss"].detach(), logged)
        self.progress.advance()

    def after_train_epoch(self, runner: Any) -> None:
        """Write the epoch's row, before it is saved."""
        seconds = time.perf_counter() - self._began
        self.seconds += seconds
        row = {
            "epoch": runner.epoch + 1,
            "step": runner.iter,
            "lr": float(runner.message_hub.get_scalar("train/lr").current()),
            "seconds": round(seconds, 3),
            **self.sums.means(),
        }
        self.rows.append(row)
        self._write()
        self._tell(row)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Add the validation's mAP to the row; keep the weights if it is the best."""
        # COCO's metric says nothing where nothing was detected.
        found = next((value for name, value in (metrics or {}).items() if name in FIELD), 0.0)
        row = self.rows[-1]
        row["val_map"] = float(found)
        if self.best is None or row["val_map"] > self.best:
            self.best = row["val_map"]
            with replacing(self.best_path) as handle:
                torch.save(weights_of(runner.model), handle)
        self._write()
        self._tell(row)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """What a resumed run must know of the epochs before."""
        checkpoint["keeper"] = {
            "rows": json.dumps(self.rows),
            "seconds": self.seconds,
            "passes": self.passes,
        }

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Take the rows of the epochs before; the file may hold the last one's validation."""
        kept = checkpoint["keeper"]
        self.rows, self.seconds = json.loads(kept["rows"]), kept["seconds"]
        self.passes = kept["passes"]
        path = self.folder / "metrics.jsonl"
        written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for own, line in zip(self.rows, written, strict=False):
            row = json.loads(line)
            if row["epoch"] == own["epoch"] and "val_map" in row:
                own["val_map"] = row["val_map"]
        validated = [row["val_map"] for row in self.rows if "val_map" in row]
        self.best = max(validated) if validated and self.best_path.exists() else None
        self._write()

    def record(self, steps: int, images: int) -> dict[str, Any]:
        """What the run's record says of training."""
        device = torch.device(self.run.device)
        return {
            "epochs": self.options.epochs,
            "steps": steps,
            "images": images,
            "seconds": round(self.seconds, 2),
            "peak_memory_bytes": record.peak_memory(device),
            "final": self.rows[-1],
            "best_epoch": record.best_epoch(self.rows),
            "passes": self.passes,
            "lr": self.scaled_lr,
        }

    @property
    def scaled_lr(self) -> float:
        """The rate after warm-up: the task's, scaled by images per step / base_batch."""
        detection = self.run.task.detection
        assert detection is not None
        images = self.options.batch_size * environment.processes()
        return self.options.lr * images / detection.base_batch

    def _due(self, epoch: int) -> bool:
        every = self.options.validate_every
        return bool(self.options.validation) and (
            epoch % every == 0 or epoch == self.options.epochs
        )

    def _write(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(self.folder / "metrics.jsonl", lines)

    def _tell(self, row: dict[str, Any]) -> None:
        self.progress.advance(0, record.headline(row, self.options.epochs))
