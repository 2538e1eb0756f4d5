"""AGAIN, adversarial training with attribution span enlargement and hybrid feature fusion.

Yin et al. 2023, CVPR (poster; code for AGAIN with AWP on a WideResNet). The gate (ASE) is that of
CAS with the weights of two classes mixed in training. The code defines hybrid feature fusion (HFF)
and never calls it, so its place and its partner are switches here; ``method.hff.p=0`` leaves it
out as the code does.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from aal_bench.again.class_gate import ClassGate, Mixing
from aal_bench.again.fusion import HFF, Gamma, Partner
from aal_bench.attacks.linf import gaussian_start
from aal_bench.config import Strict
from aal_bench.methods.base import Recipe, stepwise
from aal_bench.methods.cas import CAS, CASOptions, Heads
from aal_bench.methods.mart import boosted_cross_entropy, divergence, missed_probability

OFFICIAL = stepwise(200, (99, 149), 5e-4)
"""Of the official script's ``[train]``; it counts epochs from 1."""
WITHOUT_FUSION = {"hff": {"p": 0.0}}
"""The script's network defines feature fusion and never calls it."""
CRAFTING = {"step": "2/255", "steps": 10}


class Fusing(Strict):
    """Options of hybrid feature fusion."""

    p: float = Field(default=1.0, ge=0, le=1)
    """Probability that a training pass is fused: 1, or 0.5 as in MixStyle; 0: never."""
    partner: Partner = "batch_perm"
    """A': features of other images of the attacked batch, or of the same images without attack,
    which takes one more forward where the loss makes none."""
    gamma: Gamma = "batch"
    """Weights of the four statistics: a Dirichlet draw for the batch as in the code, one for each
    sample, or a quarter each."""
    position: Literal["first", "each"] = "first"
    """Before the first gate, or before each."""


class AGAINOptions(CASOptions):
    """Options of AGAIN."""

    beta: float = Field(2.0, ge=0)
    """Weight of the auxiliary heads' mean loss, in training and in the attack: 2 in the code, 1 on
    the poster."""
    alpha: float = Field(0.6, ge=0, le=1)
    """Share of the true class in a training gate; 0.6 officially, and 1 is the gate of CAS."""
    mixing: Mixing = "permutation"
    """The other class of a training gate: of a permuted batch (which may be the same class), of a
    batch member of another class, any other class, or the second-best of the auxiliary head."""
    start_std: float = Field(0.001, ge=0)
    """Standard deviation of the Gaussian start of the inner attack."""
    hff: Fusing = Fusing()


class AGAINPGD(CAS):
    """min_W CE(f(x'), y) + beta mean_l CE(a_l(x'), y), x' maximising the same sum on test gates.

    Training gates are alpha W_l[y] + (1 - alpha) W_l[y'], test gates W_l[argmax a_l]; in training
    the first gate's input is fused: sigma^ (A - mu) / sigma + mu^. Cost with 10 steps: 11 forwards,
    10 backwards to x, 1 to the weights; 1 forward and 1 backward more with ``hff.partner = clean``.
    """

    Options = AGAINOptions
    options: AGAINOptions  # type: ignore[assignment]
    least_batch = 2
    update_defaults: ClassVar[dict[str, dict[str, Any]]] = {
        # Officially from the tenth of 200 epochs on.
        "awp": {"gamma": 0.005, "warmup": 9 / 200}
    }
    recipe = Recipe(
        OFFICIAL,
        options=WITHOUT_FUSION,
        crafting=CRAFTING,
        source="train_awp_again_cifar.py, whose AWP is left to again-awp. Its network never fuses"
        " features; --set method.hff.p=1 does.",
    )

    def gate(self, classes: int, channels: int) -> ClassGate:
        options = self.options
        return ClassGate(classes, channels, options.alpha, options.mixing, options.test_gate)

    def fusions(self, paths: list[str]) -> dict[str, HFF]:
        chosen = self.options.hff
        if not chosen.p:
            return {}
        where = paths[:1] if chosen.position == "first" else paths
        return {path: HFF(chosen.partner, chosen.gamma, chosen.p) for path in where}

    def start(self, x: Tensor) -> Tensor:
        return gaussian_start(x, self.options.start_std)


class AGAINAWP(AGAINPGD):
    """AGAIN-PGD with adversarial weight perturbation of the same joint loss.

    min_W max_v CE(f(x'), y) + beta mean_l CE(a_l(x'), y) at W + v, each of the two passes with
    partners and statistics of its own. Cost with 10 steps: 12 forwards, 10 backwards to x, 2 to the
    weights; during warm-up that of AGAIN-PGD.
    """

    update = "awp"
    recipe = Recipe(
        OFFICIAL,
        options=WITHOUT_FUSION,
        crafting=CRAFTING,
        source="train_awp_again_cifar.py. Its network never fuses features; --set method.hff.p=1"
        " does.",
    )


class AGAINMARTOptions(AGAINOptions):
    """Options of AGAIN on MART."""

    mart_beta: float = Field(5.0, ge=0)
    """lambda, the weight of the divergence; 5 officially."""


class AGAINMART(AGAINPGD):
    """min_W L(f) + beta mean_l L(a_l), L(h) = BCE(h(x'), y) + lambda KL(h(x) || h(x')) (1 - p_y).

    Here p_y is the final head's clean probability in every term; the clean pass is gated by the
    labels as well, with the same y', and fused by the same draws (or not at all where it is the
    partner): else the divergence is mostly one of statistics, and training fails. x' maximises the
    joint CE of AGAIN-PGD. Cost with 10 steps: 12 forwards, 10 backwards to x, 2 to the weights,
    whatever ``hff.partner``.
    """

    Options = AGAINMARTOptions
    options: AGAINMARTOptions  # type: ignore[assignment]
    needs_clean = True
    recipe = Recipe(
        train=stepwise(120, (74, 89, 99), 2e-4),
        crafting={"step": "0.007", "steps": 10},
        source="CAS's MART/train_mart_cas.py, which counts epochs from 1: AGAIN's code has no MART",
        eps_031=True,
    )

    def head_loss(self, head: int, found: Heads) -> Tensor:
        adversarial, clean = found.adversarial[head], found.clean[head]
        missed = missed_probability(found.clean[0], found.y)
        robust = (divergence(clean, adversarial) * missed).mean()
        boosted = boosted_cross_entropy(adversarial, found.y).mean()
        return boosted + self.options.mart_beta * robust
