"""The 32 checks, their thresholds and the two budgets: the one place where a rule is a number.

Sources: C = Carlini et al. 2019 (arXiv 1902.06705), A = Athalye et al. 2018 (1802.00420),
AA = AutoAttack's own flags (2003.01690), I = Pintor et al. 2022, indicators of attack failure
(2106.09947), W = Wong et al. 2020 (2001.03994), G = Andriushchenko and Flammarion 2020
(2007.02617), K = Kurakin et al. 2017 (1611.01236), Z = Zimmermann et al. 2022 (2206.13991),
AGAIN = Yin et al. 2023, RB = RobustBench. "own": set here. No torch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from aal_bench.audit.outcome import Severity

CLASSIFICATION = ("classification",)
EVERY = ("classification", "fewshot", "detection")


class Thresholds(NamedTuple):
    """What the rules allow; shares are fractions, so 0.005 is half a percentage point."""

    iterative_gap: float = 0.005
    """1: accuracy under PGD-10 above that under FGSM."""
    fgsm_only: float = 0.01
    """1: images that FGSM breaks and the longest PGD does not."""
    steps_gap: float = 0.01
    """2: accuracy lost between PGD-20 and the longest PGD."""
    long_steps_gap: float = 0.003
    """2, full budget: accuracy lost between PGD-100 and PGD-200."""
    still_rising: float = 0.01
    """2: relative rise of the mean loss over the last tenth of the steps."""
    restarts_gap: float = 0.01
    """3: accuracy lost between the first start and all of them."""
    unfinished_rise: float = 0.05
    """4: rise of an image's loss, rescaled to [0, 1], in the last 10 steps."""
    unfinished_share: float = 0.10
    """4: failed attacks that still rise so."""
    monotone: float = 0.002
    """5: accuracy gained by a larger eps."""
    chance_margin: float = 0.02
    """6 and 24: accuracy above 1/K that is still guessing."""
    grey_accuracy: float = 0.01
    """6: accuracy at 128/255, where any image can be made grey."""
    blackbox_gap: float = 0.002
    """8 and 26: accuracy that another kind of attack takes from the best white-box one."""
    transfer_share: float = 0.005
    """9: images that a surrogate breaks and no white-box attack does."""
    noise_share: float = 0.001
    """10: white-box-robust images that random points break."""
    slope_share: float = 0.10
    """12: images whose finite-difference slope contradicts the gradient."""
    logits_distance: float = 1e-4
    """13: L2 distance of normalised logits between two passes."""
    batch_distance: float = 1e-2
    """13: the same between batches of other sizes, whose kernels may round differently."""
    probability_tolerance: float = 1e-3
    """14: distance of a row's sum from 1; half precision's probabilities are that far off."""
    loss_change: float = 0.5
    """18: mean relative change of the loss at random offsets of width 8/255."""
    loss_change_ratio: float = 2.0
    """18: the same over that of the baseline."""
    alignment: float = 0.3
    """19: mean cosine between the gradients at x and at x + U(-eps, eps)."""
    alignment_ratio: float = 0.7
    """19: the same over that of the baseline."""
    nonlinearity_ratio: float = 2.0
    """20: mean relative linearisation error over that of the baseline."""
    smallest_loss_change: float = 1e-6
    """20: images whose loss changes by less are left out and counted."""
    collapse: float = 0.25
    """21: accuracy under FGSM above that under PGD-10."""
    collapsed: float = 0.5
    """21: share of FGSM's survivors that PGD-10 leaves too, below which the gap is a collapse; and
    of correct images that FGSM leaves, where nothing is claimed."""
    epoch_fall: float = 0.20
    """21: fall of PGD-5 accuracy on a fixed training batch between two epochs."""
    leak: float = 0.01
    """22: accuracy under FGSM with true labels above that with predicted ones."""
    margin_gap: float = 0.005
    """23: accuracy under the margin loss above that under cross-entropy."""
    margin_autoattack: float = 0.041
    """23: accuracy under the margin loss above AutoAttack's."""
    pgd_autoattack: float = 0.056
    """23: accuracy under PGD-20 above AutoAttack's."""
    implausible_clean: float = 0.899
    """24: clean accuracy on CIFAR-10 that goes with little robustness without extra data."""
    implausible_robust: float = 0.40
    """24: robust accuracy that is implausible beside it."""
    masked_gap: float = 0.02
    """25 and 31: accuracy under a claimed or masked attack above that under the audit's own."""
    closed_mask: float = 0.05
    """25: mean k(M) below which a mask is closed."""
    pinned: float = 0.99
    """26: images on which the final prediction is an auxiliary head's."""
    undefended: float = 0.01
    """28: accuracy that the attack leaves to an undefended network."""
    saturation: float = 1e4
    """29: factor on the logits of the known-broken control."""
    saturated_gap: float = 0.01
    """29: accuracy that the attack leaves to that control above what it leaves to the model."""
    binary_success: float = 0.95
    """30: success of the attack on the binary read-outs, at least."""
    reporting_gap: float = 0.001
    """31: claimed robust accuracy above the share that survives everything."""


