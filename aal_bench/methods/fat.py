"""FAT: friendly adversarial training (Zhang et al. 2020, arXiv 2002.11242)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.attacks.linf import attacking, input_gradient, linf_pgd, uniform_start
from aal_bench.methods.base import Batch, Method, Objective, Options, Recipe, fp32, stepwise

SCHEDULE = ((50 / 120, 0), (90 / 120, 1), (1.0, 2))
"""(share of training, tau until then): by epochs of 120 in the official code."""


class FATOptions(Options):
    """Options of FAT."""

    tau: int | None = Field(None, ge=0)
    """Iterates at which an image may be misclassified and go on; unset: the official 0, 1, 2."""
    omega: float = Field(0.001, ge=0)
    """Standard deviation of the Gaussian noise that every step adds, in pixel units."""


class FAT(Method):
    """min_W CE(f(x'), y), x' by PGD from U(-eps, eps) that stops early for each image.

    An image goes on until it is found misclassified for the (tau + 1)-th time, or for all steps:
    the algorithm of the paper and of the code, so that "tau steps after the first mistake" holds
    of an image that stays misclassified. tau is 0 in the first 50/120 of training, 1 until 90/120,
    then 2. Officially ``--dynamictau False`` is read as true and the schedule cannot be left; a
    number for `tau` does so here. The official clean forward, which nothing uses, is not made.

    Cost: an image that moves k times is in min(k + 1, steps) forwards and backwards of the attack,
    since the pass that finds it misclassified has its gradient as well; K of those passes on
    average make K + 1 forwards, K backwards to x, 1 to the weights. The host waits for the device
    once a step, to leave the images that stopped out of the next.
    """

    Options = FATOptions
    options: FATOptions
    recipe = Recipe(
        train=stepwise(120, (59, 89, 109), 2e-4, decay=(0.1, 0.1, 0.5)),
        crafting={"step": "0.007", "steps": 10},
        source="FAT.py of zjfheart/Friendly-Adversarial-Training, which counts epochs from 1. Its"
        " WideResNet-32-10 is chosen by --model, and takes no normalisation there.",
        eps_031=True,
    )

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """Early-stopped PGD; ``log["mean_steps"]`` is how often an image moved."""
        with attacking(model, bn=self.options.craft_bn):
            x_adv, moves = self._stopped_early(model, batch)
        self.log = {"mean_steps": torch.full((), moves / len(batch.x), device=batch.x.device)}
        return x_adv

    def tau(self, progress: float) -> int:
        """Tau of a step, `progress` of training being done."""
        if self.options.tau is not None:
            return self.options.tau
        return next((tau for until, tau in SCHEDULE if progress < until), SCHEDULE[-1][1])

    def _stopped_early(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """x_adv (B,C,H,W), and the sum over images of the steps that each took."""
        x, y = batch.x, batch.targets
        at = uniform_start(x, self.threat.eps)
        ended = torch.empty_like(at)
        rows = torch.arange(len(x), device=x.device)
        left = torch.full_like(rows, self.tau(batch.progress))
        moves = 0
        for _ in range(self.threat.steps):
            gradient, wrong = gradient_and_mistakes(model, at, y)
            going = (~(wrong & (left == 0))).nonzero()[:, 0]
            left = left - wrong.long()
            # While all move nothing is indexed: memory format and every bit stay those of PGD.
            if len(going) < len(rows):
                ended[rows] = at
                if not len(going):
                    return ended, moves
                rows, x, y, at = rows[going], x[going], y[going], at[going]
                left, gradient = left[going], gradient[going]
            at = self._step(x, at, gradient)
            moves += len(rows)
        if len(rows) == len(ended):
            return at, moves
        ended[rows] = at
        return ended, moves

    def _step(self, x: Tensor, x_adv: Tensor, gradient: Tensor) -> Tensor:
        """One step of the one PGD, from x_adv or from noise around it."""
        start = x_adv
        if self.options.omega:
            start = x_adv + self.options.omega * torch.randn_like(x_adv)
        eps, alpha = self.threat.eps, self.threat.step
        return linf_pgd(torch.sum, x, start, eps, alpha, steps=1, gradient=gradient)


def gradient_and_mistakes(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of CE at x, and which images (B,) are misclassified there, from one and the same forward."""
    predicted = y

    def objective(x_adv: Tensor) -> Tensor:
        nonlocal predicted
        logits = fp32(model(x_adv))
        predicted = logits.detach().argmax(1)
        return functional.cross_entropy(logits, y, reduction="sum")

    return input_gradient(objective, x), predicted != y
