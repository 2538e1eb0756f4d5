"""The MMDetection config of a run: the plain one of ``tasks/detection``, with the task's values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aal_bench.config import Detection, Run, Train
from aal_bench.errors import UserError
from aal_bench.mm_files import config_path
from aal_bench.threat import format_fraction

GRIDS = (64, 32, 16, 8, 4, 2, 1)
"""Sides of SSD-512's maps at 512 pixels."""


def plain(model: str, config: str) -> Any:
    """The config as it lies in ``tasks/detection``; registers what it needs.

    Raises:
        UserError: there is no such file.
    """
    path = config_path(model, config)
    from mmengine.config import Config
    from mmengine.registry import DefaultScope, init_default_scope

    from aal_bench.detection import register

    assert register
    # MMDetection's parts name each other without saying whose they are.
    scope = DefaultScope.get_current_instance()
    if scope is None or scope.scope_name != "mmdet":
        init_default_scope("mmdet")
    return Config.fromfile(path)


def network(run: Run) -> Any:
    """The model's part of a run's config, without the attack and without pretrained weights."""
    detection = run.task.detection
    assert detection is not None
    config = plain(run.model.name, detection.config)
    _fit(config, run)
    return config.model


def _fit(config: Any, run: Run) -> None:
    """Size and class count of the task."""
    assert run.task.detection is not None
    _resize(config, run.task.data.size)
    config.model.bbox_head.num_classes = run.task.data.classes
    statistics = run.task.normalisation
    config.model.data_preprocessor.mean = [255 * value for value in statistics.mean]
    config.model.data_preprocessor.std = [255 * value for value in statistics.std]


def resolved(
    run: Run,
    train: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    test: Sequence[dict[str, Any]],
    work_dir: Path,
) -> Any:
    """The whole config of a run: MMDetection's own tools train the same from it.

    Args:
        run: the resolved configuration.
        train: configs of data sets without pipeline.
        validation: likewise; empty: none.
        test: likewise.
        work_dir: where MMEngine writes.
    """
    detection = run.task.detection
    assert detection is not None
    config = plain(run.model.name, detection.config)
    _fit(config, run)
    config.model.attack = _attack(run)
    if run.pretrained is not None:
        config.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": run.pretrained.path}
    if run.task.train.augment == "none":
        config.train_pipeline = _without_augmentation(config.train_pipeline)
    _data(config, run, detection, train, validation, test)
    _schedule(config, run.task.train, detection)
    config.work_dir = str(work_dir)
    config.device = run.device
    config.custom_hooks.append({"type": "Resumable"})
    config.randomness = {"seed": run.seed, "deterministic": False}
    config.default_hooks.pop("visualization", None)
    config.visualizer.pop("name")  # a name of its own for each run of a process
    return config


def _attack(run: Run) -> dict[str, Any]:
    return {
        "method": run.method.name,
        "options": run.method.options,
        "update": run.update.name,
        "update_options": run.update.options,
        "eps": format_fraction(run.task.threat.eps),
        "step": format_fraction(run.task.attack.step),
        "steps": run.task.attack.steps,
        "bf16": run.precision == "bf16",
        "channels_last": True,
    }


def _resize(config: Any, size: int) -> None:
    """Feed images of another size than 512: maps, strides and priors shrink in proportion."""
    if size == 512:
        return
    for pipeline in (config.train_pipeline, config.test_pipeline):
        for step in pipeline:
            if step["type"] == "Resize":
                step["scale"] = (size, size)
    sides = grids(size, len(config.model.backbone.out_indices))
    anchors = config.model.bbox_head.anchor_generator
    smallest, largest = _prior_sizes(anchors)
    for key in ("input_size", "basesize_ratio_range"):
        anchors.pop(key, None)
    anchors.strides = [size / side for side in sides]
    anchors.min_sizes = [round(side * size / 512, 2) for side in smallest]
    anchors.max_sizes = [round(side * size / 512, 2) for side in largest]


def _prior_sizes(anchors: Any) -> tuple[list[float], list[float]]:
    """Sides in pixels of each map's priors of ratio 1, the smaller and the limit of the larger."""
    from mmdet.registry import TASK_UTILS

    made = TASK_UTILS.build(anchors)
    smallest = [float(side) for side in made.base_sizes]
    # A map's second scale is sqrt(max / min).
    growth = [float(scales[1]) ** 2 for scales in made.scales]
    return smallest, [side * by for side, by in zip(smallest, growth, strict=True)]


