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
from aal_bench.attacks.parameters import KINDS, Question
from aal_bench.attacks.torchattacks import attack_class
from aal_bench.errors import UserError
from aal_bench.evidence import STAGE_NAME
from aal_bench.threat import Threat, format_fraction


class Setting(NamedTuple):
    """What a stage needs to know of the task."""

    threat: Threat
    step: Any
    """Step size of the multi-step attacks, an exact fraction in pixel units."""
    classes: int
    seed: int


class Stage:
    """Base of all stages: one call of a toolkit.

    Ours name their row of the parameters' table: ``class FGSM(Stage, kind="fgsm")``. A stage of
    another package states its own `package` and `params`.
    """

    kind: ClassVar[str | None] = None
    package: ClassVar[str] = "torchattacks"
    sequential: ClassVar[bool] = False
    """True: attacks only what the stages of its suite before it left standing."""
    closing: ClassVar[bool] = False
    """True: attacks only what all earlier stages left standing."""
    serves_l2: ClassVar[bool] = False

    def __init_subclass__(cls, kind: str | None = None) -> None:
        super().__init_subclass__()
        if kind is not None:
            row = KINDS[kind]
            cls.kind, cls.package = kind, row.package
            cls.sequential, cls.serves_l2 = row.sequential, row.serves_l2
            cls.closing = row.closing

    def __init__(self, name: str, setting: Setting, *numbers: int) -> None:
        self.name, self.setting = name, setting
        self.numbers = numbers
        self.eps = setting.threat.radius
        if not STAGE_NAME.fullmatch(name):
            raise UserError(f"attack '{name}': a stage's name is a-z, 0-9, '.' and '-' only")
        if setting.threat.norm != "Linf" and not self.serves_l2:
            raise UserError(
                f"stage {name} is Linf; under L2 use --protocol standard, whose attacks have both"
            )

    @property
    def params(self) -> dict[str, Any]:
        """Every parameter of the attack, defaults included; eps and steps as exact fractions."""
        threat, step, classes, _ = self.setting
        if self.kind is None:
            return {"eps": format_fraction(threat.eps)}
        return KINDS[self.kind].parameters(
            Question(threat.norm, threat.eps, step, classes, self.numbers)
        )

    @property
    def implementation(self) -> dict[str, Any]:
        """Package and version of the code that attacks."""
        return {"package": self.package, "version": version(self.package), "commit": None}

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Attack x (B, 3, H, W) in [0, 1], all cleanly correct; x' has its shape.

        Whatever `model` raises is raised: an attack that fails is an error, never a survivor.
        """
        raise NotImplementedError


class Clean(Stage, kind="clean"):
    """No attack: the prediction on x itself."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x


class FGSM(Stage, kind="fgsm"):
    """One step of eps from x (arXiv 1412.6572)."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attack_class("FGSM")(model, eps=self.eps)(x, y)


class PGD(Stage, kind="pgd-N"):
    """N steps from a uniform start, one restart (arXiv 1706.06083)."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = attack_class("PGD")(
            model,
            eps=self.eps,
            alpha=float(self.setting.step),
            steps=self.numbers[0],
            random_start=True,
        )
        return attack(x, y)


class CWInf(PGD, kind="cw-inf-N"):
    """PGD on the margin max_{k != y} z_k - z_y: what Linf tables call C&W.

    torchattacks' CW is the L2 attack, another question.
    """

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
