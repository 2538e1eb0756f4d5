"""What happens around the optimiser step. An update composes with every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from aal_bench.config import Strict
from aal_bench.errors import UserError
from aal_bench.methods.base import Method

Closure = Callable[[], Tensor]
"""() -> the method's scalar loss, re-callable."""


class PlainOptions(Strict):
    """Plain has no options."""


class Plain:
    """One backward of the loss, one optimiser step."""

    Options: ClassVar[type[Strict]] = PlainOptions

    def __init__(self, options: Strict) -> None:
        self.options = options

    def check(self, method: Method) -> None:
        """Refuse a method that this update cannot work with; Plain takes every one.

        Raises:
            UserError: it cannot; the message names the option to change.
        """

    def __call__(
        self,
        model: nn.Module,
        loss: Closure,
        backward: Callable[[Tensor], None],
        step: Callable[[], None],
        progress: float,
        others: Sequence[nn.Module] = (),
    ) -> Tensor:
        """Descend; returns the loss, detached and not synchronised.

        Args:
            model: the trained network.
            loss: the method's loss.
            backward: back-propagates a scalar (accelerate's, so that scaling is respected).
            step: clips and steps the optimiser and clears gradients.
            progress: share of training done, in [0, 1].
            others: networks trained beside `model`, which the loss runs as well.
        """
        value = loss()
        backward(value)
        step()
        return value.detach()


class AWPOptions(Strict):
    """Options of adversarial weight perturbation."""

    gamma: float = Field(0.01, ge=0)
    """||v_l|| / ||w_l|| per layer: 0.01 for PGD, 0.005 for TRADES in the official code."""
    warmup: float = Field(0.0, ge=0, le=1)
    """Share of training before which the weights are not perturbed."""


class AWP(Plain):
    """Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884).

    v_l = gamma ||w_l|| g_l / ||g_l|| for every weight with two or more dimensions, from one ascent
    gradient of the method's own loss; the optimiser steps at w + v (so weight decay sees w + v),
    and v is subtracted after. The official proxy network exists so that batch-norm's running
    statistics are not touched twice; freezing them during the ascent forward is the same. Cost on
    top: the loss's own passes once more.
    """

    Options = AWPOptions
    options: AWPOptions

    def check(self, method: Method) -> None:
        """Refuse an attack that keeps its graph: it can be differentiated once, AWP needs twice."""
        if self.options.gamma and method.keeps_graph:
            raise UserError(
                "update awp cannot follow an attack that is differentiated through:"
                " set method.detach_mask=true, or use --update plain"
            )

    def __call__(
        self,
        model: nn.Module,
        loss: Closure,
        backward: Callable[[Tensor], None],
        step: Callable[[], None],
        progress: float,
        others: Sequence[nn.Module] = (),
    ) -> Tensor:
        """Perturb the weights, descend there, take the perturbation back."""
        if not self.options.gamma or progress < self.options.warmup:
            return super().__call__(model, loss, backward, step, progress, others)
        weights = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and "weight" in name and parameter.requires_grad
        ]
        with frozen_statistics(model, *others):
            # A weight that the loss does not reach (a gate that is pinned) is not perturbed.
            gradients = torch.autograd.grad(loss(), weights, materialize_grads=True)
        with torch.no_grad():
            shifts = [
                w.norm() * self.options.gamma / (g.norm() + 1e-12) * g
                for w, g in zip(weights, gradients, strict=True)
            ]
            for weight, shift in zip(weights, shifts, strict=True):
                weight.add_(shift)
        try:
            return super().__call__(model, loss, backward, step, progress, others)
        finally:
            with torch.no_grad():
                for weight, shift in zip(weights, shifts, strict=True):
                    weight.sub_(shift)


@contextmanager
def frozen_statistics(*networks: nn.Module) -> Iterator[None]:
    """Batch norms normalise with the batch (train mode) but leave their running statistics."""
    norms = [
        module
        for network in networks
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counter
