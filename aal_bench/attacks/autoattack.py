"""AutoAttack standard (Croce and Hein 2020, arXiv 2003.01690), one stage per attack.

The attacks are pyautoattack's, called as its `run_standard_evaluation` calls them: on the
survivors, in index order, each batch reseeded. Splitting the suite into stages is what makes it
resumable at (attack, batch) and its cost visible per attack. `torchattacks.AutoAttack` is refused:
since commit 9338c5f (2022) it runs 10 iterations where AutoAttack runs 100.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aal_bench.attacks.stages import Setting, Stage
from aal_bench.errors import UserError

COMMIT = "a392200"
"""pyautoattack's attack files are those of fra31/auto-attack at this commit."""
DLR_CLASSES = 4
"""The targeted DLR loss divides by a difference of sorted logits that needs four of them."""


class AutoAttackStage(Stage):
    """One of AutoAttack's four attacks."""

    package = "pyautoattack"
    sequential = True
    serves_l2 = True
    attack: ClassVar[str]

    @property
    def targets(self) -> int:
        """Number of target classes: AutoAttack's 9, or all others where there are fewer."""
        return min(9, self.setting.classes - 1)

    @property
    def params(self) -> dict[str, Any]:
        return {**super().params, "norm": self.setting.threat.norm, "version": "standard"}

    @property
    def implementation(self) -> dict[str, Any]:
        return {**super().implementation, "commit": COMMIT}

    def _suite(self, model: nn.Module, device: torch.device) -> Any:
        import logging

        from pyautoattack import AutoAttack

        # It announces its version at every construction.
        logging.getLogger("auto-attack").setLevel(logging.WARNING)
        suite = AutoAttack(
            model,
            norm=self.setting.threat.norm,
            eps=self.eps,
            seed=self.setting.seed,
            version="standard",
            device=device,
        )
        suite.apgd_targeted.n_target_classes = self.targets
        suite.fab.n_target_classes = self.targets
        return suite


class APGDCE(AutoAttackStage):
    """APGD on cross-entropy: 100 iterations, one restart."""

    @property
    def params(self) -> dict[str, Any]:
        return {
            **super().params,
            "loss": "ce",
            "steps": 100,
            "restarts": 1,
            "rho": "0.75",
            "eot_iter": 1,
        }

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = self._suite(model, x.device).apgd
        attack.loss = "ce"
        return attack.perturb(x, y)


class APGDT(AutoAttackStage):
    """APGD on the targeted DLR loss: 100 iterations for each target class."""

    def __init__(self, name: str, setting: Setting, *numbers: int) -> None:
        super().__init__(name, setting, *numbers)
        if setting.classes < DLR_CLASSES:
            raise UserError(
                f"apgd-t needs {DLR_CLASSES} classes for its DLR loss, the task has"
                f" {setting.classes}: the protocol must leave it out"
            )

    @property
    def params(self) -> dict[str, Any]:
        return {
            **super().params,
            "loss": "dlr-targeted",
            "steps": 100,
            "restarts": 1,
            "targets": self.targets,
            "rho": "0.75",
            "eot_iter": 1,
        }

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self._suite(model, x.device).apgd_targeted.perturb(x, y)


class FABT(AutoAttackStage):
    """FAB, the minimal-norm attack, 100 iterations for each target class."""

    @property
    def params(self) -> dict[str, Any]:
        return {
            **super().params,
            "steps": 100,
            "restarts": 1,
            "targets": self.targets,
            "alpha_max": "0.1",
            "eta": "1.05",
            "beta": "0.9",
        }

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = self._suite(model, x.device).fab
        attack.targeted = True
        attack.n_restarts = 1
        return attack.perturb(x, y)


class Square(AutoAttackStage):
    """Square, the black-box attack: 5,000 queries."""

    @property
    def params(self) -> dict[str, Any]:
        return {
            **super().params,
            "loss": "margin",
            "queries": 5000,
            "restarts": 1,
            "p_init": "0.8",
            "resc_schedule": False,
        }

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self._suite(model, x.device).square.perturb(x, y)
