"""What only a detection run's report has: every convention and every class. No torch."""

from __future__ import annotations

from aal_bench.comparison import NONE, marks, points
from aal_bench.grid import escape, grid
from aal_bench.leaderboard.conventions import CONVENTIONS
from aal_bench.record import Result
from aal_bench.schema import Measure


def conventions(result: Result) -> str:
    """Every stage in every convention, with intervals; empty where nothing was detected."""
    found = result.metrics.detection if result.metrics else None
    if found is None:
        return ""
    head = ["stage"]
    for name in found.conventions:
        head += [name, "95 % interval"]
    rows = [
        [
            _marked(result, stage),
            *(cell for name in found.conventions for cell in _cells(measures[name])),
        ]
        for stage, measures in found.stages.items()
    ]
    told = "\n".join(f"- {name}: {CONVENTIONS[name]}" for name in found.conventions)
    return f"## Mean average precision by convention\n\n{grid(head, rows)}\n\n{told}"


def classes(result: Result) -> str:
    """Average precision of every class under every stage; empty where nothing was detected."""
    found = result.metrics.detection if result.metrics else None
    if found is None:
        return ""
    head = ("class", "objects", *found.classes)
    rows = [
        (
            _marked(result, escape(name)),
            f"{count:,}",
            *(_points(by[name]) for by in found.classes.values()),
        )
        for name, count in found.objects.items()
    ]
    told = f"In %, {found.conventions[0]}; `{NONE}`: the class has no object that counts."
    return f"## Average precision of each class\n\n{grid(head, rows)}\n\n{told}"


def _marked(result: Result, name: str) -> str:
    """A row's name behind what keeps its numbers from being a result."""
    return " ".join([*(f"**{mark}**" for mark in marks(result)), name])


def _cells(measure: Measure) -> tuple[str, str]:
    low, high = measure.ci95
    return points(measure.value, 2), f"[{100 * low:.2f}, {100 * high:.2f}]"


def _points(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f}"
