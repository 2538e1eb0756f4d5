"""Fault: learn2learn's ``CNN4`` fits images of 84 pixels only.

``learn2learn.vision.models.CNN4`` (0.2.0) takes the width of its classifier from
``embedding_size`` and defaults to 25 * hidden: the 5x5 map that four poolings leave of 84
pixels. Any other size raises "mat1 and mat2 shapes cannot be multiplied" at the first forward.

There is no repair to apply: the class has the argument, and `cnn4` computes it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from aal_bench.errors import UserError
from aal_bench.toolkits import learn2learn_import

if TYPE_CHECKING:
    from torch import nn

POOLINGS = 4


def cnn4(classes: int, size: int, hidden: int = 64, channels: int = 3) -> nn.Module:
    """Build learn2learn's four-block network for square images of `size` pixels.

    Args:
        classes: Number of logits.
        size: Height and width of the input in pixels, at least 16 (four poolings by 2).
        hidden: Channels of each block.
        channels: Channels of the input.

    Returns:
        A ``learn2learn.vision.models.CNN4``: x (B,channels,size,size) -> logits (B,classes).

    Raises:
        UserError: `size` is below 16, or learn2learn is not installed.
    """
    side = last_side("cnn4", size)
    return models("cnn4").CNN4(
        output_size=classes,
        hidden_size=hidden,
        channels=channels,
        embedding_size=hidden * side**2,
    )


def last_side(name: str, size: int) -> int:
    """Side of the map that the four poolings of `name` leave of `size` pixels.

    Raises:
        UserError: nothing is left of it.
    """
    side = size // 2**POOLINGS  # each pooling rounds down, and so does their composition
    if side < 1:
        raise UserError(f"{name} needs images of at least {2**POOLINGS} pixels, not {size}.")
    return side


def models(name: str) -> ModuleType:
    """``learn2learn.vision.models``, from which the network `name` comes.

    Raises:
        UserError: learn2learn is not installed.
    """
    learn2learn_import.repair()
    try:
        return importlib.import_module("learn2learn.vision.models")
    except ModuleNotFoundError as error:
        if error.name != "learn2learn":
            raise
        raise UserError(
            f"{name} comes from learn2learn, which is not installed. "
            "Mend: pip install 'aal-bench[fewshot]'"
        ) from error
