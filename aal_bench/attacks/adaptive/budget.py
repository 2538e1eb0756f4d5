"""What the adaptive attacks spend, in two sizes, and what they are called. No torch.

Whoever checks a record reads from here what the stage `adaptive` must state.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from aal_bench.threat import format_fraction

DLR_CLASSES = 3
"""DLR divides by a difference with the third largest logit; with fewer the margin stands in."""
TARGETED_CLASSES = 4
"""The targeted DLR loss of APGD-T needs the fourth largest."""


class Setting(NamedTuple):
    """The question that the attacks are asked."""

    eps: float | Fraction
    """Radius of the Linf ball in pixel units."""
    step: float | Fraction
    """The task's step size in pixel units."""
    classes: int
    seed: int = 0
    """Of the pyautoattack attacks' own generators; `worst_case` has its own."""

    @property
    def alpha(self) -> Fraction:
        """Step of PGD: the task's, but at least eps/10, so that every start can cross the ball."""
        return max(Fraction(self.step), Fraction(self.eps) / 10)


class Budget(NamedTuple):
    """How much each attack may spend on one image."""

    name: str
    steps: int
    """Of every PGD run."""
    restarts: int
    """Uniform starts of every PGD objective."""
    apgd_steps: int
    apgd_restarts: int
    """Of APGD on CE and on DLR; on the targeted loss, one for each target."""
    targets: int
    """Target classes of APGD-T, FAB-T and of the class-pinned gates, the likeliest first."""
    fab_steps: int
    """0: no FAB-T."""
    queries: int
    """Of Square; 0: none."""
    betas: tuple[float, ...]
    """Weights of the auxiliary loss in the joint losses."""
    lambdas: tuple[float, ...]
    """Weights of the mask's change in attention diversion."""
    samples: int
    """Forwards that one gradient, and one verdict, of a random model is taken over."""
    check: int
    """Steps between two looks at the plain model, where the objective does not look itself."""

    def classes(self, setting: Setting) -> int:
        """Target classes that there are."""
        return min(self.targets, setting.classes - 1)


QUICK = Budget(
    name="quick",
    steps=50,
    restarts=1,
    apgd_steps=50,
    apgd_restarts=1,
    targets=3,
    fab_steps=0,
    queries=0,
    betas=(1.0, 5.0, 100.0),
    lambdas=(1.0,),
    samples=20,
    check=10,
)
FULL = Budget(
    name="full",
    steps=100,
    restarts=2,
    apgd_steps=100,
    apgd_restarts=5,
    targets=9,
    fab_steps=100,
    queries=5000,
    betas=(0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0),
    lambdas=(0.1, 1.0, 10.0),
    samples=20,
    check=10,
)
BUDGETS = {budget.name: budget for budget in (QUICK, FULL)}

HEAD = "-head-"
"""Between the name of an attack of U1 and the number of the head that it is on, from 1."""


def numbers(budget: Budget, setting: Setting) -> dict[str, object]:
    """A budget as a record states it; fractions and weights as exact text."""
    fields = budget._asdict() | {
        "alpha": format_fraction(setting.alpha),
        "targets": budget.classes(setting),
        "betas": [f"{each:g}" for each in budget.betas],
        "lambdas": [f"{each:g}" for each in budget.lambdas],
    }
    return {"budget": fields.pop("name"), **fields}


def anywhere(budget: Budget, setting: Setting) -> list[str]:
    """Names of T1 and T6, for every network."""
    names = ["T1-full-ce", "T1-full-margin", "T6-apgd-ce"]
    names += ["T6-apgd-dlr"] * (setting.classes >= DLR_CLASSES)
    names += ["T6-apgd-t"] * (setting.classes >= TARGETED_CLASSES)
    return names + ["T6-square"] * bool(budget.queries)


def on_gates(budget: Budget) -> list[str]:
    """Names of T2-T4, for networks with a gate."""
    held = [f"T2-gate-{where}-{loss}" for where in ("clean", "half") for loss in ("ce", "margin")]
    moved = [f"T3-{how}-{each:g}" for each in budget.lambdas for how in ("divert", "toward")]
    return [*held, *moved, "T4-background", "T4-foreground"]


def on_heads(budget: Budget, setting: Setting) -> list[str]:
    """Names of U1-U5, for networks with auxiliary heads; those of U1 once for each head."""
    names = ["U1-pgd-ce", "U1-pgd-margin", "U1-apgd-ce"]
    names += ["U1-apgd-t"] * (setting.classes >= TARGETED_CLASSES)
    names += ["U1-fab-t"] * bool(budget.fab_steps)
    names += [f"U2-joint-{loss}-{each:g}" for each in budget.betas for loss in ("ce", "dlr")]
    names += [f"U3-{how}-{loss}" for how in ("soft", "bpda") for loss in ("ce", "margin")]
    return [*names, "U4-class-pinned", "U5-true-pinned-ce", "U5-true-pinned-margin"]


ON_RANDOM = ["T7-eot-ce", "T7-eot-margin", "T7-eot-apgd-ce"]
"""Names of T7, for networks that draw numbers."""


def of_stage(setting: Setting) -> dict[str, object]:
    """What the stage `adaptive` states: numbers and names of attacks, by what a network declares.

    One that declares heads gets ``heads``, and at the same budget the gate's attacks where it has a
    gate too; one with a gate alone ``gate``; one of either kind that draws numbers ``random``
    besides.
    """
    gate, full = QUICK, FULL
    return {
        "gate": numbers(gate, setting) | {"attacks": anywhere(gate, setting) + on_gates(gate)},
        "heads": numbers(full, setting)
        | {"attacks": on_heads(full, setting) + anywhere(full, setting)},
        "random": list(ON_RANDOM),
    }
