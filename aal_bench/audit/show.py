"""The audit in a terminal: one line for each check, the verdict first. No torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aal_bench.audit import words
from aal_bench.audit.record import Audit, Finding
from aal_bench.progress import clock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WIDTH = 110
"""Columns where the output is not a terminal."""
STYLES = {"unreliable": "bold", "warning": "bold", "not applicable": "dim"}
"""Verdict in words -> style. Weight only: a colour would say nothing to many readers."""


def line(audit: Audit, earlier: bool = False) -> None:
    """One line for a run's log, and one for each failed check."""
    done = "(done earlier)" if earlier else clock(audit.cost.seconds)
    print(f"audit      {words.headline(audit)}  ·  {words.tally(audit)}  {done}", flush=True)
    for check in audit.failed:
        print(f"           ✗ {check.number} {check.severity}: {check.sentence}", flush=True)


def table(audit: Audit) -> Table:
    """One line for each check; below a failed one the sentence that says what was found."""
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="default")
    out.add_column("", no_wrap=True)
    out.add_column("check", justify="right", no_wrap=True)
    out.add_column("", overflow="fold")
    out.add_column("verdict", no_wrap=True)
    out.add_column("found (threshold)", justify="right", overflow="fold")
    for check in audit.checks:
        style = STYLES.get(words.verdict(check), "")
        out.add_row(
            Text(words.MARKS[check.verdict], style),
            Text(f"{check.number}", style),
            _told(check, style),
            Text(words.verdict(check), style),
            Text(words.against(check), style),
        )
    return out


def show(audit: Audit, console: Console | None = None) -> None:
    """Verdict, table, worst case, and what was spent."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console(width=None if os.isatty(1) else WIDTH, highlight=False)
    console.print(Text(words.headline(audit), "bold"))
    console.print(Text(words.title(audit)))
    console.print(table(audit))
    console.print(_beneath(audit))


def _beneath(audit: Audit) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = {
        "verdicts": words.tally(audit),
        "": f"({words.SIGNIFICANCE})",
        "worst case": words.worst(audit),
        "budget": words.budget(audit),
        "cost": words.cost(audit),
    }
    out = Table.grid(padding=(0, 1, 0, 0))
    for name, told in rows.items():
        if told:
            out.add_row(Text(name), Text(told))
    return out


def _told(check: Finding, style: str) -> Text:
    from rich.text import Text

    told = Text(check.title, style)
    if check.verdict == "fail":
        told.append(f"\n{check.sentence}", "default")
    return told
