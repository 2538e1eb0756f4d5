"""ANIL: almost no inner loop (Raghu et al. 2020, arXiv 1909.09157)."""

from __future__ import annotations

from typing import Any, ClassVar

from aal_bench.methods.maml import MAML, AdaptingOptions


class ANIL(MAML):
    """MAML whose inner loop changes the last layer only; the features learn in the outer one.

    Inner rate, steps and Adam's rate are those of learn2learn's FC100 example, which takes 32
    episodes a step.
    """

    Options = AdaptingOptions
    train_defaults: ClassVar[dict[str, Any]] = MAML.train_defaults | {"lr": 1e-3}

    @property
    def head(self) -> str:
        return "anil"
