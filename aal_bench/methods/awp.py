"""PGD and TRADES with adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884).

The perturbation is the update `awp`, which composes with every method; these are the two that its
authors trained, by the names that their tables have.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aal_bench.methods.base import Recipe, stepwise
from aal_bench.methods.pgd import PGD
from aal_bench.methods.trades import TRADES


class AWPPGD(PGD):
    """min_W max_v CE(f_{w+v}(x'), y), ||v_l|| <= gamma ||w_l|| in every layer; x' is PGD's.

    Cost with 10 steps: 12 forwards, 10 backwards to x, 2 to the weights.
    """

    update: ClassVar[str] = "awp"
    update_defaults: ClassVar[dict[str, dict[str, Any]]] = {"awp": {"gamma": 0.01, "warmup": 0.0}}
    recipe = Recipe(
        train=stepwise(200, (100, 150), 5e-4),
        options={"craft_bn": "train"},
        crafting={"step": "2/255", "steps": 10},
        source="AT_AWP/train_cifar10.py of csdongxian/AWP, for a PreActResNet-18 or a"
        " WideResNet-34-10. Its reflecting crops have no counterpart here; nor has the first batch"
        " of an epoch, which it attacks in eval mode.",
    )


class TRADESAWP(TRADES):
    """min_W max_v TRADES' loss at w + v, ||v_l|| <= gamma ||w_l|| in every layer; x' is TRADES'.

    Cost with 10 steps: 15 forwards, 10 backwards to x, 4 to the weights; those of TRADES while the
    weights are not perturbed yet, in the first `update.warmup` of training.
    """

    update: ClassVar[str] = "awp"
    recipe = Recipe(
        train=stepwise(200, (99, 149), 5e-4),
        crafting={"step": "2/255", "steps": 10},
        source="trades_AWP/train_trades_cifar.py of csdongxian/AWP, which counts epochs from 1."
        " Its WideResNet-34-10 is chosen by --model, and takes no normalisation there.",
    )
