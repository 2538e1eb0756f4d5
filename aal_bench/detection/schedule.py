"""A task's schedule and optimiser as MMEngine's config has them."""

from __future__ import annotations

from typing import Any

from aal_bench.config import Detection, Train
from aal_bench.errors import UserError


def check(train: Train) -> None:
    """Refuse settings that detection does not have.

    Raises:
        UserError: the key to change.
    """
    if train.schedule == "onecycle":
        raise UserError("train.schedule of detection is step, cosine or constant")
    if train.batch_size < 2:
        raise UserError(
            "train.batch_size = 1: the last map of SSD-512 is 1 x 1, so batch norm needs two images"
        )


def set_schedule(config: Any, train: Train, detection: Detection) -> None:
    optimizer: dict[str, Any] = {
        "type": "SGD",
        "momentum": train.momentum,
        "nesterov": train.nesterov,
    }
    if train.optimizer == "adam":
        optimizer = {"type": "Adam", "betas": (train.momentum, 0.999)}
    optimizer |= {"lr": train.lr, "weight_decay": train.weight_decay}
    clip = None if train.grad_clip is None else {"max_norm": train.grad_clip, "norm_type": 2}
    config.optim_wrapper = {"type": "OptimWrapper", "optimizer": optimizer, "clip_grad": clip}
    config.auto_scale_lr = {"enable": True, "base_batch_size": detection.base_batch}
    config.train_cfg = {
        "type": "EpochBasedTrainLoop",
        "max_epochs": train.epochs,
        "val_interval": train.validate_every,
    }
    config.param_scheduler = []
    if train.schedule == "step":
        marks = [min(max(round(m * train.epochs), 1), train.epochs) for m in train.milestones]
        parts = [(marks, train.decay)]
        if isinstance(train.decay, tuple):
            parts = [([mark], factor) for mark, factor in zip(marks, train.factors, strict=True)]
        config.param_scheduler += [
            {
                "type": "MultiStepLR",
                "by_epoch": True,
                "begin": 0,
                "end": train.epochs,
                "milestones": at,
                "gamma": factor,
            }
            for at, factor in parts
        ]
    elif train.schedule == "cosine":
        config.param_scheduler.append(
            {
                "type": "CosineAnnealingLR",
                "by_epoch": True,
                "begin": 0,
                "end": train.epochs,
                "T_max": train.epochs,
                "convert_to_iter_based": True,
            }
        )


def warm_up(config: Any, train: Train, steps: int) -> None:
    """Put the linear warm-up in front, which needs to know an epoch's `steps`."""
    rise = round(train.warmup_epochs * steps)
    if rise > 1:  # MMEngine's LinearLR of one step would stay at its first factor for ever
        config.param_scheduler.insert(
            0,
            {"type": "LinearLR", "start_factor": 0.001, "by_epoch": False, "begin": 0, "end": rise},
        )
