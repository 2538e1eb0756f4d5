"""Every parameter of every attack, and the passes that an image which stands costs: written once.

The stages take theirs from here. No torch: whoever checks a record recomputes from the task file
what each stage must state, and from that what each surviving row must have cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from aal_bench.attacks.adaptive import budget as adaptive
from aal_bench.config import Task
from aal_bench.threat import format_fraction

COMMIT = "a392200"
"""pyautoattack's attack files are those of fra31/auto-attack at this commit."""
PARTITION = {False: "clean-correct-in-index-order", True: "survivors-in-index-order"}
"""How images are cut into batches, by whether the stage is `sequential`."""
EPISODE_PARTITION = {False: "clean-correct-of-one-episode", True: "survivors-of-one-episode"}
"""The same for few-shot: every episode has a classifier of its own, so it is a batch."""
DETECTION_PARTITION = "all-in-index-order"
"""A detector's stages attack every image: none counts as correct or not."""
SEARCH = {"dtype": "bfloat16", "memory_format": "channels_last", "compile": False}
"""What an attack searches in whose successes are confirmed in float32, where it is fast."""
DLR_CLASSES = 4
"""The targeted DLR loss divides by a difference of sorted logits that needs four of them."""


class Question(NamedTuple):
    """What parameters depend on: the task's threat, step and classes, the numbers of the name."""

    norm: str
    eps: Fraction
    step: Fraction
    """Step size of the multi-step attacks, in pixel units."""
    classes: int
    numbers: tuple[int, ...] = ()


class Budget(NamedTuple):
    """Passes of one image that stands to the end, the verdict's forward included."""

    forwards: int
    backwards: int


class Kind(NamedTuple):
    """One row of the table below."""

    package: str
    """The package whose code attacks."""
    parameters: Callable[[Question], dict[str, Any]]
    passes: Callable[[_Counts], tuple[int, int]]
    """(forwards, backwards) of the attack itself on an image that stands."""
    sequential: bool = False
    """True: attacks only what the stages of its suite before it left standing."""
    serves_l2: bool = False
    classes: int = 2
    """The fewest that it can attack."""
    closing: bool = False
    """True: no part of a protocol, but attacks what all stages of one left standing."""


def targets(classes: int) -> int:
    """Number of target classes: AutoAttack's 9, or all others where there are fewer."""
    return min(9, classes - 1)


def parameters(
    stage: str, norm: str, eps: Fraction, step: Fraction, classes: int
) -> dict[str, Any] | None:
    """Every parameter of a stage, defaults included; eps and steps as exact fractions.

    Args:
        stage: its name in a protocol (``pgd-10``).
        norm: ``Linf`` or ``L2``.
        eps: the budget in pixel units.
        step: step size of the multi-step attacks in pixel units.
        classes: of the task.

    Returns:
        What ``Stage.params`` records; None where we have no such stage, or where it serves neither
        this norm nor so few classes.
    """
    kind, numbers = _find(stage)
    if kind is None or (norm != "Linf" and not kind.serves_l2) or classes < kind.classes:
        return None
    return kind.parameters(Question(norm, eps, step, classes, numbers))


def batches(task: Task, sequential: bool) -> dict[str, Any]:
    """``{batch_size, partition}`` of a stage: how the images of a task, or its queries, are cut."""
    if task.detection is not None:
        return {"batch_size": task.evaluation.batch_size, "partition": DETECTION_PARTITION}
    if task.episodes is None:
        return {"batch_size": task.evaluation.batch_size, "partition": PARTITION[sequential]}
    queries = task.episodes.ways * task.episodes.queries
    return {"batch_size": queries, "partition": EPISODE_PARTITION[sequential]}


def package(stage: str) -> str | None:
    """The package whose code runs the stage; None: not a stage of ours."""
    kind, _ = _find(stage)
    return kind and kind.package


