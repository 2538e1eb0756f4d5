"""``audit.json``: what an audit found, as anybody's program reads it. No torch."""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal

from pydantic import Field, computed_field

from aal_bench.audit.outcome import Outcome, Severity, Verdict
from aal_bench.audit.table import Check
from aal_bench.schema import Block, Count, Environment, Share


class Finding(Block):
    """One check's outcome."""

    number: int = Field(ge=1, le=32)
    """1 to 32."""
    name: str
    """Its slug."""
    title: str
    """What ought to hold."""
    verdict: Verdict
    """``not decided``: measured on too few images to be significant."""
    severity: Severity
    """What a failure makes of the result; milder than the check's usual where it says so."""
    rule: str
    """When the check fails."""
    value: float | str | None = None
    """What was measured."""
    threshold: float | str | None = None
    """What the rule allows."""
    sentence: str
    """The finding in words."""
    source: str
    """Where the check comes from."""
    measured: dict[str, float] = Field(default_factory=dict)
    """Every figure behind it."""

    @classmethod
    def of(cls, check: Check, outcome: Outcome) -> Finding:
        """The record of `check`'s `outcome`."""
        return cls(
            number=check.number,
            name=check.name,
            title=check.title,
            verdict=outcome.verdict,
            severity=outcome.severity or check.severity,
            rule=check.rule,
            value=_spelt(outcome.value),
            threshold=_spelt(outcome.threshold),
            sentence=outcome.sentence,
            source=check.source,
            measured={key: one for key, one in outcome.measured.items() if isfinite(one)},
        )


def _spelt(figure: float | str | None) -> float | str | None:
    """`figure`; in words where JSON has no number for it."""
    return (
        f"not finite ({figure})" if isinstance(figure, float) and not isfinite(figure) else figure
    )


class Cost(Block):
    """What the audit cost: passes are images that went through a network."""

    forwards: Count
    """Forward passes."""
    backwards: Count
    """Backward passes."""
    naive_forwards: Count
    """The same if no check had used what another had made."""
    naive_backwards: Count
    """Likewise."""
    seconds: float = Field(ge=0)
    """Wall-clock time."""

    @classmethod
    def of(cls, spent: tuple[int, int], naive: tuple[int, int], seconds: float) -> Cost:
        """From two pairs (forward, backward)."""
        return cls(
            forwards=spent[0],
            backwards=spent[1],
            naive_forwards=naive[0],
            naive_backwards=naive[1],
            seconds=round(seconds, 2),
        )


class WorstCase(Block):
    """The adaptive attacks together: an image stands that stands against every one."""

    clean: Share
    """Accuracy of the audited images without attack."""
    usual: Share
    """After the audit's attacks on the final logits."""
    robust: Share
    """After the adaptive attacks as well, judged on the plain model: the number to report."""
    attacks: dict[str, Share]
    """Attack -> accuracy under it alone."""
    diagnostic: dict[str, Share] = Field(default_factory=dict)
    """Masked attacks, which are no robustness."""


class Examined(Block):
    """What the checks found."""

    budget: Literal["quick", "full"]
    """How much was spent."""
    images: Count
    """Images audited, or queries of episodes."""
    checks: list[Finding]
    """In the order of their numbers."""
    cost: Cost
    """What it took."""

    @property
    def failed(self) -> list[Finding]:
        """The failed checks, those that make the result unreliable first."""
        order = ("unreliable", "warning", "information")
        found = [check for check in self.checks if check.verdict == "fail"]
        return sorted(found, key=lambda check: order.index(check.severity))

    def count(self, verdict: Verdict) -> int:
        """How many checks came out so."""
        return sum(check.verdict == verdict for check in self.checks)


class Audit(Examined):
    """The whole of ``audit.json``."""

    format: Literal["aal-bench audit 1"] = "aal-bench audit 1"
    """Format and version."""
    subject: dict[str, Any]
    """Task, model, method, eps, seed and the checkpoint's sha256."""
    created: str
    """RFC 3339."""
    command: list[str]
    """The exact argument vector; empty: part of a run."""
    environment: Environment
    """What it was measured with."""
    worst_case: WorstCase | None = None
    """Of models that declare a gate or heads, or are random; null for others."""
    figures: list[str] = Field(default_factory=list)
    """Files beside it."""

    @computed_field
    @property
    def unreliable(self) -> bool:
        """Whether a check of that severity failed."""
        return any(
            check.verdict == "fail" and check.severity == "unreliable" for check in self.checks
        )
