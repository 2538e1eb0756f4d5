"""Training by MMEngine's Runner: its loop, hooks, checkpoints and launcher; ours is the record."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import init_dist
from mmengine.hooks import Hook
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import distributed, nn

from aal_bench import environment
from aal_bench.config import Run
from aal_bench.detection import mmconfig
from aal_bench.detection.adversarial import Adversarial
from aal_bench.detection.checked import dropped, sentence
from aal_bench.detection.wrapped import bare, weights_of
from aal_bench.errors import UserError
from aal_bench.files import replacing, write_text
from aal_bench.methods.updates import Plain
from aal_bench.progress import track
from aal_bench.training import record
from aal_bench.training.loop import Trained
from aal_bench.training.passes import counting_passes
from aal_bench.training.sums import Sums

FIELD = {"pascal_voc/mAP": "val_map", "coco/bbox_mAP": "val_map"}


OWN_NOTICES = ('"FileClient" will be', '"HardDiskBackend" is')
"""MMEngine's checkpoint hook calls what MMEngine calls deprecated."""


class QuietRunner(Runner):
    """MMEngine's Runner; what it says goes to its log file, and to the terminal only warnings."""

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """In one process the detector stays on the run's device: MMEngine would take a GPU."""
        if self.distributed and self.cfg.device != "cpu":
            return super().wrap_model(model_wrapper_cfg, model)
        model = model.to(self.cfg.device)
        if not self.distributed:
            return model
        kind: Any = (model_wrapper_cfg or {}).get("type", "MMDistributedDataParallel")
        wrapper: Any = MODEL_WRAPPERS.get(kind)
        return wrapper(module=model, broadcast_buffers=False)

    def build_logger(self, *args: Any, **options: Any) -> Any:
        logger = super().build_logger(*args, **options)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
        logger.addFilter(lambda record: not record.getMessage().startswith(OWN_NOTICES))
        return logger


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
        logged = {
            name: value for name, value in outputs.items() if name not in {"loss", "loss_total"}
        }
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


def train(run: Run, config: Any, detector: Any, adversarial: Adversarial, folder: Path) -> Trained:
    """Train `detector` as `config` says, or continue from the folder's last epoch.

    Args:
        run: the resolved configuration.
        config: of `mmconfig.resolved`.
        detector: an ``AttackedSingleStageDetector`` after its method's surgery.
        adversarial: what it trains with.
        folder: of the run; MMEngine's files go where the config says.

    Raises:
        RunFailed: loss or weights became NaN or infinite.
    """
    detector.adversarial = adversarial
    config.launcher = _join(run.device)
    if adversarial.owns_step and environment.processes() > 1:
        if type(adversarial.update) is not Plain:
            raise UserError("--update awp on a detector trains in one process so far")
        # Plain data-parallel training calls no detector's train_step.
        config.model_wrapper_cfg = {"type": "MMSeparateDistributedDataParallel"}
    loader = QuietRunner.build_dataloader(config.train_dataloader, seed=run.seed)
    told = sentence("train", dropped(loader.dataset.dataset))  # pyright: ignore
    if told and environment.rank() == 0:
        print(f"data      {told}", flush=True)
    images = len(loader.dataset)  # pyright: ignore[reportArgumentType]
    if -(-images // environment.processes()) % config.train_dataloader.batch_size == 1:
        config.train_dataloader.drop_last = True  # a batch of one
        loader = QuietRunner.build_dataloader(config.train_dataloader, seed=run.seed)
    mmconfig.warm_up(config, run.task.train, len(loader))
    config.resume = any(Path(config.work_dir).glob("epoch_*.pth"))
    detector.to(memory_format=adversarial.memory_format)
    steps = len(loader) * run.task.train.epochs
    with track("train", steps) as progress:
        keeper = Keeper(run, folder, progress)
        # Of several processes the first keeps the record.
        runner = _runner(config, detector, loader, [keeper] if environment.rank() == 0 else [])
        try:
            runner.train()
        except RuntimeError as error:
            # A scheduler's SIGTERM goes to the loader's processes too, and their end comes first.
            if "is killed by signal: Terminated" in str(error):
                raise KeyboardInterrupt from None
            raise
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if environment.rank():  # the first process has the record
        return Trained(weights_of(runner.model), None, {})
    best = None
    if keeper.best is not None:
        best = torch.load(keeper.best_path, map_location="cpu", weights_only=True)
    return Trained(weights_of(runner.model), best, keeper.record(steps, images))


def _join(device: str) -> str:
    """Meet the launcher's other processes, if any; returns MMEngine's name for the launcher.

    Before the loader is built, which cuts its data by their number. MMEngine would ask for a GPU.
    """
    if environment.processes() == 1:
        return "none"
    if not distributed.is_initialized():
        if device == "cpu":
            distributed.init_process_group("gloo")
        else:
            init_dist("pytorch", backend="nccl")
    return "pytorch"


def _runner(config: Any, detector: nn.Module, loader: Any, hooks: list[Hook]) -> Runner:
    given = (
        *("work_dir", "val_dataloader", "train_cfg", "val_cfg", "auto_scale_lr"),
        *("optim_wrapper", "param_scheduler", "val_evaluator", "default_hooks", "load_from"),
        *("resume", "launcher", "env_cfg", "log_processor", "log_level", "visualizer"),
        *("default_scope", "randomness"),
    )
    return QuietRunner(
        model=detector,
        train_dataloader=loader,
        custom_hooks=[*config.custom_hooks, *hooks],
        cfg=config,
        **{name: config.get(name) for name in given},
    )