def sequential(stage: str) -> bool:
    """Whether the stage attacks only what AutoAttack's stages before it left standing."""
    kind, _ = _find(stage)
    return kind is not None and kind.sequential


def closing(stage: str) -> bool:
    """Whether the stage follows a protocol and attacks only what all of it left standing."""
    kind, _ = _find(stage)
    return kind is not None and kind.closing


def budget(stage: str, params: Mapping[str, Any]) -> Budget | None:
    """Exact passes of an image that stands, under both norms, the verdict's forward included.

    No image costs more: one that falls leaves its attack early, or with the others.

    Args:
        stage: its name.
        params: as `parameters` gives them; of a record, compare them first.

    Returns:
        None where the stage is none of ours or a count that it needs is no whole number >= 1.
    """
    kind, _ = _find(stage)
    try:
        forwards, backwards = kind.passes(_Counts(params)) if kind else (None, 0)
    except KeyError:
        return None
    return None if forwards is None else Budget(forwards + 1, backwards)


class DetectorAttack(NamedTuple):
    """A detector's stage, as its name says: ``pgd-10-cls-eps-2``."""

    steps: int
    """0: ``clean``; 1 without a start: ``fgsm``."""
    random_start: bool
    part: Literal["total", "cls", "loc"]
    """The loss that is maximised: all of it, the classes' or the boxes'."""
    eps: Fraction
    alpha: Fraction
    """Step size: eps for FGSM; else the task's step, in proportion where eps is not the task's."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the stage records; eps and step as exact fractions."""
        if not self.steps:
            return {}
        told = {"eps": format_fraction(self.eps), "loss": self.part}
        if not self.random_start:
            return {**told, "steps": 1, "random_start": False}
        alpha = format_fraction(self.alpha)
        return {**told, "alpha": alpha, "steps": self.steps, "random_start": True, "restarts": 1}


def detector_attack(stage: str, eps: Fraction, step: Fraction) -> DetectorAttack | None:
    """Read a detector's stage from its name; None where it is none.

    Args:
        stage: ``clean``, or ``fgsm`` or ``pgd-N``, then ``-cls`` or ``-loc``, then ``-eps-K`` for
            another budget of K/255.
        eps: the task's budget.
        step: the task's step size.
    """
    found = re.fullmatch(
        r"(?:(clean)|(fgsm|pgd-([1-9]\d{0,4}))(?:-(cls|loc))?(?:-eps-([1-9]\d{0,2}))?)", stage
    )
    if found is None:
        return None
    clean, attack, steps, said, budget = found.groups()
    part: Any = said or "total"
    if clean:
        return DetectorAttack(0, False, "total", eps, step)
    own = eps if budget is None else Fraction(int(budget), 255)
    if own > 1:
        return None
    if attack == "fgsm":
        return DetectorAttack(1, False, part, own, own)
    alpha = step if own == eps else step * own / eps
    return DetectorAttack(int(steps), True, part, own, alpha)


