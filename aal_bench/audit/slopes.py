"""Does the loss move as autograd says? Finite differences along the gradient's sign."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.adapters.attack_stage import FAILURES
from aal_bench.audit.bank import Bank, gradient_of, loss_of
from aal_bench.audit.subject import Part

NEAR = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Step h of a slope by the precision it is computed in: few kinks in between, little rounding."""
FAR = (2 / 255, 8 / 255)
"""Steps at which a loss without gradient is asked whether it moves after all."""
INSET = 2 / 255
"""Distance of the points from the faces of the box, where clipped models have kinks."""


class Slopes(NamedTuple):
    """Per image: what autograd says of the margin's slope, and what the margin does."""

    claimed: Tensor
    """(B,) sum |g|: the slope along sign(g), if the gradient is right."""
    near: Tensor
    """(B,) [f(x + h s) - f(x - h s)] / 2h, s = sign(g), h small."""
    far: Tensor
    """(B,) largest |f(x + h s) - f(x - h s)| for larger h, s a random sign where g = 0."""

    def contradicts(self) -> Tensor:
        """(B,) the slope is not positive though a gradient is claimed, or moves without one."""
        none = self.claimed == 0
        return torch.where(none, self.far > 0, ~(self.near > 0))


def slopes_of(bank: Bank, part: Part) -> Slopes:
    """Slopes of the margin max_{k != y} z_k - z_y near the images of `part`.

    The margin and not the cross-entropy, which is flat in floating point where a model is sure. In
    float64 on a copy of the model where the model can do that, else in its own precision. At the
    image moved by up to 1/255 and off the faces of the box: pixels that are exactly black put
    networks without biases exactly on their kinks. Every pass draws the same random numbers, so
    that a random model is judged by its slope.

    Raises:
        NoGradient: the model cannot be differentiated.
    """
    model, part = in_float64(bank, part)
    size = bank.subject.batch_size
    found = [
        _slopes(bank, model, x, y)
        for x, y in zip(part.x.split(size), part.y.split(size), strict=True)
    ]
    return Slopes(*(torch.cat(each) for each in zip(*found, strict=True)))


def _slopes(bank: Bank, model: nn.Module, x: Tensor, y: Tensor) -> Slopes:
    """Slopes of one batch."""
    noise = torch.empty_like(x).uniform_(-1, 1) / 255
    x = (x + noise).clamp(INSET, 1 - INSET)

    def margin(moved: Tensor) -> Tensor:
        torch.manual_seed(bank.subject.seed)
        with torch.no_grad():
            return loss_of(model(moved), y, "margin").double()

    with bank.counting(model):
        torch.manual_seed(bank.subject.seed)
        g = gradient_of(model, x, y, "margin")
        anywhere = torch.empty_like(x).uniform_(-1, 1).sign()
        claimed = g.double().abs().flatten(1).sum(1)
        sign = torch.where((claimed == 0)[:, None, None, None], anywhere, g.sign())
        h = NEAR[x.dtype]
        near = (margin(x + h * sign) - margin(x - h * sign)) / (2 * h)
        far = torch.zeros_like(claimed)
        if bool((claimed == 0).any()):
            for step in FAR:
                up, down = (x + step * sign).clamp(0, 1), (x - step * sign).clamp(0, 1)
                far = torch.maximum(far, (margin(up) - margin(down)).abs())
    return Slopes(claimed.cpu(), near.cpu(), far.cpu())


def in_float64(bank: Bank, part: Part) -> tuple[nn.Module, Part]:
    """A float64 copy of the part's model and the part's images for it, or both as they are."""
    try:
        model = copy.deepcopy(part.model).double().eval()
        with bank.counting(model), torch.no_grad():
            answer = model(part.x[:1].double())
    except FAILURES:
        return part.model, part
    if answer.dtype != torch.float64:
        return part.model, part
    return model, part._replace(x=part.x.double())
