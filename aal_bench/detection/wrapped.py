"""Modules inside the wrappers of data-parallel training."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def bare(module: Any) -> Any:
    """The module inside whatever data-parallel wrapper is around it."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def weights_of(detector: Any) -> dict[str, Tensor]:
    """A copy of a detector's state on the CPU, contiguous, under its names without any wrapper."""
    return {
        name.replace(".module.", "."): value.detach().cpu().contiguous().clone()
        for name, value in bare(detector).state_dict().items()
    }