class _Counts:
    """``counts.steps``: ``params["steps"]``, refused unless it is a whole number >= 1."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params

    def __getattr__(self, name: str) -> int:
        value = self._params[name]
        if type(value) is not int or value < 1:
            raise KeyError(name)
        return value


def _fgsm(asked: Question) -> dict[str, Any]:
    return {**_eps(asked), "loss": "ce", "steps": 1, "random_start": False}


def _pgd(loss: str) -> Callable[[Question], dict[str, Any]]:
    return lambda asked: {
        **_eps(asked),
        "loss": loss,
        "alpha": format_fraction(asked.step),
        "steps": asked.numbers[0],
        "random_start": True,
        "restarts": 1,
    }


def _apgd_ce(asked: Question) -> dict[str, Any]:
    return {
        **_standard(asked),
        "loss": "ce",
        "steps": 100,
        "restarts": 1,
        "rho": "0.75",
        "eot_iter": 1,
    }


def _apgd_t(asked: Question) -> dict[str, Any]:
    return {
        **_standard(asked),
        "loss": "dlr-targeted",
        "steps": 100,
        "restarts": 1,
        "targets": targets(asked.classes),
        "rho": "0.75",
        "eot_iter": 1,
    }


def _fab_t(asked: Question) -> dict[str, Any]:
    return {
        **_standard(asked),
        "steps": 100,
        "restarts": 1,
        "targets": targets(asked.classes),
        "alpha_max": "0.1",
        "eta": "1.05",
        "beta": "0.9",
    }


def _square(asked: Question) -> dict[str, Any]:
    return {
        **_standard(asked),
        "loss": "margin",
        "queries": 5000,
        "restarts": 1,
        "p_init": "0.8",
        "resc_schedule": False,
    }


def _searched(exact: str) -> Kind:
    """One of AutoAttack's attacks on the network in bfloat16, confirmed in float32.

    An image in doubt is attacked twice, and which is in doubt only the network tells.
    """
    row = KINDS[exact]
    return row._replace(
        parameters=lambda asked: {**row.parameters(asked), **SEARCH}, passes=_depends
    )


def _adaptive(asked: Question) -> dict[str, Any]:
    setting = adaptive.Setting(asked.eps, asked.step, asked.classes)
    return {**_eps(asked), **adaptive.of_stage(setting)}


def _depends(_counts: _Counts) -> tuple[int, int]:
    """What an image that stands costs, only the network tells."""
    raise KeyError("passes")


def _eps(asked: Question) -> dict[str, Any]:
    return {"eps": format_fraction(asked.eps)}


def _standard(asked: Question) -> dict[str, Any]:
    return {**_eps(asked), "norm": asked.norm, "version": "standard"}


def _autoattack(
    describe: Callable[[Question], dict[str, Any]],
    passes: Callable[[_Counts], tuple[int, int]],
    classes: int = 2,
) -> Kind:
    return Kind("pyautoattack", describe, passes, True, True, classes)


# AutoAttack's attacks ask first which images are classified correctly: the 1 in front. Then
# APGD      the start and every step, forward and backward; targeted, the logits that rank the
#           targets once more for each;
# FAB       for each target the prediction, the ranking, two forwards and one backward a step, and
#           the verdict on what it found;
# Square    the initial stripes, every query, and the verdict.
KINDS = {
    "clean": Kind("aal-bench", lambda _: {}, lambda _: (0, 0), serves_l2=True),
    "fgsm": Kind("torchattacks", _fgsm, lambda n: (n.steps, n.steps)),
    "pgd-N": Kind("torchattacks", _pgd("ce"), lambda n: (n.steps, n.steps)),
    "cw-inf-N": Kind("aal-bench", _pgd("margin"), lambda n: (n.steps, n.steps)),
    "apgd-ce": _autoattack(_apgd_ce, lambda n: (1 + n.steps + 1, n.steps + 1)),
    "apgd-t": _autoattack(
        _apgd_t, lambda n: (1 + n.targets * (n.steps + 2), n.targets * (n.steps + 1)), DLR_CLASSES
    ),
    "fab-t": _autoattack(
        _fab_t, lambda n: (1 + n.targets * (2 * n.steps + 3), n.targets * n.steps)
    ),
    "square": _autoattack(_square, lambda n: (1 + n.queries + 2, 0)),
    "adaptive": Kind("aal-bench", _adaptive, _depends, sequential=True, closing=True),
}
"""Our attacks, by their names in the registry."""
KINDS |= {f"bf16-{exact}": _searched(exact) for exact in ("apgd-ce", "apgd-t", "fab-t", "square")}


def _find(stage: str) -> tuple[Kind | None, tuple[int, ...]]:
    counted = re.fullmatch(r"(.+)-([1-9]\d{0,4})", stage, re.ASCII)
    if counted:
        return KINDS.get(f"{counted[1]}-N"), (int(counted[2]),)
    return (None if stage.endswith("-N") else KINDS.get(stage)), ()