def grids(size: int, backbone_maps: int) -> list[int]:
    """Sides of the seven maps for images of `size` pixels.

    Args:
        size: side in pixels.
        backbone_maps: how many of them the backbone gives, from stride 8 on.

    Raises:
        UserError: the extra layers would have nothing left to halve.
    """
    sides = [-(-size // (8 * 2**i)) for i in range(backbone_maps)]
    while len(sides) < len(GRIDS) - 1:
        sides.append((sides[-1] - 1) // 2 + 1)  # a 3 x 3 convolution of stride 2, padding 1
    sides.append(sides[-1] - 1)  # the last one is 4 x 4 with padding 1
    if sides[-1] < 1:
        raise UserError(f"data.size = {size}: too small for SSD-512's seven maps; use 264 or more")
    return sides


def _without_augmentation(pipeline: Sequence[Any]) -> list[Any]:
    kept = {"LoadImageFromFile", "LoadAnnotations", "Resize", "PackDetInputs"}
    return [step for step in pipeline if step["type"] in kept]


def _data(
    config: Any,
    run: Run,
    detection: Detection,
    train: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    test: Sequence[dict[str, Any]],
) -> None:
    workers = _workers(run.device)
    options = run.task.train
    parts = [{**part, "pipeline": config.train_pipeline} for part in train]
    dataset = parts[0]
    if len(parts) > 1:
        dataset = {"type": "ConcatDataset", "datasets": parts, "ignore_keys": ["dataset_type"]}
    if detection.repeat > 1:
        dataset = {"type": "RepeatDataset", "times": detection.repeat, "dataset": dataset}
    config.train_dataloader = {
        "batch_size": options.batch_size,
        "num_workers": workers,
        # Each epoch's workers see the epoch's number, from which the augmentation is drawn.
        "persistent_workers": False,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "dataset": {
            "type": "SeededDataset",
            "dataset": dataset,
            "seed": run.seed,
            "limit": run.limits.train,
        },
    }
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if options.validation:
        config.val_cfg = {"type": "ValLoop"}
        held = (
            {**validation[0]}
            if detection.coco
            else {**validation[0], "indices": options.validation}
        )
        config.val_dataloader = tested(held, config.test_pipeline, workers)
        config.val_evaluator = evaluator(detection, validation[0])
    config.test_dataloader = tested(test[0], config.test_pipeline, workers)
    config.test_evaluator = evaluator(detection, test[0])


def tested(dataset: dict[str, Any], pipeline: Any, workers: int) -> dict[str, Any]:
    """The loader of a data set that is only tested on."""
    return {
        "batch_size": 8,
        "num_workers": workers,
        "persistent_workers": False,
        "drop_last": False,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**dataset, "pipeline": pipeline, "test_mode": True},
    }


def evaluator(detection: Detection, dataset: dict[str, Any]) -> dict[str, Any]:
    """MMDetection's metric under the task's convention."""
    if detection.coco:
        root = Path(dataset.get("data_root", ""))
        return {"type": "CocoMetric", "ann_file": str(root / dataset["ann_file"]), "metric": "bbox"}
    mode = "11points" if detection.metric == "map50_voc11" else "area"
    return {"type": "VOCMetric", "metric": "mAP", "eval_mode": mode}


def test_set(run: Run, dataset: dict[str, Any]) -> Any:
    """The data set that a config of one without pipeline describes, as the test feeds it."""
    assert run.task.detection is not None
    config = plain(run.model.name, run.task.detection.config)
    _fit(config, run)
    from mmdet.registry import DATASETS

    return DATASETS.build({**dataset, "pipeline": config.test_pipeline, "test_mode": True})


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


def _workers(device: str) -> int:
    """Loader processes; on the CPU one, beside the threads that train. They change no number."""
    import os

    return min(8, os.cpu_count() or 1) if device.startswith("cuda") else 1


def _schedule(config: Any, train: Train, detection: Detection) -> None:
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
        config.param_scheduler.append(
            {
                "type": "MultiStepLR",
                "by_epoch": True,
                "begin": 0,
                "end": train.epochs,
                "milestones": marks,
                "gamma": train.decay,
            }
        )
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
