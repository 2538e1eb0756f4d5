"""LBGAT: learnable boundary guided adversarial training (Cui et al. 2021, arXiv 2011.11164)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.methods.base import Batch, Companion, Objective, Recipe, Threat, fp32, stepwise
from aal_bench.methods.trades import TRADES, TRADESOptions


class LBGATOptions(TRADESOptions):
    """Options of LBGAT."""

    beta: float = Field(0.0, ge=0)
    """Weight of the student's divergence: 0 is the paper's LBGAT0, 6 its LBGAT6."""
    teacher: str | None = None
    """Model of the teacher; unset: the run's own. Officially ``resnet18``."""


class LBGAT(TRADES):
    """min_{S,T} mean (f_S(x') - f_T(x))^2 + CE(f_T(x), y) + beta KL(p_S(x) || p_S(x')).

    The square is averaged over images and classes, on raw logits, and its gradient reaches the
    teacher T too, which sees clean images only and shares the student's optimiser. x' maximises
    the student's divergence, as in TRADES. Cost with 10 steps: student 12 forwards, 10 backwards
    to x, 1 to the weights (13, 10 and 2 with beta > 0); teacher 1 forward, 1 backward.
    """

    Options = LBGATOptions
    options: LBGATOptions  # type: ignore[assignment]
    update_defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    recipe = Recipe(
        train=stepwise(100, (1, 75, 90), 2e-4, lr=0.02, decay=(5.0, 0.1, 0.1)),
        options={"teacher": "resnet18"},
        crafting={"step": "0.007", "steps": 10},
        source="train_lbgat_cifar100.py of dvlab-research/LBGAT; there is none for CIFAR-10. A"
        " WideResNet-34-10 is its student, which --model chooses here; its beta is 6 by default,"
        " and 0 in the script of LBGAT0.",
        eps_031=True,
    )

    def __init__(self, options: LBGATOptions, threat: Threat) -> None:
        super().__init__(options, threat)
        self._teacher: nn.Module | None = None

    def companions(self) -> dict[str, Companion]:
        return {"teacher": Companion(model=self.options.teacher)}

    def join(self, networks: dict[str, nn.Module]) -> None:
        self._teacher = networks["teacher"]

    def extra_modules(self) -> dict[str, nn.Module]:
        return {} if self._teacher is None else {"teacher": self._teacher}

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        if self._teacher is None:
            raise RuntimeError("LBGAT has no teacher: join() it before the loss")
        taught = fp32(self._teacher(batch.x))
        adversarial = fp32(model(x_adv))
        loss = functional.mse_loss(adversarial, taught)
        loss = loss + functional.cross_entropy(taught, batch.targets)
        if not self.options.beta:
            return loss
        robust = functional.kl_div(
            adversarial.log_softmax(1),
            fp32(model(batch.x)).log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        return loss + self.options.beta * robust
