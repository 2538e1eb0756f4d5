"""How an audit is put into words, the same in a terminal and in Markdown. No torch."""

from __future__ import annotations

from aal_bench.audit.outcome import Verdict
from aal_bench.audit.record import Audit, Finding
from aal_bench.audit.table import BUDGETS

MARKS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "not applicable": "–", "not decided": "?"}
"""Told apart without colour."""
SHARES = frozenset({*range(1, 7), 8, 9, 10, 12, 18, *range(21, 27), *range(28, 33)})
"""Checks whose figures are shares, or differences of such; others count or measure. A threshold in
words goes with a count."""
SIGNIFICANCE = (
    "a share or difference beyond its threshold fails only if the images behind it are more than"
    " chance explains"
)
NONE = "-"
"""What stands where there is no figure."""


def title(audit: Audit) -> str:
    """What was audited, on how many images, with which budget."""
    subject = dict(audit.subject)
    checkpoint, seed = subject.pop("checkpoint", None), subject.pop("seed", None)
    parts = [f"{value}" for value in subject.values() if value is not None]
    parts += [f"checkpoint {checkpoint[:8]}"] if checkpoint else []
    parts += [] if seed is None else [f"seed {seed}"]
    return " · ".join([*parts, images(audit), f"{audit.budget} audit"])


def images(audit: Audit) -> str:
    """How many images were audited."""
    return f"{audit.images:,} {'image' if audit.images == 1 else 'images'}"


def headline(audit: Audit) -> str:
    """The verdict on the number, in one sentence without a full stop."""
    grave = [check for check in audit.failed if check.severity == "unreliable"]
    if grave:
        named = "; ".join(f"{check.number} {check.title}" for check in grave)
        which = "this does not hold" if len(grave) == 1 else "these do not hold"
        return f"UNRELIABLE: {which}: {named}"
    decided = audit.count("pass") + audit.count("fail")
    if not decided:
        return "no verdict: no check could decide anything"
    return f"reliable as far as {decided} {'check' if decided == 1 else 'checks'} can say"


def tally(audit: Audit) -> str:
    """How many checks passed, failed, did not apply and could not decide."""
    warnings = sum(check.severity != "unreliable" for check in audit.failed)
    failed = f"{audit.count('fail')} failed"
    if warnings:
        failed += f" ({warnings} of them only {'warns' if warnings == 1 else 'warn'})"
    parts = [f"{audit.count('pass')} passed", failed]
    rest: tuple[Verdict, ...] = ("not decided", "not applicable")
    parts += [f"{found} {verdict}" for verdict in rest if (found := audit.count(verdict))]
    return " · ".join(parts)


def verdict(check: Finding) -> str:
    """The verdict in words; of a failed check what its failure means."""
    return check.severity if check.verdict == "fail" else check.verdict


def found(check: Finding) -> str:
    """What was measured: a share in percent, anything else with three digits."""
    return _figure(check, check.value)


def allowed(check: Finding) -> str:
    """The threshold, likewise."""
    return _figure(check, check.threshold)


def against(check: Finding) -> str:
    """What was measured, and the threshold if there is one."""
    return found(check) if check.threshold is None else f"{found(check)} ({allowed(check)})"


def _figure(check: Finding, value: float | str | None) -> str:
    if value is None:
        return NONE
    if isinstance(value, str):
        return value
    if check.number in SHARES and not isinstance(check.threshold, str):
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def cost(audit: Audit) -> str:
    """What the audit cost, and what the checks one by one would have."""
    spent = audit.cost
    total, naive = spent.forwards + spent.backwards, spent.naive_forwards + spent.naive_backwards
    told = f"{spent.forwards:,} forward and {spent.backwards:,} backward passes"
    if total and naive > total:
        told += (
            f"; each check for itself: {spent.naive_forwards:,} and {spent.naive_backwards:,}"
            f" ({naive / total:.1f} times as many)"
        )
    return f"{told}; {spent.seconds:,.1f} s"


def budget(audit: Audit) -> str:
    """What the budget allows."""
    return f"{BUDGETS[audit.budget]}"


def worst(audit: Audit) -> str:
    """The adaptive attacks' worst case as one sentence; empty where there is none."""
    case = audit.worst_case
    if case is None:
        return ""
    return (
        f"usual attacks leave {percent(case.usual)}, all together with {len(case.attacks)}"
        f" adaptive ones {percent(case.robust)}: the number to report"
    )


def percent(share: float) -> str:
    """``34.2 %``."""
    return f"{100 * share:.1f} %"