THRESHOLDS = Thresholds()


class Budget(NamedTuple):
    """What an audit spends."""

    name: Literal["quick", "full"]
    images: int | None
    """Test images; None: as many as are evaluated, up to 1,000."""
    steps: int
    """Of the longest PGD that starts several times."""
    restarts: int
    """Random starts of it."""
    long_steps: int
    """Of one longer PGD; 0: none."""
    sweep_steps: int
    """Of the PGD at each eps of the sweep."""
    large_steps: int
    """Of the PGD at 64/255, 128/255 and 1."""
    square_queries: int
    random_points: int
    """Random points for each image that the white-box attacks leave standing."""
    random_images: int
    """Of those images, at most so many."""
    offsets: int
    """Random offsets at which the loss is looked at."""
    apgd_targets: int
    """Targets of AutoAttack's APGD-T among the white-box attacks; 0: it is left out."""
    readouts: int
    """Binary read-outs of check 30."""
    control_images: int
    """Training images of the undefended control."""
    grid: int
    """Side of the drawn loss surface."""
    detector_images: int = 16
    """Test images with objects, of a detector; a pass takes it up to a hundred times longer."""
    detector_steps: int = 20
    """Of the PGD on a detector."""
    detector_sweep: tuple[int, ...] = (2, 32)
    """Budgets of check 5 on a detector in 1/255, beside 0 and the task's own."""
    detector_sweep_steps: int = 5
    """Of the PGD on a detector at each of them, and at eps = 1."""
    detector_points: int = 4
    """Random points for each image of a detector."""

    def __str__(self) -> str:
        images = "all" if self.images is None else f"up to {self.images}"
        return (
            f"{self.name}: {images} images, PGD-{self.steps} x {self.restarts},"
            f" {self.random_points:,} random points, Square {self.square_queries:,}"
        )


QUICK = Budget(
    name="quick",
    images=100,
    steps=50,
    restarts=2,
    long_steps=0,
    sweep_steps=20,
    large_steps=50,
    square_queries=500,
    random_points=100,
    random_images=100,
    offsets=20,
    apgd_targets=0,
    readouts=10,
    control_images=1000,
    grid=13,
)
FULL = Budget(
    name="full",
    images=1000,
    steps=100,
    restarts=10,
    long_steps=200,
    sweep_steps=20,
    large_steps=100,
    square_queries=5000,
    random_points=10_000,
    random_images=200,
    offsets=100,
    apgd_targets=9,
    readouts=50,
    control_images=5000,
    grid=25,
    detector_images=100,
    detector_steps=50,
    detector_sweep=(1, 2, 4, 16, 32, 64, 128),
    detector_sweep_steps=10,
    detector_points=20,
)
BUDGETS = {budget.name: budget for budget in (QUICK, FULL)}
EPS_SWEEP = (1, 2, 4, 8, 12, 16, 32, 64, 128)
"""Budgets of check 5 in 1/255, beside 0 and the task's own."""


class Check(NamedTuple):
    """One of the 32."""

    number: int
    name: str
    """A slug, unique."""
    title: str
    rule: str
    """When it fails."""
    severity: Severity
    """The most that its failure makes of a result."""
    source: str
    families: tuple[str, ...] = CLASSIFICATION

    @property
    def code(self) -> str:
        """What a record's flag calls it."""
        return f"audit-{self.number:02}-{self.name}"


