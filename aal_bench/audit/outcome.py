"""What a check found: a verdict, the measured value beside its threshold, and one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Severity = Literal["unreliable", "warning", "information"]
"""What a failed check makes of a result: ``unreliable`` marks it and its row on a board."""
Verdict = Literal["pass", "fail", "not applicable", "not decided"]
"""``not decided``: it was measured, on too few images to be significant."""


class Outcome(NamedTuple):
    """One check's finding."""

    verdict: Verdict
    sentence: str
    """What was found, for a reader who knows no attack by name; ends with a full stop."""
    value: float | str | None = None
    """The measured figure that the rule is about."""
    threshold: float | str | None = None
    """What the rule allows, as it was used here."""
    measured: Mapping[str, float] = MappingProxyType({})
    """Every figure behind it, accuracies as fractions."""
    severity: Severity | None = None
    """Milder than the check's own, where the check says so; None: the check's."""


def not_applicable(why: str) -> Outcome:
    """The check does not apply; `why` is a whole sentence."""
    return Outcome("not applicable", why)


def percent(share: float) -> str:
    """``34.2 %``."""
    return f"{100 * share:.1f} %"


def share(flags: Tensor) -> float:
    """Share of true values of (N,), rounded to 1e-6."""
    return round(float(flags.double().mean()), 6)


def gravest(*verdicts: Verdict) -> Verdict:
    """The most serious of several verdicts of one check."""
    order: dict[Verdict, int] = {"fail": 0, "not decided": 1, "pass": 2, "not applicable": 3}
    return min(verdicts, key=lambda verdict: order[verdict])
