"""LAS-AT: a learnable attack strategy (Jia et al. 2022, arXiv 2203.06616)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start
from aal_bench.methods.base import (
    Batch,
    Companion,
    Method,
    Objective,
    Options,
    Recipe,
    Threat,
    fp32,
    stepwise,
)

RESTARTS = 2
"""Of the PGD by which the look-ahead copy's robustness is measured."""
LARGEST_LOSS = 10.0
"""What the crafted images' loss counts for at most."""


class LASATOptions(Options):
    """Options of LAS-AT; eps and alpha are in units of 1/8 of the task's eps: 1/255 at 8/255."""

    strategy: str | None = None
    """Model of the strategy network; unset: the run's own. Officially ``resnet18``."""
    eps: tuple[int, int] = (3, 15)
    """Smallest and largest budget, in eighths of the task's eps: 15 is nearly twice the task's."""
    steps: tuple[int, int] = (3, 14)
    """Fewest and most steps to choose from, in place of the task's."""
    alpha: tuple[int, int] = (1, 5)
    """Smallest and largest step size, in eighths of the task's eps."""
    label: float = Field(0.7, ge=0.5, le=1)
    """Target probability of the true class; the rest is spread evenly over the others."""
    interval: int = Field(20, ge=1)
    """Steps from one update of the strategy to the next."""
    robust_weight: float = Field(4.0, ge=0)
    """Weight of the look-ahead copy's robust accuracy in the reward."""
    clean_weight: float = Field(2.0, ge=0)
    """Weight of its clean accuracy."""
    strategy_lr: float = Field(1e-4, gt=0)
    """Learning rate of the strategy network, constant as it is in effect officially."""
    strategy_momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of its SGD."""
    strategy_clip: float = Field(1.0, gt=0)
    """Length to which its gradient is clipped."""

    @model_validator(mode="after")
    def _ranges(self) -> LASATOptions:
        for name in ("eps", "steps", "alpha"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} = [{low}, {high}]: write [smallest, largest], from 1 on")
        return self

    @property
    def widths(self) -> list[int]:
        """How many values of eps, steps and alpha there are to choose from."""
        return [high - low + 1 for low, high in (self.eps, self.steps, self.alpha)]


class Strategy(NamedTuple):
    """What was chosen for each image of a batch."""

    eps: Tensor
    """(B, 1, 1, 1) in pixel units."""
    steps: Tensor
    """int64 (B,)."""
    alpha: Tensor
    """(B, 1, 1, 1) in pixel units."""
    log_p: Tensor
    """(B,): log-probability of the three choices together."""


class LASAT(Method):
    """min_W CE(f(x'), smoothed y), x' by PGD whose eps, steps and step size are sampled.

    They come for each image from a strategy network g(x) with three softmax heads; the start is
    U(-eps, eps) of the task. Every `interval` steps g descends -R mean log p(choices), R = min(CE
    of x', 10) + 4 robust + 2 clean accuracy of a copy of f that is one SGD step on x' ahead,
    without momentum and weight decay; robust against PGD at the task's eps, 2 restarts.

    Training reaches 15/8 of the task's eps, as its authors' does. The official code crafts for the
    reward once more; here it is the reward of the batch that is trained on. Cost with K the most
    steps in the batch, 14 nearly always: K + 1 forwards, K backwards to x, 1 to the weights, and 1
    forward of g; every 20th step 25, 20 and 1 on top, and 1 backward of g.
    """

    Options = LASATOptions
    options: LASATOptions
    recipe = Recipe(
        train=stepwise(110, (99, 104), 5e-4),
        options={"strategy": "resnet18"},
        crafting={"step": "2/255", "steps": 10},
        source="LAS_PGD_AT/LAS_AT_train_cifar10.py and README of jiaxiaojunQAQ/LAS-AT, for a"
        " WideResNet-34-10. The steps here are those of the reward's attack.",
    )

    def __init__(self, options: LASATOptions, threat: Threat) -> None:
        super().__init__(options, threat)
        self._strategy: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._taken = 0
        self._stepping: Tensor | None = None
        """``batch.idx`` of the step that is being taken: nothing is learnt outside one."""

    def companions(self) -> dict[str, Companion]:
        return {"strategy": Companion(self.options.strategy, sum(self.options.widths))}

    def join(self, networks: dict[str, nn.Module]) -> None:
        self._strategy = networks["strategy"]
        self._optimizer = torch.optim.SGD(
            self._strategy.parameters(),
            lr=self.options.strategy_lr,
            momentum=self.options.strategy_momentum,
        )

    def extra_modules(self) -> dict[str, nn.Module]:
        return {} if self._strategy is None else {"strategy": self._strategy}

    def param_groups(self, model: nn.Module) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        return model.parameters()

    def before_step(self, batch: Batch) -> None:
        self._taken += 1
        self._stepping = batch.idx

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        learns = batch.idx is self._stepping and self._taken % self.options.interval == 0
        chosen = self._choose(batch.x, learns)
        with attacking(model, bn=self.options.craft_bn):
            x_adv = linf_pgd(
                self.cross_entropy_plan_objective(batch, objective),
                batch.x,
                start=uniform_start(batch.x, self.threat.eps),
                eps=chosen.eps,
                alpha=chosen.alpha,
                steps=chosen.steps,
            )
        if learns:
            self._learn(chosen.log_p, self._reward(model, batch, x_adv))
        self.log = {
            "mean_eps": chosen.eps.mean(),
            "mean_steps": chosen.steps.float().mean(),
            "mean_alpha": chosen.alpha.mean(),
        }
        return x_adv

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        return self._smoothed(model(x_adv), batch.targets)

    def after_step(self, batch: Batch, x_adv: Tensor) -> None:
        self._stepping = None

    def _smoothed(self, logits: Tensor, y: Tensor) -> Tensor:
        classes = logits.shape[1]
        # torch spreads the smoothing over all classes, the true one included.
        smoothing = (1 - self.options.label) * classes / (classes - 1)
        return functional.cross_entropy(fp32(logits), y, label_smoothing=smoothing)

    # ---- the strategy ------------------------------------------------------------------------

    def _choose(self, x: Tensor, learns: bool) -> Strategy:
        if self._strategy is None:
            raise RuntimeError("LAS-AT has no strategy network: join() it before the attack")
        self._strategy.train(learns)
        log_ps, picks = [], []
        with torch.set_grad_enabled(learns):
            for head in fp32(self._strategy(x)).split(self.options.widths, dim=1):
                odds = head.log_softmax(1)
                # An exponential race: torch.multinomial raises where a diverged network says NaN,
                # for which the loop has a better message.
                pick = (odds.detach() - torch.empty_like(odds).exponential_().log()).argmax(1)
                log_ps.append(odds.gather(1, pick[:, None])[:, 0])
                picks.append(pick)
            log_p = torch.stack(log_ps).sum(0)
        unit = self.threat.eps / 8
        eps, steps, alpha = (
            pick + low
            for pick, (low, _) in zip(
                picks, (self.options.eps, self.options.steps, self.options.alpha), strict=True
            )
        )
        eps, alpha = (unit * value.to(x.dtype)[:, None, None, None] for value in (eps, alpha))
        return Strategy(eps, steps, alpha, log_p)

    def _learn(self, log_p: Tensor, reward: Tensor) -> None:
        """One step of REINFORCE: descend -reward mean log p."""
        assert self._strategy is not None
        assert self._optimizer is not None
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = -reward * log_p.mean()
        loss.backward()
        clip_grad_norm_(self._strategy.parameters(), self.options.strategy_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _reward(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        """How hard x' is, and how good the step on it makes a copy of the model; a scalar."""
        x, y = batch.x, batch.targets
        # Another set of weights would be another compilation, for a pass in twenty steps.
        model = getattr(model, "_orig_mod", model)
        ahead = self._look_ahead(model, batch, x_adv)

        def logits(images: Tensor) -> Tensor:
            return fp32(functional_call(model, ahead, (images,)))

        def loss(images: Tensor) -> Tensor:
            return functional.cross_entropy(logits(images), y, reduction="sum")

        eps, step, steps = self.threat
        with attacking(model, bn="eval"):
            starts = [uniform_start(x, eps) for _ in range(RESTARTS)]
            attacked = [linf_pgd(loss, x, start, eps, step, steps) for start in starts]
            with torch.no_grad():
                hard = functional.cross_entropy(fp32(model(x_adv)), y).clamp(0, LARGEST_LOSS)
                right = [logits(images).argmax(1) == y for images in (x, *attacked)]
        clean = right[0].to(hard.dtype).mean()
        robust = torch.stack(right[1:]).all(0).to(hard.dtype).mean()
        return hard + self.options.robust_weight * robust + self.options.clean_weight * clean

    def _look_ahead(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> dict[str, Tensor]:
        """Weights and buffers of a copy of the model after one SGD step on x'."""
        weights = {
            name: weight.detach().requires_grad_()
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        with torch.enable_grad():
            logits = functional_call(model, {**weights, **buffers}, (x_adv,))
            loss = self._smoothed(logits, batch.targets)
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        moved = {
            name: (weight - batch.lr * gradient).detach()
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
        return {**moved, **buffers}

    def state_dict(self) -> dict[str, Any]:
        assert self._optimizer is not None
        return {"steps": self._taken, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._optimizer is not None
        self._taken = state["steps"]
        self._optimizer.load_state_dict(state["optimizer"])
