"""The selective attacks as ``torchattacks.Attack``: for anybody's own training loop.

They need a model with one `SpatialGate` and the true labels, and spend only a masked share of
eps: what survives them says nothing about robustness at full eps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchattacks.attack import Attack

from aal_bench.aal.attention import gate_of
from aal_bench.aal.iterated import selective_pgd, selective_pgd_refreshed
from aal_bench.aal.options import Selective
from aal_bench.aal.selective import Association, associative_mask, fgsm_step, selective_fgsm
from aal_bench.attacks.linf import attacking, gaussian_start, linf_pgd, uniform_start


class _Selective(Attack):
    """What both attacks share: the clean pass, and a model that is left as it was found.

    The base class puts a training model back with ``model.train()``, which unfreezes a batch norm
    that was in eval mode, and raises under ``no_grad``; here every module's own mode comes back
    and gradients are enabled. ``set_model_training_mode`` works as in every torchattacks attack.
    """

    def __init__(
        self, name: str, model: nn.Module, eps: float, options: Selective | None, xi1: float
    ) -> None:
        super().__init__(name, model)
        gate_of(model)
        self.eps = eps
        self.options = options or Selective()
        self.xi1 = xi1
        self.supported_mode = ["default"]
        if self.options.craft_bn == "train":
            self.set_model_training_mode(True, True, True)

    def __call__(
        self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        with attacking(self.model, weight_graph=not self.options.detach_mask):
            # An inference tensor cannot be saved for a backward pass; its copy made here can.
            return super().__call__(inputs.clone(), labels, *args, **kwargs)

    def associate(self, images: Tensor, labels: Tensor) -> Association:
        """The masks of a batch: M, M^a, K and the clean gradient; one forward and one backward."""
        with attacking(self.model, weight_graph=not self.options.detach_mask):
            self._change_model_mode(False)
            return self._associate(images.clone(), labels)

    def _associate(self, images: Tensor, labels: Tensor) -> Association:
        x = images.detach().to(self.device).requires_grad_()
        with gate_of(self.model).reading() as reading:
            loss = self._loss(x, labels)
        xi1 = self.options.descent_step(self.xi1)
        return associative_mask(loss, x, reading.M, self.options, xi1, self._first_step())

    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.get_logits(x), labels.to(self.device), reduction="sum")

    def _first_step(self) -> float | Tensor:
        raise NotImplementedError


class SelectiveFGSM(_Selective):
    """Associative adversarial learning's FGSM: x' = clip(x + K o eps sign(dG/dx)), one pass.

    Args:
        model: logits of images in [0, 1], with one `SpatialGate` inside.
        eps: Linf budget before the mask.
        options: the switches (A1-A19).
        xi1: step of Eq. 12 while ``options.xi1`` follows the learning rate: set it each step.

    Raises:
        ValueError: the model has no gate or several; an option starts FGSM away from the image.

    Shape:
        images (B,C,H,W) in [0, 1], labels (B,) -> x' (B,C,H,W).

    Examples::
        >>> attack = SelectiveFGSM(model, eps=8/255)
        >>> adv_images = attack(images, labels)
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        options: Selective | None = None,
        xi1: float = 0.1,
    ) -> None:
        super().__init__("SelectiveFGSM", model, eps, options, xi1)
        if self.options.start not in {"inherit", "clean"}:
            raise ValueError(
                f"start = '{self.options.start}': FGSM steps from the image itself; "
                "use SelectivePGD with steps=1 and alpha=eps"
            )

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return selective_fgsm(inputs.to(self.device), self._associate(inputs, labels))

    def _first_step(self) -> float | Tensor:
        return fgsm_step(self.eps, self.options)


class SelectivePGD(_Selective):
    """Associative adversarial learning's PGD: inside |x' - x| <= eps K, step alpha K.

    Args:
        model: logits of images in [0, 1], with one `SpatialGate` inside.
        eps: Linf budget before the mask.
        alpha: step before the mask.
        steps: iterations after the clean pass; each is one forward and one backward.
        options: the switches (A1-A19); ``start = inherit`` means uniform, as Madry's PGD.
        xi1: step of Eq. 12 while ``options.xi1`` follows the learning rate: set it each step.

    Raises:
        ValueError: the model has no gate or several.

    Shape:
        images (B,C,H,W) in [0, 1], labels (B,) -> x' (B,C,H,W).

    Examples::
        >>> attack = SelectivePGD(model, eps=8/255, alpha=2/255, steps=10)
        >>> adv_images = attack(images, labels)
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        options: Selective | None = None,
        xi1: float = 0.1,
    ) -> None:
        super().__init__("SelectivePGD", model, eps, options, xi1)
        self.alpha = alpha
        self.steps = steps

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        x, options = inputs.to(self.device), self.options
        found = self._associate(x, labels)
        start = self._start(x, found.K.detach())

        def objective(x_adv: Tensor) -> Tensor:
            return self._loss(x_adv, labels)

        budget = (found, self.eps, self.alpha, self.steps, options)
        if options.pgd_refresh:
            gate, xi1 = gate_of(self.model), options.descent_step(self.xi1)
            return selective_pgd_refreshed(objective, gate, x, *budget, xi1, start)
        # From the image itself, the clean pass already gave the first step's gradient.
        gradient = found.g if start is None else None
        return selective_pgd(linf_pgd, objective, x, *budget, start, gradient)

    def _start(self, x: Tensor, K: Tensor) -> Tensor | None:
        if self.options.start == "clean":
            return None
        if self.options.start == "gaussian":
            noise = gaussian_start(x) - x
            return x + torch.minimum(noise.abs(), self.eps * K) * noise.sign()
        return uniform_start(x, self.eps * K)

    def _first_step(self) -> float | Tensor:
        return self.alpha
