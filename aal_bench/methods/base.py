"""The contract of a training method, design section 3.

``step = before_step -> attack -> update -> after_step``. Attack and loss are separate, and the loss
is pure and re-callable, so that AWP, weight averaging and timing compose with every method and no
attack is run twice. A method sees a batch, a model and an objective; never a dataset, an optimiser
schedule or an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.attacks.linf import attacking, linf_pgd
from aal_bench.config import Strict

Objective = Callable[..., Tensor]
"""objective(x, targets, reduction="mean") -> scalar ("mean", "sum") or (B,) ("none")."""
BatchNormMode = Literal["eval", "train"]
Outputs = Literal["classes", "ways", "features"]


class Batch(NamedTuple):
    """One training batch as a method sees it."""

    x: Tensor
    """(B, 3, H, W) in [0, 1], augmented."""
    targets: Any
    """Labels (B,); an `EpisodeTargets`; a detector's data samples."""
    idx: Tensor
    """(B,) positions in the training set, for per-sample state."""
    aug: Any = None
    """What undoes and redoes the augmentation: `data.augment.Crops`, or None where none was made
    (or one that cannot be undone, see `Method.augmentations`)."""
    epoch: int = 0
    progress: float = 0.0
    """Share of training done, in [0, 1]."""
    lr: float = 0.0
    """The learning rate of this step; AAL's xi1 follows it (A16)."""


class Episodic(NamedTuple):
    """Training on episodes: their shape, how many make an epoch, and when they begin."""

    ways: int
    shots: int
    queries: int
    """Of each class."""
    per_epoch: int | None
    """Episodes, of which a step takes as many as the batch size says; None: as many as hold as
    many images as the training split, so that an epoch costs what one of labelled images does."""
    begins: float = 0.0
    """Share of the epochs before it, which train on labelled images, in steps as many as later."""


class Threat(NamedTuple):
    """The training attack in pixel units: the task's eps, its step size and its steps."""

    eps: float
    step: float
    steps: int


class Plan(NamedTuple):
    """An attack that is one call of `linf_pgd`; eps and alpha may be tensors.

    AAL wraps every method that states its attack as a plan: it scales eps, alpha and the start.
    """

    objective: Callable[[Tensor], Tensor]
    """x' (B, 3, H, W) -> summed loss, so that per-sample gradients do not depend on B."""
    start: Tensor
    eps: float | Tensor
    alpha: float | Tensor
    steps: int | Tensor
    gradient: Tensor | None = None
    """The objective's gradient at `start` where it is known already: saves one pass."""


class Companion(NamedTuple):
    """A further network of the task's kind that a method trains beside the model."""

    model: str | None = None
    """A registered name; None: the run's own architecture."""
    outputs: int | None = None
    """Width of its last layer; None: a logit per class."""


class Recipe(NamedTuple):
    """A method's official settings, where they are not the task's; ``--recipe official``."""

    train: dict[str, Any]
    """Fields of ``[train]``."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Options of the method."""
    crafting: Mapping[str, Any] = MappingProxyType({})
    """Of the training attack alone: ``step``, ``steps``; the budget stays the task's."""
    source: str = ""
    """Which official script says so, and what of it has no counterpart here."""
    eps_031: bool = False
    """The script's budget is the rounded .031, which ``--recipe official-031`` takes over."""


def stepwise(
    epochs: int,
    drops: tuple[int, ...],
    weight_decay: float,
    *,
    lr: float = 0.1,
    decay: float | tuple[float, ...] = 0.1,
    batch_size: int = 128,
) -> dict[str, Any]:
    """``[train]`` of a script whose rate changes by `decay` after each of `drops` whole epochs."""
    return {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": weight_decay,
        "schedule": "step",
        "milestones": tuple(drop / epochs for drop in drops),
        "decay": decay,
    }


class Options(Strict):
    """Base of every method's options."""

    craft_bn: BatchNormMode = "eval"
    """Batch-norm mode while crafting: running statistics, or the batch's (and then updated)."""


