"""What happens inside a forward pass: gradients computed, graphs built, parts in training mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn


@contextmanager
def gradients_computed() -> Iterator[list[str]]:
    """Collect what runs autograd's engine in this thread and context, by the caller's name.

    The interpreter's profiling hook sees every way in: ``autograd.grad`` and ``backward`` however
    they were imported, ``Tensor.backward``, ``torch.func``, and the engine called by itself. A
    profiler that was active is set aside and comes back.
    """
    seen: list[str] = []
    ways = {torch.autograd.grad.__code__: "grad", torch.autograd.backward.__code__: "backward"}

    def look(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code in ways:
            seen.append(ways[frame.f_code])
        elif event == "c_call" and getattr(arg, "__name__", "") == "run_backward":
            seen.append("run_backward")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@contextmanager
def graphs_built(model: nn.Module) -> Iterator[list[str]]:
    """Collect the parts of `model` that run with gradients enabled; for a pass under no_grad."""
    seen: list[str] = []

    def look(name: str) -> None:
        if torch.is_grad_enabled():
            seen.append(name)

    with _before_each(model, lambda name, _: look(name)):
        yield seen


@contextmanager
def trained_parts(model: nn.Module) -> Iterator[list[str]]:
    """Collect the parts of `model` that run, or are left, in training mode."""
    seen: list[str] = []

    def look(name: str, module: nn.Module) -> None:
        if module.training and name not in seen:
            seen.append(name)

    with _before_each(model, look):
        yield seen
    for name, module in model.named_modules():
        look(name or "the network", module)


@contextmanager
def _before_each(model: nn.Module, look: Any) -> Iterator[None]:
    """Call ``look(name, module)`` before the forward of every part of `model`."""

    def hook(name: str) -> Any:
        return lambda module, _: look(name, module)

    handles = [
        module.register_forward_pre_hook(hook(name or "the network"))
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)  # which take no hooks from outside
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
