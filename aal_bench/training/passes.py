"""What a training step costs, counted: a refactoring cannot double a method's price unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def counting_passes(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count the images that go forward and backward through `model` inside the context.

    A backward pass counts once, whether it goes to the input, to the weights or to both; one that
    does not begin at the network's output (at features alone) is not seen.
    """
    counted = {"forward": 0, "backward": 0}

    def went_forward(_: nn.Module, __: Any, output: Tensor) -> None:
        counted["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(went_backward)

    def went_backward(gradient: Tensor | None) -> None:
        # None: an output of a compiled graph that this backward pass does not begin at.
        counted["backward"] += 0 if gradient is None else len(gradient)

    hook = model.register_forward_hook(went_forward)
    try:
        yield counted
    finally:
        hook.remove()
