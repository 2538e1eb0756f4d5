"""The audit as Markdown: a section of a run's report, and a page of its own. No torch."""

from __future__ import annotations

import shlex

from aal_bench.audit import words
from aal_bench.audit.record import Audit, Finding, WorstCase
from aal_bench.grid import escape, grid

CAPTIONS = {
    "audit_eps": "Accuracy against eps: it may only fall, and reaches zero.",
    "audit_steps": "Accuracy at every step of PGD: where it still falls at the right edge, the"
    " attack is not finished.",
    "audit_surface": "The loss around images, along the gradient's sign and along random signs,"
    " each panel on a scale of its own. Of an honest model it rises smoothly and nearly straight to"
    " the right; noise, steps and plains are what hides adversarials from gradients.",
    "audit_adaptive": "Accuracy under each attack that knows the model's gate or heads, beside what"
    " all attacks together leave.",
}
"""Name of a figure -> what a reader sees in it."""


def section(audit: Audit) -> str:
    """The part of ``report.md`` on the audit; figures are relative to the report."""
    return "## Audit\n\n" + "\n\n".join(part for part in _parts(audit) if part)


def page(audit: Audit) -> str:
    """The report of an audit that belongs to no run."""
    parts = [
        f"# Audit: {escape(words.title(audit))}",
        *_parts(audit),
        _identity(audit),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _parts(audit: Audit) -> list[str]:
    return [
        f"**{escape(words.headline(audit))}.** {words.tally(audit)}, on {words.images(audit)}.",
        _findings(audit),
        _checks(audit),
        f"{words.SIGNIFICANCE[0].upper()}{words.SIGNIFICANCE[1:]}.",
        _worst(audit.worst_case),
        _figures(audit),
        f"Budget {words.budget(audit)}. Cost: {words.cost(audit)}.",
    ]


def _findings(audit: Audit) -> str:
    """What failed, in sentences: what a reader must not miss stands before the table."""
    return "\n".join(
        f"- {words.MARKS['fail']} **{check.number} {escape(check.title)}** ({check.severity}):"
        f" {escape(check.sentence)} It fails if {escape(check.rule)}."
        for check in audit.failed
    )


def _checks(audit: Audit) -> str:
    head = ("", "check", "", "verdict", "found", "threshold", "what was found", "source")
    return grid(head, [_row(check) for check in audit.checks])


def _row(check: Finding) -> tuple[str, ...]:
    return (
        words.MARKS[check.verdict],
        f"{check.number}",
        escape(check.title),
        f"**{words.verdict(check)}**" if check.verdict == "fail" else words.verdict(check),
        escape(words.found(check)),
        escape(words.allowed(check)),
        escape(check.sentence),
        escape(check.source),
    )


def _worst(case: WorstCase | None) -> str:
    if case is None:
        return ""
    rows = [
        ("no attack", words.percent(case.clean)),
        ("usual attacks", words.percent(case.usual)),
        ("**worst case of all**", f"**{words.percent(case.robust)}**"),
        *((escape(name), words.percent(share)) for name, share in case.attacks.items()),
        *(
            (f"{escape(name)}: masked, no robustness", words.percent(share))
            for name, share in case.diagnostic.items()
        ),
    ]
    return (
        "### Adaptive attacks\n\nThe model declares a gate or heads. Each attack sees every image"
        " and is judged on the plain model; an image stands in the worst case if it stands under"
        f" all of them and the usual ones.\n\n{grid(('attack', 'accuracy'), rows)}"
    )


def _figures(audit: Audit) -> str:
    shown = []
    for path in audit.figures:
        name = path.rpartition("/")[2].partition(".")[0]
        caption = CAPTIONS.get(name, "")
        shown.append(f"![{name}]({path})" + (f"\n\n{caption}" if caption else ""))
    return "\n\n".join(shown)


def _identity(audit: Audit) -> str:
    rows = [(key, f"`{value}`") for key, value in audit.subject.items() if value is not None]
    rows += [
        ("made", audit.created),
        ("aal-bench", audit.environment.aal_bench.version),
        ("torch", audit.environment.torch or words.NONE),
    ]
    told = f"## Identity\n\n{grid(('', ''), rows)}"
    if audit.command:
        told += f"\n\nAgain:\n\n    {shlex.join(audit.command)}"
    return told
