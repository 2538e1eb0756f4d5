"""The MMDetection config of a run: the plain one of ``tasks/detection``, with the task's values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aal_bench.config import Detection, Run
from aal_bench.detection.resize import resize
from aal_bench.detection.schedule import set_schedule
from aal_bench.mm_files import config_path
from aal_bench.threat import format_fraction


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
    resize(config, run.task.data.size)
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
    set_schedule(config, run.task.train, detection)
    config.work_dir = str(work_dir)
    config.device = run.device
    config.custom_hooks.append({"type": "Resumable"})
    config.randomness = {"seed": run.seed, "deterministic": False}
    config.default_hooks.pop("visualization", None)
    config.visualizer.pop("name")  # a name of its own for each run of a process
    return config


def _attack(run: Run) -> dict[str, Any]:
    eps, step, steps = run.training_attack
    return {
        "method": run.method.name,
        "options": run.method.options,
        "update": run.update.name,
        "update_options": run.update.options,
        "eps": format_fraction(eps),
        "step": format_fraction(step),
        "steps": steps,
        "bf16": run.precision == "bf16",
        "channels_last": True,
    }


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


def _workers(device: str) -> int:
    """Loader processes; on the CPU one, beside the threads that train. They change no number."""
    import os

    return min(8, os.cpu_count() or 1) if device.startswith("cuda") else 1
