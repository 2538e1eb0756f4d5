"""A detector's stages: torchattacks cannot attack one, so the project's own PGD does."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from aal_bench import __version__
from aal_bench.attacks.linf import linf_pgd, uniform_start
from aal_bench.attacks.parameters import detector_attack
from aal_bench.attacks.stages import Setting, Stage
from aal_bench.errors import UserError
from aal_bench.threat import Threat


class PartedObjective(Protocol):
    """A detector's loss, whole or a part of it: `detection.objective.DetectionObjective`."""

    def __call__(self, x: Tensor, targets: Any, reduction: str = "mean") -> Tensor: ...

    def part(self, name: Any) -> PartedObjective:
        """The same detector's loss, `name` of it: ``total``, ``cls`` or ``loc``."""
        ...


class DetectorStage(Stage):
    """FGSM or PGD on a detector's loss, in pixel space, under the budget that its name says."""

    package = "aal-bench"

    def __init__(self, name: str, setting: Setting, *numbers: int) -> None:
        asked = detector_attack(name, setting.threat.eps, setting.step)
        if asked is None:
            raise UserError(
                f"'{name}' attacks no detector: clean, or fgsm or pgd-N, then -cls or -loc, then"
                " -eps-K for K/255, as in pgd-10-cls-eps-2"
            )
        self.asked = asked
        threat = Threat(norm=setting.threat.norm, eps=asked.eps)
        super().__init__(name, setting._replace(threat=threat), *numbers)

    @property
    def params(self) -> dict[str, Any]:
        """Every parameter of the attack; eps and step as exact fractions."""
        return self.asked.parameters

    @property
    def implementation(self) -> dict[str, Any]:
        """Our own code."""
        return {"package": self.package, "version": __version__, "commit": None}

    def attack(self, objective: PartedObjective, x: Tensor, targets: Any) -> Tensor:
        """Attack x (B, 3, H, W) in [0, 1]; x' has its shape.

        Args:
            objective: the detector's loss.
            x: the images.
            targets: as the objective takes them.
        """
        steps, random_start, part, _, alpha = self.asked
        if not steps:
            return x
        loss = objective.part(part)
        return linf_pgd(
            lambda x_adv: loss(x_adv, targets, reduction="sum"),
            x,
            uniform_start(x, self.eps) if random_start else x,
            self.eps,
            float(alpha),
            steps,
        )
