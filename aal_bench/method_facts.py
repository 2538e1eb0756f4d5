"""What is known of every method beside its code: loss, attack, cost, needs, paper. No torch.

``aal-bench list methods -v`` reads this table and answers at once; `method_pages` writes it into
``docs/methods``; a test counts the passes of every method and holds them to it. What the code says
itself (options, recipe, families) is not repeated here. A method of a user's own has no facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

STEPS = 10
"""Attack steps that the passes below are for: the default of ``attack.steps``."""
FAMILIES = ("classification", "detection", "fewshot")
NONE: Mapping[str, Passes] = MappingProxyType({})


class Passes(NamedTuple):
    """Passes of a whole batch through one network, in one step of training."""

    forwards: int
    to_input: int
    """Backward passes to the images only."""
    to_weights: int
    """Backward passes that compute weight gradients."""

    @property
    def backwards(self) -> int:
        """Both kinds."""
        return self.to_input + self.to_weights

    def __str__(self) -> str:
        return f"{self.forwards}+{self.backwards}"


class Cost(NamedTuple):
    """What a step costs, with default options unless `when` says otherwise."""

    model: Passes
    others: Mapping[str, Passes] = NONE
    """Of networks beside the model."""
    when: str = ""
    """In which steps, or with which options; empty: in all the others."""
    at_most: bool = False
    """The passes are a bound: images leave the attack early."""

    def __str__(self) -> str:
        bound = "≤" if self.at_most else ""
        return bound + " and ".join(str(passes) for passes in (self.model, *self.others.values()))


class Paper(NamedTuple):
    """Where a method comes from."""

    who: str
    year: int
    title: str
    where: str
    """An arXiv number, or a conference."""

    @property
    def place(self) -> str:
        """``arXiv 1706.06083``."""
        return f"arXiv {self.where}" if self.where[:4].isdigit() else self.where

    def __str__(self) -> str:
        return f"{self.who} {self.year}, {self.where}"


class Fault(NamedTuple):
    """Something that the official code does and ours does not."""

    what: str
    switch: str = ""
    """The option that brings it back, as typed after ``--set``; empty: there is none."""


class Published(NamedTuple):
    """A printed result that is in none of ``leaderboards/reported``; percent, as printed."""

    model: str
    clean: str
    pgd: str
    autoattack: str
    eps: str
    source: str


CLASS_GATES = "class gates"


class Facts(NamedTuple):
    """What is known of a method."""

    loss: str
    attack: str
    costs: tuple[Cost, ...]
    """The usual one first; none: it takes words, `passes`."""
    paper: Paper | None = None
    passes: str = ""
    cost_note: str = ""
    memory: str = ""
    """Beside network, gradients, optimiser and one batch."""
    needs: str = ""
    """What training has to hold or to be given."""
    needs_note: str = ""
    code: str = ""
    """The official repository and its commit."""
    faults: tuple[Fault, ...] = ()
    robustbench: Mapping[str, str] = MappingProxyType({})
    """Entries of RobustBench trained by it on CIFAR-10, and in which other form of it, if any."""
    published: tuple[Published, ...] = ()


def _cost(forwards: int, to_input: int, to_weights: int, when: str = "") -> Cost:
    return Cost(Passes(forwards, to_input, to_weights), when=when)


GOODFELLOW = Paper(
    "Goodfellow", 2015, "Explaining and Harnessing Adversarial Examples", "1412.6572"
)
WONG = Paper(
    "Wong", 2020, "Fast is better than free: Revisiting adversarial training", "2001.03994"
)
SHAFAHI = Paper("Shafahi", 2019, "Adversarial Training for Free!", "1904.12843")
MADRY = Paper(
    "Madry", 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", "1706.06083"
)
TRADES = Paper(
    *("Zhang", 2019, "Theoretically Principled Trade-off between Robustness and Accuracy"),
    where="1901.08573",
)
MART = Paper(
    *("Wang", 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples"),
    where="ICLR 2020",
)
FAT = Paper(
    *("Zhang", 2020, "Attacks Which Do Not Kill Training Make Adversarial Learning Stronger"),
    where="2002.11242",
)
TRICKS = Paper("Pang", 2021, "Bag of Tricks for Adversarial Training", "2010.00467")
AWP = Paper("Wu", 2020, "Adversarial Weight Perturbation Helps Robust Generalization", "2004.05884")
LBGAT = Paper("Cui", 2021, "Learnable Boundary Guided Adversarial Training", "2011.11164")
LAS = Paper(
    "Jia", 2022, "LAS-AT: Adversarial Training with Learnable Attack Strategy", "2203.06616"
)
IAAT = Paper(
    "Balaji",
    2019,
    "Instance adaptive adversarial training: Improved accuracy tradeoffs in neural nets",
    "1910.08051",
)
ATTA = Paper(
    *("Zheng", 2020, "Efficient Adversarial Training with Transferable Adversarial Examples"),
    where="1912.11969",
)
CAS = Paper(
    *("Bai", 2021, "Improving Adversarial Robustness via Channel-wise Activation Suppressing"),
    where="2103.08307",
)
AGAIN = Paper(
    "Yin",
    2023,
    "AGAIN: Adversarial Training with Attribution Span Enlargement and Hybrid Feature Fusion",
    "CVPR 2023",
)
AAL = Paper(
    "Wang", 2021, "Associative Adversarial Learning Based on Selective Attack", "2112.13989"
)
MTD = Paper("Zhang", 2019, "Towards Adversarially Robust Object Detection", "1907.10310")
RFS = Paper(
    "Tian",
    2020,
    "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?",
    "2003.11539",
)

CE = "CE(f(x'), y)"
BOOSTED = "BCE(p(x'), y) + λ KL(p(x) ‖ p(x')) (1 − p_y(x)), λ = 5"
TRADED = "CE(f(x), y) + β KL(p(x) ‖ p(x')), β = 6"
PERTURBED = "at w + v, where v raises that loss, ‖v_l‖ = γ ‖w_l‖ in each layer"
STEPPED = "PGD-10 from U(−ε, ε)"
NEARBY = "x + 0.001 N(0, 1)"
GATED = "inside ε k(M^a), where M^a is the gate's mask, descended and tracked back"
GATE_MEMORY = "one batch of masks"
WEIGHT_COPIES = "2 copies of w"
SHARED_STATISTICS = Fault(
    "The attack runs in train mode: batch statistics, and running ones that all its iterates move.",
    "craft_bn=train",
)

METHODS: dict[str, Facts] = {
    "standard": Facts(
        loss="CE(f(x), y)",
        attack="none",
        costs=(_cost(1, 0, 1),),
        robustbench={"Standard": ""},
    ),
    "fgsm": Facts(
        loss=CE,
        attack="one step of ε from x",
        costs=(_cost(2, 1, 1),),
        paper=GOODFELLOW,
        code="fast_adversarial 54f7287 (its zero start)",
        faults=(SHARED_STATISTICS,),
    ),
    "rs-fgsm": Facts(
        loss=CE,
        attack="one step of 1.25 ε from U(−ε, ε), projected",
        costs=(_cost(2, 1, 1),),
        paper=WONG,
        code="fast_adversarial 54f7287",
        faults=(SHARED_STATISTICS,),
        robustbench={"Wong2020Fast": ""},
        published=(
            Published(
                *("PreActResNet-18", "87.41", "40.15 (PGD-10)", "", "8/255"),
                source="last of 200 epochs, step 0.875 ε: log of robust_overfitting",
            ),
        ),
    ),
    "pgd": Facts(
        loss=CE,
        attack=STEPPED,
        costs=(_cost(11, 10, 1),),
        paper=MADRY,
        code="cifar10_challenge f15682d; schedule and start of robust_overfitting c47a25c",
        faults=(
            SHARED_STATISTICS,
            Fault(
                "The clean batch is forwarded in train mode for the log, so that running"
                " statistics mix clean and adversarial images (robust_overfitting)."
            ),
        ),
        robustbench={"Madry2018Towards": "", "Rice2020Overfitting": ""},
        published=(
            Published(
                *("PreActResNet-18", "82.92", "53.49 (PGD-10)", "", "8/255"),
                source="best epoch, log of robust_overfitting",
            ),
            Published(
                *("PreActResNet-18", "84.93", "45.59 (PGD-10)", "", "8/255"),
                source="last epoch, the same log",
            ),
            Published("ResNet-18", "", "52.73 (PGD-10)", "48.67", "8/255", "README of MAIR"),
        ),
    ),
    "trades": Facts(
        loss=TRADED,
        attack=f"PGD-10 on that KL, without the label, from {NEARBY}",
        costs=(_cost(13, 10, 2),),
        paper=TRADES,
        code="TRADES 6e8e11b",
        faults=(
            Fault(
                "The clean batch is forwarded twice in train mode, so that running statistics"
                " count it twice; and once more in every step of the attack (23 forwards, not 13)."
            ),
        ),
        robustbench={"Zhang2019Theoretically": ""},
        published=(
            Published(
                *("WideResNet-34-10", "85.48", "", "53.80", "8/255"),
                source="110 epochs, weight decay 5e-4: README of Bag-of-Tricks-for-AT",
            ),
            Published("ResNet-18", "", "53.47 (PGD-10)", "49.45", "8/255", "README of MAIR"),
        ),
    ),
    "mart": Facts(
        loss=BOOSTED,
        attack=f"PGD-10 on CE, from {NEARBY}",
        costs=(_cost(12, 10, 2),),
        paper=MART,
        code="MART 2d83e17",
        robustbench={"Wang2020Improving": ""},
        published=(
            Published("ResNet-18", "", "54.73 (PGD-10)", "47.51", "8/255", "README of MAIR"),
            Published("WideResNet-34-10", "", "57.56 (PGD-10)", "51.89", "8/255", "README of MAIR"),
        ),
    ),
    "fat": Facts(
        loss=CE,
        attack=f"{STEPPED}; an image stops τ steps after it is first misclassified",
        costs=(Cost(Passes(11, 10, 1), at_most=True),),
        paper=FAT,
        cost_note=(
            "K̄ + 1 forwards and K̄ + 1 backwards, K̄ the mean number of attack passes that an image"
            " takes part in: those that stopped are left out."
        ),
        code="Friendly-Adversarial-Training 80a0640",
        faults=(
            Fault(
                "`--dynamictau False` is read as true, so that the schedule of τ cannot be"
                " switched off there. Here a number for `tau` does it."
            ),
            Fault("The clean batch is forwarded once more, for a loss that is not used."),
        ),
        robustbench={"Zhang2020Attacks": "on TRADES"},
        published=(
            Published(
                *("WideResNet-32-10", "89.34 ± .22", "46.13 ± .05 (PGD-20)", "", "0.031"),
                source="README of the official code",
            ),
        ),
    ),
    "ls0.8-pgd": Facts(
        loss="CE(f(x'), q), q_y = 0.8 and 0.2/(K − 1) on every other class",
        attack=f"{STEPPED}, on the hard label",
        costs=(_cost(11, 10, 1),),
        paper=TRICKS,
        code="Bag-of-Tricks-for-AT ebf1e9b",
    ),
    "ls0.9-pgd": Facts(
        loss="CE(f(x'), q), q_y = 0.9 and 0.1/(K − 1) on every other class",
        attack=f"{STEPPED}, on the hard label",
        costs=(_cost(11, 10, 1),),
        paper=TRICKS,
        code="Bag-of-Tricks-for-AT ebf1e9b",
    ),
    "awp": Facts(
        loss=f"{CE} {PERTURBED}, γ = 0.01",
        attack=STEPPED,
        costs=(_cost(12, 10, 2),),
        paper=AWP,
        memory=WEIGHT_COPIES,
        code="AWP a7acf5d, AT_AWP",
        faults=(SHARED_STATISTICS,),
        published=(
            Published(
                *("WideResNet-34-10", "85.36", "58.30 (PGD-20)", "53.97", "8/255"),
                source="README and logs of the official code",
            ),
            Published(
                *("PreActResNet-18", "81.18", "55.39 (PGD-20)", "", "8/255"),
                source="best epoch, log of the official code",
            ),
            Published(
                *("PreActResNet-18", "81.65", "54.30 (PGD-20)", "", "8/255"),
                source="last epoch, the same log",
            ),
        ),
    ),
    "trades-awp": Facts(
        loss=f"{TRADED}, {PERTURBED}, γ = 0.005",
        attack=f"PGD-10 on the KL, from {NEARBY}",
        costs=(_cost(15, 10, 4), _cost(13, 10, 2, "in the first `update.warmup` of training")),
        paper=AWP,
        memory=WEIGHT_COPIES,
        code="AWP a7acf5d, trades_AWP",
        robustbench={"Wu2020Adversarial": ""},
        published=(
            Published(
                *("ResNet-18", "", "55.91 (PGD-10)", "51.62", "8/255"),
                source="README of MAIR, whose AWP is another algorithm",
            ),
        ),
    ),
    "lbgat": Facts(
        loss="MSE(f(x'), t(x)) + CE(t(x), y) + β KL(p(x) ‖ p(x')), β = 0; t is trained too",
        attack=f"PGD-10 on the KL of TRADES, from {NEARBY}",
        costs=(
            Cost(Passes(12, 10, 1), {"teacher": Passes(1, 0, 1)}),
            Cost(Passes(13, 10, 2), {"teacher": Passes(1, 0, 1)}, when="with β > 0"),
        ),
        paper=LBGAT,
        memory="a second network",
        needs="teacher network",
        needs_note="The teacher t is trained beside the model, on clean images only.",
        code="LBGAT f7f33f0 (CIFAR-100; there is no script for CIFAR-10)",
        faults=(
            Fault("With β = 0 the clean pass of the student is still made and back-propagated."),
        ),
        robustbench={"Cui2020Learnable_34_10": "", "Cui2020Learnable_34_20": ""},
        published=(
            Published(
                *("WideResNet-34-10", "81.98", "57.78 (PGD-20)", "", "0.031"),
                source="β = 6, manuscript in the official repository",
            ),
        ),
    ),
    "las-at": Facts(
        loss="CE(f(x'), q), q_y = 0.7 and 0.3/(K − 1) on every other class",
        attack=(
            "ε, step and number of steps drawn for each image from a strategy network's"
            " probabilities, from U(−ε, ε)"
        ),
        costs=(
            Cost(Passes(15, 14, 1), {"strategy": Passes(1, 0, 0)}, at_most=True),
            Cost(
                Passes(40, 34, 2),
                {"strategy": Passes(1, 0, 1)},
                when="in every 20th step, when the strategy learns from its reward",
                at_most=True,
            ),
        ),
        paper=LAS,
        cost_note=(
            "The attack runs to the largest number of steps that an image of the batch drew:"
            " of 3 to 14, so that it is nearly always 14 in a batch of 128."
        ),
        memory="a second network",
        needs="strategy network",
        needs_note=(
            "Its training budget reaches 15/255 at a task's 8/255: it trains outside the ball that"
            " it is tested in, as iaat may."
        ),
        code="LAS-AT ee756b7, LAS_PGD_AT",
        robustbench={"Jia2022LAS-AT_34_10": "with AWP", "Jia2022LAS-AT_70_16": "with AWP"},
    ),
    "iaat": Facts(
        loss=CE,
        attack="PGD-10 inside an ε_i of the image's own, from U(−ε_i, ε_i)",
        costs=(
            _cost(34, 30, 1),
            _cost(12, 10, 1, "in the first eleventh of training"),
        ),
        paper=IAAT,
        memory="4 B an image",
        needs="per-image state",
        needs_note=(
            "An ε_i for each training image, kept over epochs and in checkpoints; it may outgrow"
            " the task's ε unless `cap` is set."
        ),
        code="Instance_Adaptive_Adversarial_Training 49f5f14",
        faults=(SHARED_STATISTICS,),
    ),
    "atta": Facts(
        loss=CE,
        attack="one step from the perturbation that the image had an epoch ago",
        costs=(_cost(2, 1, 1), _cost(3, 1, 2, "with the loss of TRADES")),
        paper=ATTA,
        memory="6(H+2p)² B an image",
        needs="per-image state",
        needs_note=(
            "The perturbation of each training image in half precision, on the image padded by p"
            " on every side, so that it follows random crops and flips."
        ),
        code="ATTA 2c987de",
        faults=(
            Fault(
                "The mean loss of `mat` is divided by the batch size once more: a learning rate"
                " smaller by that factor than it looks.",
                "divide_by_batch=true",
            ),
        ),
    ),
    "cas": Facts(
        loss="CE(f(x'), y) + β mean_l CE(a_l(x'), y), β = 2, a_l the auxiliary heads",
        attack=f"{STEPPED} on the same sum",
        costs=(_cost(11, 10, 1),),
        paper=CAS,
        memory="K·C weights a gate",
        needs=CLASS_GATES,
        needs_note=(
            "The evaluated network has the gates too. At test a gate follows its head's argmax,"
            " which is piecewise constant: attacks on the final logits alone overestimate it."
        ),
        code="CAS_ICLR2021 057fc63",
    ),
    "again-pgd": Facts(
        loss="CE(f(x'), y) + β mean_l CE(a_l(x'), y), β = 2, gates mixed over two classes",
        attack=f"PGD-10 on the same sum, from {NEARBY}",
        costs=(_cost(11, 10, 1),),
        paper=AGAIN,
        memory="K·C weights a gate",
        needs=CLASS_GATES,
        needs_note=(
            "As CAS. Mixing classes and features takes a partner: two images a batch at least."
        ),
        code="that of again-awp: there is none for this row",
    ),
    "again-mart": Facts(
        loss="MART's loss on f + β times its mean over the heads, β = 2, 1 − p_y of f",
        attack=f"PGD-10 on CE(f) + β mean_l CE(a_l), from {NEARBY}",
        costs=(_cost(12, 10, 2),),
        paper=AGAIN,
        memory="K·C weights a gate",
        needs=CLASS_GATES,
        needs_note="As again-pgd.",
        code="none; the schedule is that of MART+CAS in CAS_ICLR2021 057fc63",
    ),
    "again-awp": Facts(
        loss=f"the loss of again-pgd, {PERTURBED}, γ = 0.005",
        attack=f"PGD-10 on the loss of again-pgd, from {NEARBY}",
        costs=(_cost(12, 10, 2), _cost(11, 10, 1, "in the first `update.warmup` of training")),
        paper=AGAIN,
        memory=WEIGHT_COPIES,
        needs=CLASS_GATES,
        needs_note="As again-pgd.",
        code="AGAIN_with_AWP of the AGAIN repository",
        faults=(
            Fault(
                "Hybrid feature fusion is defined and never called. The poster has it, and so do"
                " the three methods here.",
                "hff.p=0",
            ),
        ),
    ),
    "aal-fgsm": Facts(
        loss=CE,
        attack=f"one step of ε from x, {GATED}",
        costs=(_cost(2, 1, 1),),
        paper=AAL,
        memory=GATE_MEMORY,
        needs="attention gate",
        code="none",
    ),
    "aal-pgd": Facts(
        loss=CE,
        attack=f"{STEPPED}, {GATED}",
        costs=(_cost(12, 11, 1),),
        paper=AAL,
        memory=GATE_MEMORY,
        needs="attention gate",
        code="none",
    ),
    "aal-trades": Facts(
        loss=TRADED,
        attack=f"the attack of trades, {GATED}",
        costs=(_cost(14, 11, 2),),
        paper=AAL,
        memory=GATE_MEMORY,
        needs="attention gate",
        code="none: the paper has no such row",
    ),
    "aal-mart": Facts(
        loss=BOOSTED,
        attack=f"the attack of mart, {GATED}",
        costs=(_cost(13, 11, 2),),
        paper=AAL,
        memory=GATE_MEMORY,
        needs="attention gate",
        code="none: the paper has no such row",
    ),
    "free": Facts(
        loss="CE(f(x + δ), y), m times on each batch",
        attack="δ moves by ε on each of these m backward passes, and stays for the next batch",
        costs=(
            _cost(8, 0, 8),
            _cost(4, 0, 4, "on detectors, where m = 4"),
        ),
        paper=SHAFAHI,
        cost_note="m forwards and m backwards, which give both gradients, and m updates.",
        memory="one batch of δ",
        code="FreeAdversarialTraining e185c84; CIFAR settings of fast_adversarial 54f7287",
        robustbench={"Shafahi2019Adversarial": ""},
    ),
    "mtd": Facts(
        loss="½ L(x') + ½ L(x)",
        attack="one step of ε along ∇L_cls or along ∇L_loc, whichever raises L more",
        costs=(_cost(5, 2, 2),),
        paper=MTD,
        code="none; read with RobustDet 9128288",
    ),
    "protonet": Facts(
        loss="CE(−‖f(q) − c_k‖², y), c_k the mean of the support features of class k",
        attack="none",
        costs=(_cost(1, 0, 1),),
        paper=Paper("Snell", 2017, "Prototypical Networks for Few-shot Learning", "1703.05175"),
        cost_note="Of every image of an episode.",
        code="learn2learn 0.2.0",
    ),
    "relationnet": Facts(
        loss="(r(f(q), Σ f(s_k)) − [q is of class k])²",
        attack="none",
        costs=(_cost(1, 0, 1),),
        paper=Paper(
            *("Sung", 2018, "Learning to Compare: Relation Network for Few-Shot Learning"),
            where="1711.06025",
        ),
        cost_note="Of every image of an episode, and the relation module on every pair.",
        code="LearningToCompare_FSL b74e636",
    ),
    "metaoptnet": Facts(
        loss="CE(scale · SVM(f(s))(f(q)), y)",
        attack="none",
        costs=(_cost(1, 0, 1),),
        paper=Paper(
            "Lee", 2019, "Meta-Learning with Differentiable Convex Optimization", "1904.03758"
        ),
        cost_note="Of every image of an episode, and one quadratic program an episode.",
        code="MetaOptNet 1960159",
    ),
    "maml": Facts(
        loss="CE(q; θ − inner_lr ∂CE(s; θ)), through the inner gradient",
        attack="none",
        costs=(),
        paper=Paper(
            *("Finn", 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks"),
            where="1703.03400",
        ),
        passes="inner steps + 1",
        cost_note=(
            "train_steps forwards and backwards of the support set, one of the queries, and the"
            " backward pass through them all."
        ),
        memory="inner graphs",
        code="learn2learn 0.2.0",
    ),
    "anil": Facts(
        loss="CE(q; θ, h − inner_lr ∂CE(s; θ, h)), h the last layer",
        attack="none",
        costs=(_cost(1, 0, 1),),
        paper=Paper(
            "Raghu",
            2020,
            "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML",
            "1909.09157",
        ),
        cost_note="Of every image of an episode; the inner steps are on the last layer alone.",
        code="learn2learn 0.2.0",
    ),
    "baseline-finetune": Facts(
        loss="CE with mixup and label smoothing over all training classes",
        attack="none",
        costs=(_cost(1, 0, 1),),
        paper=Paper("Dhillon", 2020, "A Baseline for Few-Shot Image Classification", "1909.02729"),
        cost_note="Of training; the test fine-tunes all weights on every episode.",
        code="few-shot-baseline bfd77dd",
    ),
    "rfs": Facts(
        loss="CE over all training classes",
        attack="none",
        costs=(_cost(1, 0, 1),),
        paper=RFS,
        code="rfs f8c837b",
    ),
    "rfs-distill": Facts(
        loss="γ CE(f(x), y) + α T² KL(softmax(t(x)/T) ‖ softmax(f(x)/T))",
        attack="none",
        costs=(Cost(Passes(1, 0, 1), {"teacher": Passes(1, 0, 0)}),),
        paper=RFS,
        cost_note="And the training of the teacher, which comes first.",
        memory="a second network",
        needs="trained teacher",
        code="rfs f8c837b",
    ),
    "ier": Facts(
        loss="CE of classes + CE of 16 transforms + contrast with a memory of other images",
        attack="none",
        costs=(_cost(16, 0, 16),),
        paper=Paper(
            "Rizve",
            2021,
            "Exploring Complementary Strengths of Invariant and Equivariant Representations for"
            " Few-Shot Learning",
            "2103.01315",
        ),
        memory="256 B an image",
        needs="per-image state",
        needs_note="The memory: a projection of 64 numbers of each training image.",
        code="invariance-equivariance 161c4e2",
    ),
    "aal-rfs": Facts(
        loss="the loss of rfs on x'",
        attack=f"one step of ε from x, {GATED}, k = 1 − M∘M",
        costs=(_cost(2, 1, 1),),
        paper=AAL,
        memory=GATE_MEMORY,
        needs="attention gate",
        code="none",
    ),
    "aal-ier": Facts(
        loss="the loss of ier on the sixteen views of x'",
        attack=f"one step of ε from x, {GATED}, k = 1 − M∘M",
        costs=(_cost(17, 1, 16),),
        paper=AAL,
        memory="256 B an image",
        needs="attention gate",
        code="none",
    ),
    "aal": Facts(
        loss="the loss of aal-ier",
        attack="the attack of aal-ier",
        costs=(_cost(17, 1, 16),),
        paper=AAL,
        memory="256 B an image",
        needs="attention gate",
        code="none",
    ),
}

UPDATES: dict[str, Facts] = {
    "plain": Facts(loss="the method's", attack="", costs=()),
    "awp": Facts(
        loss=f"the method's, {PERTURBED}",
        attack="",
        costs=(),
        paper=AWP,
        passes="the loss again",
        memory=WEIGHT_COPIES,
    ),
}


def of(name: str) -> Facts | None:
    """The facts of a method of ours; None for any other."""
    return METHODS.get(name)


def cells(families: tuple[str, ...], facts: Facts | None) -> tuple[str, ...]:
    """Families, passes, memory, needs and paper, each in few words; a dash where there is none."""
    served = served_by(families)
    if facts is None:
        return served, *("-",) * 4
    passes = str(facts.costs[0]) if facts.costs else facts.passes
    paper = "-" if facts.paper is None else str(facts.paper)
    return served, passes or "-", facts.memory or "-", facts.needs or "-", paper


def served_by(families: tuple[str, ...]) -> str:
    """``any``, ``fewshot``, or ``not fewshot``."""
    missing = [family for family in FAMILIES if family not in families]
    if not missing:
        return "any"
    return f"not {missing[0]}" if len(missing) == 1 else ", ".join(families)
