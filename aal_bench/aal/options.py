"""Every reading of the paper as a typed switch: A1-A20 number the ambiguities. No torch.

A20 (batch size, augmentation, epochs) has no switch here: those belong to the task, so that the
rows of all methods compare.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aal_bench.config import Strict

Sign = Literal["ascent", "descent"]
Kernel = Literal["m", "m2", "one_minus_m2"]
Gamma = Literal["elementwise", "row", "row_T", "matrix", "exact_mask", "none"]
Ratio = Literal["signed_clip1", "abs_clip1", "one", "raw"]
Trigger = Literal["top_frac", "rank_gt", "minmax_gt", "value_gt", "all", "signed"]
Pooling = Literal["sum", "mean", "image"]
Control = Literal[
    "none",
    "const_mask_matched_mean",
    "shuffled_mask",
    "random_mask",
    "full_mask_eps_scaled",
    "gaussian_noise",
    "no_attack",
    "no_gate",
]


class Gate(Strict):
    """The spatial attention gate of CBAM, and where it is put."""

    position: Literal["post_bn_relu", "post_conv1"] = Field(
        default="post_bn_relu",
        description="After the first convolution's BN and ReLU, or directly after the convolution",
    )
    channel_gate: bool = Field(
        default=False,
        description="A19: CBAM's channel gate before the spatial one; the text needs none",
    )
    kernel_size: int = Field(default=7, ge=1, description="Side of the gate's convolution, odd")
    bn_momentum: float = Field(
        default=0.01, gt=0, le=1, description="CBAM's own; its statistics lag (A17)"
    )
    bn_weight_init: Literal[0, 1] = Field(
        default=0,
        description="A18: the gate BN's initial weight; 0 (CBAM's code) means M = 0.5 everywhere",
    )

    @model_validator(mode="after")
    def _odd(self) -> Gate:
        if self.kernel_size % 2 == 0:
            raise ValueError("kernel_size must be odd, or the mask is not the feature map's size")
        return self


class Selective(Strict):
    """How the associative mask is computed and used; the defaults are the default reading."""

    sign: Sign = Field(
        default="ascent",
        description="A1: Eq. 1 raises the loss; descent is its printed, cooperative sign",
    )
    kernel: Kernel = Field(default="m2", description="k of Eq. 2: M, M*M or 1 - M*M")
    gamma: Gamma = Field(
        default="elementwise",
        description="A2-A4: the coupling. row: per-row inner product; row_T: with Eq. 6's "
        "transpose; matrix: '/M' as inverse; exact_mask: d/dM of G(x + k(M) delta); none: zero",
    )
    ratio: Ratio = Field(
        default="signed_clip1",
        description="A5: the change of delta over the change of M. A6: abs_clip1 and one flip the "
        "backtracking's sign where the signed ratio is negative",
    )
    pgd_refresh: bool = Field(
        default=False,
        description="A5: PGD recomputes M and the mask at every iterate, not once from x",
    )
    reduction: Literal["sum", "mean"] = Field(
        default="sum",
        description="A7: loss whose gradients enter; mean shrinks every step by the batch",
    )
    pooling: Pooling = Field(
        default="sum",
        description="A8: from image to mask resolution by sum (adjoint of nearest upsampling) or "
        "mean; image: no pooling, Eqs. 13-14 on the upsampled mask",
    )
    trigger: Trigger = Field(
        default="top_frac",
        description="A9: which pixels backtrack, by sum_c|g_c|: the zeta fraction of largest; "
        "ascending rank, min-max or plain value > zeta; all; signed: top_frac without the modulus",
    )
    zeta: float = Field(default=0.1, ge=0, le=1, description="A9: threshold of Eq. 14")
    xi1: Literal["follow_lr"] | Annotated[float, Field(ge=0)] = Field(
        default="follow_lr",
        description="A16: step of Eq. 12: the optimiser's current rate, or a constant",
    )
    xi2: float = Field(default=0.1, ge=0, description="Step of the backtracking, Eq. 13")
    grad_norm: Literal["none", "maxabs"] = Field(
        default="none",
        description="maxabs: g and g_M divided by their per-image maximum before Eqs. 12-13. "
        "A deviation, for the question whether backtracking can matter at all",
    )
    detach_mask: bool = Field(
        default=True,
        description="A10: false lets the training gradient reach the mask: it learns to hide",
    )
    second_att: Literal["recompute", "inject_Ma", "inject_M"] = Field(
        default="recompute",
        description="A11: attention of the training pass; injected ones see the label",
    )
    clamp_mask: tuple[float, float] = Field(
        default=(0.0, 1.0), description="A12: range of M^a; within [0, 1], so that |eta| <= eps"
    )
    fgsm_step: Literal["eps", "two"] = Field(
        default="eps",
        description="A13: the one step of FGSM: eps, or 2/255 with eps as the clip only",
    )
    start: Literal["inherit", "clean", "uniform", "gaussian"] = Field(
        default="inherit", description="A14: the attack's start; inherit: the wrapped method's"
    )
    clean_weight: float = Field(
        default=0.0, ge=0, le=1, description="A15: weight of the clean batch in the training loss"
    )
    craft_bn: Literal["inherit", "eval", "train"] = Field(
        default="inherit",
        description="A17: batch-norm mode of the attack; inherit: the wrapped method's",
    )
    gate: Gate = Gate()
    control: Control = Field(
        default="none",
        description="What replaces the mask: the paper's claim is only interesting against these. "
        "gaussian_noise: noise of the perturbation's own L2 norm in its place; no_attack: the gate "
        "alone, trained on clean images; no_gate: the wrapped method on the network without a gate",
    )

    @model_validator(mode="after")
    def _inside_unit_interval(self) -> Selective:
        low, high = self.clamp_mask
        if not 0 <= low <= high <= 1:
            raise ValueError("clamp_mask must be [low, high] with 0 <= low <= high <= 1")
        return self

    def descent_step(self, lr: float) -> float:
        """A16: xi1 of Eq. 12, given the optimiser's current rate."""
        return lr if self.xi1 == "follow_lr" else self.xi1
