"""A stage of a protocol: one attack with every parameter written down.

Stages are independent (each attacks every cleanly correct image) except AutoAttack's four, which
run on the survivors in order.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.attacks.linf import linf_pgd, uniform_start
from aal_bench.attacks.torchattacks import attack_class
from aal_bench.errors import UserError
from aal_bench.threat import Threat, format_fraction


class Setting(NamedTuple):
    """What a stage needs to know of the task."""

    threat: Threat
    step: Any
    """Step size of the multi-step attacks, an exact fraction in pixel units."""
    classes: int
    seed: int


class Stage:
    """Base of all stages. A subclass is its parameters and one call of a toolkit."""

    package: ClassVar[str] = "torchattacks"
    sequential: ClassVar[bool] = False
    """True: attacks only what the stages of its suite before it left standing."""

    def __init__(self, name: str, setting: Setting, *numbers: int) -> None:
        self.name, self.setting = name, setting
        self.numbers = numbers
        self.eps = setting.threat.radius
        if setting.threat.norm != "Linf" and not self.serves_l2:
            raise UserError(
                f"stage {name} is Linf; under L2 use --protocol standard, whose attacks have both"
            )

    serves_l2: ClassVar[bool] = False

    @property
    def params(self) -> dict[str, Any]:
        """Every parameter of the attack, defaults included; eps and steps as exact fractions."""
        return {"eps": format_fraction(self.setting.threat.eps)}

    @property
    def implementation(self) -> dict[str, Any]:
        """Package and version of the code that attacks."""
        return {"package": self.package, "version": version(self.package), "commit": None}

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Attack x (B, 3, H, W) in [0, 1], all cleanly correct; x' has its shape.

        Whatever `model` raises is raised: an attack that fails is an error, never a survivor.
        """
        raise NotImplementedError

    def _step(self) -> str:
        return format_fraction(self.setting.step)


class Clean(Stage):
    """No attack: the prediction on x itself."""

    package = "aal-bench"
    serves_l2 = True

    @property
    def params(self) -> dict[str, Any]:
        return {}

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x


class FGSM(Stage):
    """One step of eps from x (arXiv 1412.6572)."""

    @property
    def params(self) -> dict[str, Any]:
        return {**super().params, "loss": "ce", "steps": 1, "random_start": False}

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attack_class("FGSM")(model, eps=self.eps)(x, y)


class PGD(Stage):
    """N steps from a uniform start, one restart (arXiv 1706.06083)."""

    loss: ClassVar[str] = "ce"

    @property
    def params(self) -> dict[str, Any]:
        return {
            **super().params,
            "loss": self.loss,
            "alpha": self._step(),
            "steps": self.numbers[0],
            "random_start": True,
            "restarts": 1,
        }

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = attack_class("PGD")(
            model,
            eps=self.eps,
            alpha=float(self.setting.step),
            steps=self.numbers[0],
            random_start=True,
        )
        return attack(x, y)


class CWInf(PGD):
    """PGD on the margin max_{k != y} z_k - z_y: what Linf tables call C&W.

    torchattacks' CW is the L2 attack, another question.
    """

    package = "aal-bench"
    loss = "margin"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def margin(x_adv: Tensor) -> Tensor:
            logits = model(x_adv)
            others = logits.scatter(1, y[:, None], -torch.inf)
            return (others.amax(1) - logits.gather(1, y[:, None])[:, 0]).sum()

        return linf_pgd(
            margin,
            x,
            uniform_start(x, self.eps),
            self.eps,
            float(self.setting.step),
            self.numbers[0],
        )
