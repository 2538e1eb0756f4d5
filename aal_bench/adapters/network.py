"""The network of a run, before any surgery, and what probes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aal_bench import registry
from aal_bench.config import Run
from aal_bench.models.build import build

BUILD = "aal_bench.models.build:build"
"""What makes the networks of labelled images."""


def loader_of(run: Run) -> str:
    """``module:function`` that makes the run's network, as a record states it."""
    return BUILD if run.task.detection is None else "aal_bench.detection.build:detector"


def build_network(run: Run) -> Any:
    """The run's network with as many outputs as its task and method ask for.

    A few-shot method that reads features has no use for the classifier: it is taken off, so that
    nobody trains, counts or stores it.
    """
    task = run.task
    if task.detection is not None:
        from aal_bench.detection.build import detector

        return detector(run)
    if task.episodes is None:
        return build(run.model.name, task.data.classes, task.data.size, task.normalisation)
    outputs = registry.load(registry.method_row(run.method.name).target).outputs
    classes = task.ways if outputs == "ways" else task.data.classes
    model = build(run.model.name, classes, task.data.size, task.normalisation)
    _ = model.feature_shape  # or a UserError that says what to choose
    if outputs == "features":
        model.network.classifier = nn.Identity()
    return model


def probe(model: nn.Module, test: Any, device: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """What maps images to the network's outputs, and up to 8 test images (B, 3, H, W)."""
    order = torch.arange(min(8, len(test)))
    where = torch.device(device)
    images = next(iter(test.batches(order, 8, augment="none", pad=0, seed=0, device=where)))
    return model, images.x
