"""IAAT: instance adaptive adversarial training (Balaji et al. 2019, arXiv 1910.08051)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start
from aal_bench.methods.base import Batch, Method, Objective, Options, Recipe, Threat, stepwise


class IAATOptions(Options):
    """Options of IAAT."""

    gamma: float = Field(1.9 / 8, gt=0)
    """By how much an image's eps is tried larger or smaller, as a share of the task's eps."""
    smoothing: float = Field(0.1, gt=0, le=1)
    """Weight of the newly found eps in the one that is kept."""
    warmup: float = Field(10 / 110, ge=0, le=1)
    """Share of training with the task's eps for every image that is classified right."""
    cap: float | None = Field(None, gt=0)
    """Largest eps of an image, as a share of the task's eps; unset, as officially: none."""


class IAAT(Method):
    """min_W CE(f(x'), y), x' by PGD within an eps_i of each image's own.

    Warm-up: eps_i = eps where the clean image is classified right, else 0. Then new_i = eps_i +
    gamma if PGD fails there, else eps_i if it fails there, else eps_i - gamma; 0 where the clean
    image is classified wrong; eps_i <- (1 - s) eps_i + s max(new_i, 0), s the smoothing, and one
    more attack at that eps_i is trained on. Step size max(step, 2 eps_i / steps).

    Nothing stops an eps_i from growing past the task's eps, which is the authors' design: `cap`
    holds it. Keeps one float32 for each training image. Cost with 10 steps: 34 forwards, 30
    backwards to x, 1 to the weights; in warm-up 12, 10 and 1. Outside a step of training its
    attack is PGD at the task's eps.
    """

    Options = IAATOptions
    options: IAATOptions
    recipe = Recipe(
        train=stepwise(110, (70, 90, 100), 5e-4, decay=0.2, batch_size=256),
        options={"craft_bn": "train"},
        crafting={"step": "2/255", "steps": 10},
        source="configs/train_adaptive.json and trainers/trainer_adaptive.py of yogeshbalaji/"
        "Instance_Adaptive_Adversarial_Training. Its WideResNet-32-10 without affine batch norms"
        " and its reflecting crops have no counterpart here.",
    )

    def __init__(self, options: IAATOptions, threat: Threat) -> None:
        super().__init__(options, threat)
        self._images: int | None = None
        self._eps: Tensor | None = None
        """(N,) float32 in pixel units, by position in the training set."""
        self._stepping: Tensor | None = None
        """``batch.idx`` of the step that is being taken: only there do positions mean ours."""
        self._chosen: Tensor | None = None

    def remember(self, images: int) -> None:
        self._images = images

    def before_step(self, batch: Batch) -> None:
        if self._images is None:
            raise RuntimeError("IAAT keeps an eps for every image: remember(images) comes first")
        if self._eps is None:
            # An image that no warm-up step saw, in a short training, begins as warm-up would.
            self._eps = torch.full((self._images,), self.threat.eps)
        self._eps = self._eps.to(batch.x.device)
        self._stepping = batch.idx

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        with attacking(model, bn=self.options.craft_bn):
            if self._eps is None or batch.idx is not self._stepping:
                eps = batch.x.new_full((len(batch.x),), self.threat.eps, dtype=torch.float32)
                return self._craft(batch, objective, eps)
            eps = self._choose(model, batch, objective, self._eps[batch.idx])
            self._chosen = eps
            self.log = {"mean_eps": eps.mean()}
            return self._craft(batch, objective, eps)

    def after_step(self, batch: Batch, x_adv: Tensor) -> None:
        assert self._eps is not None
        assert self._chosen is not None
        self._eps[batch.idx] = self._chosen
        self._stepping = self._chosen = None

    def _choose(self, model: nn.Module, batch: Batch, objective: Objective, kept: Tensor) -> Tensor:
        """(B,): the eps of each image in this step, from the `kept` one and attacks around it."""

        def right(x: Tensor) -> Tensor:
            with torch.no_grad():
                return model(x).argmax(1) == batch.targets

        share, full = self.options.gamma, self.threat.eps
        largest = torch.inf if self.options.cap is None else self.options.cap * full
        clean = right(batch.x)
        if batch.progress < self.options.warmup:
            return clean * torch.full_like(kept, full).clamp(max=largest)
        larger = (kept + share * full).clamp(max=largest)
        at_kept = right(self._craft(batch, objective, kept))
        at_larger = right(self._craft(batch, objective, larger))
        found = torch.where(at_kept, kept, kept - share * full)
        found = clean * torch.where(at_larger, larger, found).clamp(min=0)
        return torch.lerp(kept, found, self.options.smoothing)

    def _craft(self, batch: Batch, objective: Objective, eps: Tensor) -> Tensor:
        alpha = (2 * eps / self.threat.steps).clamp(min=self.threat.step)
        eps, alpha = (value[:, None, None, None] for value in (eps, alpha))
        return linf_pgd(
            self.cross_entropy_plan_objective(batch, objective),
            batch.x,
            start=uniform_start(batch.x, eps),
            eps=eps,
            alpha=alpha,
            steps=self.threat.steps,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"eps": self._eps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._eps = state["eps"]