CHECKS: tuple[Check, ...] = (
    Check(
        1,
        "iterative-beats-one-step",
        "iterated attacks beat one step",
        "PGD-10 leaves over 0.5 points more than FGSM, or over 1 % of images fall to FGSM and"
        " survive the longest PGD",
        "unreliable",
        "A §3.1, C (basic sanity tests)",
        EVERY,
    ),
    Check(
        2,
        "convergence",
        "more steps change nothing",
        "the longest PGD leaves over 1 point less than PGD-20 (PGD-200 over 0.3 less than PGD-100),"
        " or the mean loss still rises by over 1 % in the last tenth of the steps",
        "warning",
        "C (verify the attacks have converged)",
        EVERY,
    ),
    Check(
        3,
        "restarts",
        "more starts change nothing",
        "all starts together leave over 1 point less than the first",
        "warning",
        "C (hyper-parameters of attacks)",
    ),
    Check(
        4,
        "finished-optimisation",
        "failed attacks have finished",
        "over 10 % of the failed attacks raise their rescaled loss by over 0.05 in the last 10"
        " steps",
        "warning",
        "I",
    ),
    Check(
        5,
        "monotone-in-eps",
        "a larger eps breaks more",
        "accuracy at some eps is over 0.2 points above that at the next smaller one",
        "unreliable",
        "A §3.1, C",
        EVERY,
    ),
    Check(
        6,
        "large-eps-chance",
        "a large eps reaches chance",
        "at the task's large eps accuracy stays over 1/K + 2 points, or at 128/255, where any image"
        " can be made grey, over 1 %",
        "unreliable",
        "C, A §3.1",
    ),
    Check(
        7,
        "unbounded-attack",
        "an unbounded attack always succeeds",
        "an attack with eps = 1 leaves an image standing",
        "unreliable",
        "A §3.1, C, I",
        EVERY,
    ),
    Check(
        8,
        "black-box-weaker",
        "black-box attacks are weaker",
        "Square breaks over 0.2 points of what the best white-box attacks leave",
        "unreliable",
        "AA, A §3.1, C",
    ),
    Check(
        9,
        "transfer-weaker",
        "transferred attacks are weaker",
        "over 0.5 % of images fall to a surrogate's adversarials and to no white-box attack",
        "warning",
        "C, I",
    ),
    Check(
        10,
        "random-noise-weaker",
        "random noise is weaker",
        "random points of the ball break over 0.1 % of the images that survive the white-box"
        " attacks",
        "warning",
        "A §3.1, C",
        EVERY,
    ),
    Check(
        11,
        "gradients-exist",
        "gradients exist",
        "a correctly classified image has a zero gradient under cross-entropy or DLR, or any"
        " gradient is not finite",
        "unreliable",
        "AA, I",
        EVERY,
    ),
    Check(
        12,
        "autograd-complete",
        "autograd sees the whole model",
        "the model cannot be differentiated, or the slope along the gradient's sign, by finite"
        " differences, contradicts it on over 10 % of images",
        "unreliable",
        "I",
        EVERY,
    ),
    Check(
        13,
        "deterministic",
        "the same image, the same answer",
        "five passes differ (predictions, or normalised logits by over 1e-4), or batches of 1, 7"
        " and all do (predictions, or normalised logits by over 1e-2)",
        "unreliable",
        "AA, own",
        EVERY,
    ),
    Check(
        14,
        "logits-not-probabilities",
        "the outputs are logits",
        "all outputs lie in [0, 1] and every row sums to 1",
        "unreliable",
        "AA",
    ),
    Check(
        15,
        "no-test-time-optimisation",
        "nothing is optimised at test time",
        "the forward pass computes gradients",
        "warning",
        "AA",
    ),
    Check(
        16,
        "no-label-at-test",
        "no label at test time",
        "predictions change with the labels at hand or with the place in the batch, or a module"
        " stays in training mode",
        "unreliable",
        "own",
        EVERY,
    ),
    Check(
        17,
        "silent-success",
        "no success is thrown away",
        "an iterate that fooled the model does not fool it when its image is asked again",
        "unreliable",
        "I",
        EVERY,
    ),
    Check(
        18,
        "stable-loss",
        "the loss is stable around an image",
        "at random offsets of width 8/255 the loss changes by over 0.5 of itself on average, or by"
        " over twice the baseline's change",
        "warning",
        "I (its metric)",
    ),
    Check(
        19,
        "gradient-alignment",
        "neighbouring gradients agree",
        "the mean cosine of the gradients at x and at x + U(-eps, eps) is below 0.3, or below 0.7"
        " of the baseline's",
        "warning",
        "G",
    ),
    Check(
        20,
        "local-linearity",
        "the loss is nearly linear",
        "the relative error of the loss's linearisation along FGSM and PGD perturbations is over"
        " twice the baseline's",
        "warning",
        "own",
    ),
    Check(
        21,
        "catastrophic-overfitting",
        "no catastrophic overfitting",
        "FGSM leaves over 25 points more than PGD-10, or more than no attack; or in training PGD-5"
        " accuracy on a fixed batch fell by over 20 points between epochs and stayed there",
        "unreliable",
        "W",
    ),
    Check(
        22,
        "label-leaking",
        "no label leaks through the gradient",
        "FGSM with true labels leaves more than no attack, or over 1 point more than FGSM with the"
        " predicted ones",
        "unreliable",
        "K",
    ),
    Check(
        23,
        "attack-ordering",
        "attacks come in the usual order",
        "the margin attack leaves over 0.5 points more than PGD, or over 4.1 more than AutoAttack;"
        " or PGD-20 over 5.6 more than AutoAttack",
        "warning",
        "AGAIN (just above its ungated rows)",
    ),
    Check(
        24,
        "plausibility",
        "the numbers are plausible",
        "clean and robust accuracy together beat every RobustBench entry of the same data and"
        " threat without extra data; or, without extra data, clean is 89.9 % and robust 40 % and"
        " more",
        "warning",
        "RB",
    ),
    Check(
        25,
        "mask-honesty",
        "no attack was masked",
        "a claimed attack leaves over 2 points more than one full-eps FGSM step, or an iterated one"
        " than the audit's PGD of as many steps; of a gated model: masked FGSM leaves over 2 points"
        " more than full-eps FGSM (only the latter is robustness), or mean k(M) is below 0.05 (the"
        " mask is closed)",
        "unreliable",
        "own",
        EVERY,
    ),
    Check(
        26,
        "gate-pinning",
        "no gate hides the gradient",
        "the final prediction is an auxiliary head's on over 99 % of images, or attacks on heads,"
        " joint losses and soft gates (U1-U5) break over 0.2 points of what attacks on the final"
        " logits leave",
        "unreliable",
        "own",
    ),
    Check(
        27,
        "budget",
        "the budget was kept",
        "an adversarial is over 1e-6 outside the ball or the box, or eps is a rounded k/255",
        "unreliable",
        "own",
        EVERY,
    ),
    Check(
        28,
        "undefended-control",
        "the attack breaks an undefended model",
        "the same attack leaves over 1 % to a network that was trained without attack",
        "warning",
        "C (attack similar undefended models)",
        EVERY,
    ),
    Check(
        29,
        "known-broken-control",
        "the attack breaks a saturated copy",
        "on the model with its logits times 1e4 the attack leaves over 1 point more than on the"
        " model itself",
        "warning",
        "C (benchmark the attack)",
    ),
    Check(
        30,
        "binary-readout",
        "the attack solves a task with a known answer",
        "on binary read-outs of the model's features, of which adversarials are known to exist, the"
        " attack finds under 95 %",
        "warning",
        "Z",
    ),
    Check(
        31,
        "per-image-worst-case",
        "the worst case is taken for each image",
        "the claimed robust accuracy is above the share of images that survive every attack, or the"
        " claimed attacks together leave over 2 points more than the audit's own",
        "warning",
        "C (report the mean of minima)",
        EVERY,
    ),
    Check(
        32,
        "broader-shifts",
        "other changes of the image",
        "never: accuracy under Gaussian noise, rotations and translations is stated",
        "information",
        "C (broader threat models)",
    ),
)
BY_NUMBER = {check.number: check for check in CHECKS}
