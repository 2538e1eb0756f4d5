"""AutoAttack standard (Croce and Hein 2020, arXiv 2003.01690), one stage per attack.

The attacks are pyautoattack's, called as its `run_standard_evaluation` calls them: on the
survivors, in index order, each batch reseeded. Splitting the suite into stages is what makes it
resumable at (attack, batch) and its cost visible per attack. `torchattacks.AutoAttack` is refused:
since commit 9338c5f (2022) it runs 10 iterations where AutoAttack runs 100.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aal_bench.attacks.parameters import COMMIT, DLR_CLASSES, targets
from aal_bench.attacks.stages import Setting, Stage
from aal_bench.errors import UserError


class AutoAttackStage(Stage):
    """One of AutoAttack's four attacks."""

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
        count = targets(self.setting.classes)
        suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = count
        return suite


class APGDCE(AutoAttackStage, kind="apgd-ce"):
    """APGD on cross-entropy: 100 iterations, one restart."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = self._suite(model, x.device).apgd
        attack.loss = "ce"
        return attack.perturb(x, y)


class APGDT(AutoAttackStage, kind="apgd-t"):
    """APGD on the targeted DLR loss: 100 iterations for each target class."""

    def __init__(self, name: str, setting: Setting, *numbers: int) -> None:
        super().__init__(name, setting, *numbers)
        if setting.classes < DLR_CLASSES:
            raise UserError(
                f"apgd-t needs {DLR_CLASSES} classes for its DLR loss, the task has"
                f" {setting.classes}: the protocol must leave it out"
            )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self._suite(model, x.device).apgd_targeted.perturb(x, y)


class FABT(AutoAttackStage, kind="fab-t"):
    """FAB, the minimal-norm attack, 100 iterations for each target class."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = self._suite(model, x.device).fab
        attack.targeted = True
        attack.n_restarts = 1
        return attack.perturb(x, y)


class Square(AutoAttackStage, kind="square"):
    """Square, the black-box attack: 5,000 queries."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self._suite(model, x.device).square.perturb(x, y)
