"""The pictures of a few-shot run: curves, accuracy over the episodes, one episode, the attack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from aal_bench.methods.base import Method

if TYPE_CHECKING:
    from aal_bench.adapters.fewshot import FewShot


def draw(adapter: FewShot, method: Method, model: nn.Module, folder: Path) -> list[str]:
    """Draw into ``figures/``; returns the paths relative to `folder`."""
    return []
