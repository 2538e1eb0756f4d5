"""A diagnosis in a terminal: prediction, measurement and verdict of each hypothesis. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aal_bench.diagnosis.record import Diagnosis, Hypothesis, Judgement
from aal_bench.progress import clock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 110
"""Columns where the output is not a terminal."""
MARKS: dict[Judgement, str] = {
    "supported": "✓",
    "contradicted": "✗",
    "not decided": "?",
    "not tested": "–",
}
"""Told apart without colour."""


def show(diagnosis: Diagnosis, folder: Path, console: Console | None = None) -> None:
    """What was diagnosed, the table, the findings in words, and where to read on."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console(width=None if os.isatty(1) else WIDTH, highlight=False)
    console.print(Text(_title(diagnosis), "bold"))
    console.print(
        f"{diagnosis.images} images; accuracies in %, with 95 % intervals; verdicts by exact tests"
        " of paired images at 1 %",
        markup=False,
    )
    console.print(table(diagnosis))
    console.print(findings(diagnosis))
    for one in diagnosis.hypotheses:
        if one.command is not None:
            console.print(Text(f"{one.id} needs: {one.command}"), soft_wrap=True)
    console.print(
        Text(
            f"{diagnosis.forwards:,} forward and {diagnosis.backwards:,} backward passes,"
            f" {clock(diagnosis.seconds)}; {folder / 'diagnosis.json'},"
            f" {', '.join(diagnosis.figures)}"
        ),
        soft_wrap=True,
    )


def table(diagnosis: Diagnosis) -> Table:
    """One row for each hypothesis."""
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), header_style="default", expand=True)
    out.add_column("hypothesis", ratio=18)
    out.add_column("predicts", ratio=27)
    out.add_column("measured", no_wrap=True)
    out.add_column("verdict", no_wrap=True)
    for one in diagnosis.hypotheses:
        out.add_row(
            Text(f"{one.id} {one.title}"),
            Text(_predicts(one)),
            Text(_readings(one, diagnosis.images)),
            Text(f"{MARKS[one.verdict]} {one.verdict}", "bold"),
        )
    return out


def findings(diagnosis: Diagnosis) -> Table:
    """What was found, one sentence or two for each hypothesis."""
    from rich.table import Table
    from rich.text import Text

    out = Table.grid(padding=(0, 2, 0, 0))
    for one in diagnosis.hypotheses:
        out.add_row(Text(one.id), Text(one.sentence))
    return out


def _title(diagnosis: Diagnosis) -> str:
    subject = diagnosis.subject
    told = [str(subject[name]) for name in ("task", "threat", "model", "method")]
    told += [f"kernel {subject['kernel']}"]
    told += [f"control {subject['control']}"] if subject["control"] != "none" else []
    told += [f"seed {subject['seed']}", f"checkpoint {subject['checkpoint'][:8]}"]
    return " · ".join([*told, f"{diagnosis.budget} diagnosis"])


def _predicts(one: Hypothesis) -> str:
    printed = [f"{each.where}: {100 * each.value:.2f} % {each.name}" for each in one.printed]
    return "\n".join([f"{one.predicts}.", *printed])


def _readings(one: Hypothesis, images: int) -> str:
    """One line for each figure, its numbers below each other."""
    widest = max((len(reading.name) for reading in one.measured), default=0)
    lines = list[str]()
    for reading in one.measured:
        value, low, high = (100 * each for each in (reading.value, *reading.ci95))
        of = "" if reading.n == images else f" of {reading.n}"
        lines.append(f"{reading.name:{widest}} {value:5.1f} [{low:.1f}, {high:.1f}]{of}")
    return "\n".join(lines)
