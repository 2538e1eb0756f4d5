"""T8: adversarials of other networks, judged on this one.

Where a surrogate's adversarials fool a network that its own gradients do not, those gradients are
masked (Carlini et al. 2019, arXiv 1902.06705).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from aal_bench.attacks.adaptive.budget import Budget, Setting
from aal_bench.attacks.adaptive.losses import cross_entropy
from aal_bench.attacks.adaptive.plain import Run
from aal_bench.attacks.adaptive.search import Seen, Surrogate, apgd, errs, first_fooling
from aal_bench.attacks.linf import attacking


def transferred_pgd(setting: Setting, budget: Budget, surrogate: nn.Module) -> Run:
    """PGD on max CE of the surrogate; the target is looked at every ``budget.check`` steps."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def objective(z: Tensor, rows: Tensor) -> Seen:
            return Seen(cross_entropy(surrogate(z), y[rows]))

        with attacking(surrogate):
            return first_fooling(partial(errs, model), objective, x, y, setting, budget)

    return run


def transferred_apgd(setting: Setting, budget: Budget, surrogate: nn.Module) -> Run:
    """APGD on CE of the surrogate; the target is shown the strongest and the latest iterate."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with attacking(surrogate):
            return apgd(
                Surrogate(partial(errs, model), lambda z: (surrogate(z), None)),
                *(x, y, setting, budget, "ce"),
            )

    return run
