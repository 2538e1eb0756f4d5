"""Training by MMEngine's Runner: its loop, hooks, checkpoints and launcher; ours is the record."""

from __future__ import annotations

import logging
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
from aal_bench.detection.adversarial import Adversarial
from aal_bench.detection.checked import dropped, sentence
from aal_bench.detection.keeper import Keeper
from aal_bench.detection.schedule import warm_up
from aal_bench.detection.wrapped import weights_of
from aal_bench.errors import UserError
from aal_bench.methods.updates import Plain
from aal_bench.progress import track
from aal_bench.training.loop import Trained

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
    loader, images, told = _loader(config, run.seed)
    warm_up(config, run.task.train, len(loader))
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
    kept = keeper.record(steps, images) | {"dropped": told}
    return Trained(weights_of(runner.model), best, kept)


def _loader(config: Any, seed: int) -> tuple[Any, int, str | None]:
    """The training loader, its images, and what is not among them, in words.

    Raises:
        UserError: not even two images for a step.
    """
    options = config.train_dataloader
    loader = QuietRunner.build_dataloader(options, seed=seed)
    there = len(loader.dataset)  # pyright: ignore[reportArgumentType]
    told = [sentence("train", dropped(loader.dataset.dataset))]  # pyright: ignore
    if -(-there // environment.processes()) % options.batch_size == 1:
        options.drop_last = True
        loader = QuietRunner.build_dataloader(options, seed=seed)
        told.append("train: the last image of an epoch, a batch of one, is left out")
    if not len(loader):
        raise UserError(f"{there} training image(s): batch norm on a 1 x 1 map needs two a step")
    said = "; ".join(one for one in told if one) or None
    if said and environment.rank() == 0:
        print(f"data      {said}", flush=True)
    return loader, there, said


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