class Method:
    """Base: trains on the clean batch. A subclass is what differs from this."""

    Options: ClassVar[type[Any]] = Options
    attacks: ClassVar[bool] = True
    """False: `attack` returns the clean batch and costs no pass."""
    outputs: ClassVar[Outputs] = "classes"
    """Few-shot: what the network returns: a logit per training class, per way, or its features."""
    train_defaults: ClassVar[dict[str, Any]] = {}
    """Fields of ``[train]`` that replace the task's unless they are typed: what this method's
    training cannot share with the others', such as the optimiser of a learner of episodes."""
    precision: ClassVar[Literal["fp32"] | None] = None
    """The precision of training where the method needs one; None: the hardware's."""
    update: ClassVar[str] = "plain"
    """The registered update that is part of the method; another one is then refused."""
    update_defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    """Update -> its options that this method's authors use, unless they are typed."""
    augmentations: ClassVar[tuple[str, ...] | None] = None
    """The augmentations of a batch (``train.augment``) that it can serve; None: any."""
    least_batch: ClassVar[int] = 1
    """The smallest batch that its loss is defined for."""
    recipe: ClassVar[Recipe | None] = None
    """What its official script sets otherwise than our tasks; None: no script to follow."""
    teacher: ClassVar[str | None] = None
    """A method trained before this one at the same settings, whose network `learn_from` takes."""

    def __init__(self, options: Options, threat: Threat) -> None:
        self.options = options
        self.threat = threat
        self.log: dict[str, Tensor] = {}
        """Scalars (0-dim tensors, never synchronised here) that the loop averages into its log."""

    @classmethod
    def family_defaults(cls, family: str) -> dict[str, Any]:
        """Options that have other official values on tasks of this family; default: none."""
        del family
        return {}

    @property
    def head(self) -> str:
        """Few-shot: the registered head that answers a test episode."""
        return "logistic"

    @property
    def training_head(self) -> str:
        """Few-shot: the head whose query loss training on episodes descends."""
        return self.head

    def episodes(self, ways: int, shots: int) -> Episodic | None:
        """Few-shot: the episodes to train on, for a task of so many ways and shots.

        None: train on labelled images, as in classification.
        """
        return None

    def learn_from(self, teacher: nn.Module) -> None:
        """Take the trained network of `teacher`, in eval mode and without gradients."""

    @property
    def replays(self) -> int:
        """Updates made on each batch; ``after_replay`` is called after every one."""
        return 1

    @property
    def keeps_graph(self) -> bool:
        """Whether x_adv comes with a graph to the weights, which one backward pass uses up."""
        return False

    def build(self, model: nn.Module) -> nn.Module:
        """Surgery on the model (an attention gate, auxiliary heads); default: identity."""
        return model

    def companions(self) -> dict[str, Companion]:
        """Networks of the task's kind that training needs, given to `join`; default: none."""
        return {}

    def join(self, networks: dict[str, nn.Module]) -> None:
        """Take the networks that `companions` asked for, initialised from the run's seed."""

    def check(self, classes: int, images: int, shape: tuple[int, int, int]) -> None:
        """Refuse, before a run is begun, data that training would stop at; default: none.

        Args:
            classes: of the task.
            images: in the training set.
            shape: of one of them with the padding of its augmentation: channels, height, width.

        Raises:
            UserError: the data do not fit; the message names the mend.
        """

    def remember(self, images: int) -> None:
        """Learn, before the first step, how many training images per-sample state is kept for.

        ``batch.idx`` is in [0, images).
        """

    def extra_modules(self) -> dict[str, nn.Module]:
        """Jointly trained networks (a teacher, a strategy network); saved with the checkpoint."""
        return {}

    def param_groups(self, model: nn.Module) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        """What the optimiser trains."""
        extra = [p for module in self.extra_modules().values() for p in module.parameters()]
        return [*model.parameters(), *extra]

    def before_step(self, batch: Batch) -> None:
        """Choose per-sample budgets, update a policy; default: nothing."""

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        """State the attack as one call of `linf_pgd`."""
        raise NotImplementedError(f"{type(self).__name__} states no plan")

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """Craft x_adv (B, 3, H, W), detached; leaves no weight gradients, restores every mode."""
        if not self.attacks:
            return batch.x
        with attacking(model, bn=self.options.craft_bn):
            plan = self.plan(model, batch, objective)
            return linf_pgd(x=batch.x, **plan._asdict())

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        """The scalar that the weights descend; pure and re-callable. Default: CE on x_adv."""
        return objective(x_adv, batch.targets)

    def after_replay(self, batch: Batch) -> None:
        """Use what the update's backward pass left; default: nothing."""

    def after_step(self, batch: Batch, x_adv: Tensor) -> None:
        """Store perturbations or budgets; default: nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Per-sample state that a resumed run needs; tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""

    def weaknesses(self, model: nn.Module, targets: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """Further objectives, x' -> summed loss, by which validation attacks the network.

        For networks that the loss of their final logits alone makes look strong; default: none.
        """
        del model, targets
        return []

    def cross_entropy_plan_objective(
        self, batch: Batch, objective: Objective
    ) -> Callable[[Tensor], Tensor]:
        """The usual inner objective: the task's loss at x', summed over the batch."""
        return lambda x_adv: objective(x_adv, batch.targets, reduction="sum")


def fp32(logits: Tensor) -> Tensor:
    """Losses are taken in float32 (or float64) whatever the autocast type of the network."""
    return logits if logits.dtype == torch.float64 else logits.float()
