"""What is audited: networks with their images, and what is claimed about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from aal_bench.threat import Threat


class Part(NamedTuple):
    """Images that one network answers: all of a classification task's, an episode's queries."""

    model: nn.Module
    """x (B,3,H,W) in [0, 1] -> logits (B,K); in eval mode."""
    x: Tensor
    """(B,3,H,W) float32 in [0, 1]."""
    y: Tensor
    """(B,) int64."""
    rows: np.ndarray
    """(B,) rows of the evidence, or positions in the test split."""


class Claim(NamedTuple):
    """An attack whose result is claimed: one stage of a run's evidence, on the audited images."""

    stage: str
    ok: np.ndarray
    """(N,) still correct, as the evidence says it."""
    attacked: np.ndarray
    """(N,) the image was attacked, rather than taken for fallen because it had fallen before."""


@dataclass(frozen=True)
class Claims:
    """What a run says of itself, as far as it is about the audited images."""

    stages: tuple[Claim, ...] = ()
    robust: float | None = None
    """Claimed robust accuracy (AND of all stages) on the *whole* test set."""
    clean: float | None = None
    """Claimed clean accuracy on the whole test set."""
    autoattack: float | None = None
    """Claimed AutoAttack accuracy on the whole test set."""
    per_stage: dict[str, float] = field(default_factory=dict)
    """Stage -> claimed accuracy, cumulative for AutoAttack's."""
    adversarials: Path | None = None
    """``adversarials.npz`` of the run."""
    evidence: Any = None
    """The run's whole per-sample table."""
    method_known: bool = False
    """The subject's method is what trained it; else it is what a bare file was taken for."""
    training: dict[str, Any] | None = None
    """``run.json``'s record of training, ``overfitting`` among it."""
    folder: Path | None = None


@dataclass(frozen=True)
class Subject:
    """A model under audit, its images, its threat, and what it is compared with."""

    parts: tuple[Part, ...]
    network: nn.Module
    """The whole network as built, whose modules are looked at."""
    threat: Threat
    """The task's threat; Linf."""
    step: float
    """The task's step of multi-step attacks, in pixel units."""
    classes: int
    batch_size: int = 256
    """Images at once through a network."""
    seed: int = 0
    task: str = ""
    family: str = "classification"
    method: str = "standard"
    """The method that trained it; of a foreign checkpoint what was said about it."""
    dataset: str | None = None
    """RobustBench's name of the data set; None: it has none."""
    architecture: str = ""
    claims: Claims = field(default_factory=Claims)
    baseline: nn.Module | None = None
    """A PGD-trained network of the same task; None: rules relative to one do not apply."""
    undefended: nn.Module | None = None
    """A network of the same task trained without attack."""
    surrogates: tuple[tuple[str, nn.Module], ...] = ()
    """(name, network) whose adversarials are tried on this one."""
    method_options: dict[str, Any] = field(default_factory=dict)
    training_images: Callable[[int], tuple[Tensor, Tensor]] | None = None
    """n -> x (n,3,H,W) in [0,1], y (n,) of the training split; what a control is trained on."""

    @property
    def eps(self) -> float:
        """The budget in pixel units."""
        return self.threat.radius

    @cached_property
    def size(self) -> int:
        """Audited images N."""
        return sum(len(part.y) for part in self.parts)
