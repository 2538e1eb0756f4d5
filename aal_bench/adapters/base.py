"""What an adapter does for the runner: data, model, objective, training, stages, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from aal_bench.adapters.attack_stage import Fooled, Saved
from aal_bench.attacks.stages import Stage
from aal_bench.config import Run
from aal_bench.evidence import Evidence
from aal_bench.methods.base import Method, Objective
from aal_bench.methods.updates import Plain


class Adapter(Protocol):
    """One task family. It is the only place that knows a toolkit's data and training loop."""

    run: Run

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the test pixels as fed and of the labels (and of the list of episodes)."""
        ...

    @property
    def examples(self) -> int:
        """Units of the task's whole test: images, or episodes."""
        ...

    def check(self, stages: Sequence[str], training: bool) -> None:
        """Refuse, before anything is written, what would fail after hours.

        Raises:
            UserError: a stage does not fit the task, or the settings of training do not fit the
                training data.
        """
        ...

    def build(self) -> nn.Module:
        """The task's network, randomly initialised from the run's seed, before any surgery."""
        ...

    def objective(self, model: nn.Module) -> Objective:
        """The loss that training and attacks share."""
        ...

    def fit(self, method: Method, update: Plain, model: nn.Module, folder: Path) -> Any:
        """Train; resumes from the folder's checkpoint where there is one."""
        ...

    def new_evidence(self) -> Evidence:
        """An empty table of the units to evaluate."""
        ...

    def stage(self, name: str) -> Stage:
        """The stage of that name under this task's threat."""
        ...

    def memory_format(self, name: str) -> str:
        """Layout in memory of the images that stage `name` feeds the network."""
        ...

    def run_stage(
        self, name: str, model: nn.Module, evidence: Evidence, fooled: Fooled, saved: Saved
    ) -> None:
        """Attack what `evidence` still lacks of stage `name`; `saved` after every batch."""
        ...

    def probe(self, model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """What maps images to the network's raw outputs, and a few test images (B, 3, H, W)."""
        ...

    def check_clean(self, evidence: Evidence) -> None:
        """Refuse a foreign checkpoint whose clean accuracy is near chance.

        Raises:
            UserError: it is; the message names the usual causes.
        """
        ...

    def figures(self, method: Method, model: nn.Module, folder: Path) -> list[str]:
        """Draw what the report shows; returns paths relative to `folder`."""
        ...
