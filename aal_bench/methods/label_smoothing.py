"""PGD adversarial training with smoothed labels (Pang et al. 2021, arXiv 2010.00467)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.errors import UserError
from aal_bench.methods.base import Batch, Objective, Options, Recipe, fp32, stepwise
from aal_bench.methods.pgd import PGD


class LS08Options(Options):
    """Options of LS0.8."""

    factor: float = Field(0.8, gt=0, le=1)
    """Target probability of the true class; the rest is shared by the others. 1: hard labels."""


class LS09Options(Options):
    """Options of LS0.9."""

    factor: float = Field(0.9, gt=0, le=1)
    """Target probability of the true class; the rest is shared by the others. 1: hard labels."""


class LS08PGD(PGD):
    """min_W -sum_k q_k log p_k(x'), q_y = factor and (1 - factor) / (C - 1) elsewhere.

    x' is PGD's and maximises CE on the hard label, as in the official code, whose ``smoothing`` is
    1 - factor. Cost with 10 steps: 11 forwards, 10 backwards to x, 1 to the weights.
    """

    Options = LS08Options
    options: LS08Options | LS09Options
    recipe = Recipe(
        train=stepwise(110, (100, 105), 5e-4),
        crafting={"step": "2/255", "steps": 10},
        source="train_cifar.py of P2333/Bag-of-Tricks-for-AT with --labelsmooth --BNeval. The"
        " WideResNet-34-10 of its tables is chosen by --model; its reflecting crops have no"
        " counterpart here.",
    )

    def check(self, classes: int, images: int, shape: tuple[int, int, int]) -> None:
        torchs_smoothing(self.options.factor, classes)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        logits = fp32(model(x_adv))
        smoothing = torchs_smoothing(self.options.factor, logits.shape[1])
        return functional.cross_entropy(logits, batch.targets, label_smoothing=smoothing)


class LS09PGD(LS08PGD):
    """LS0.8 at 0.9."""

    __doc__ = LS08PGD.__doc__
    Options = LS09Options


def torchs_smoothing(factor: float, classes: int) -> float:
    """The ``label_smoothing`` of torch, which it spreads over all classes, the true one included.

    Raises:
        UserError: the true class would be less probable than another.
    """
    if factor * classes < 1:
        raise UserError(
            f"method option factor={factor:g}: with {classes} classes the true one would be less"
            f" probable than the others; --set method.factor= {1 / classes:g} or more"
        )
    return 0.0 if factor == 1 else min(1.0, (1 - factor) * classes / (classes - 1))
