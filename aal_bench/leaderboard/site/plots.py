"""The points of a section's two plots, as JSON that the page's script draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aal_bench.leaderboard import robustbench
from aal_bench.leaderboard.board import Board, Row, Section, Standing
from aal_bench.leaderboard.cells import count, device, passes, passes_in_all, percent
from aal_bench.leaderboard.site import names
from aal_bench.leaderboard.site.show import duration
from aal_bench.record import Result
from aal_bench.threat import parse_fraction

_NAMED = 4
"""At most so many tied configurations are named below a plot."""


class Plots(NamedTuple):
    """What a section's plots show, and the same in words."""

    data: dict[str, Any]
    """``series``: one per standing, with its points; ``published``: the grey background; ``aside``:
    whether it was measured on other images than the section's, and is drawn on demand only;
    ``fewshot``: clean accuracy is what ranks, and is drawn against time."""
    plane: str | None
    """Text alternative of accuracy against training time; None: no row has a training time."""
    tradeoff: str | None
    """Text alternative of clean against robust accuracy; None: no few-shot row has the latter."""


def plots(board: Board, section: Section, published: Sequence[robustbench.Row]) -> Plots:
    """The plots of one section.

    Args:
        board: the section's board.
        section: at least one standing.
        published: RobustBench's rows for the board; drawn are those under the section's eps.
    """
    eps = parse_fraction(section.eps)
    series = [_series(board, standing) for standing in section.standings]
    background = [
        {"clean": 100 * row.clean, "robust": 100 * row.robust, "label": row.entry}
        for row in published
        if row.eps is not None and parse_fraction(row.eps) == eps
    ]
    rows = [row for standing in section.standings for row in standing.rows]
    timed = [row for row in rows if _seconds(row.entry.result)]
    plane = None
    if timed:
        times = sorted(_seconds(row.entry.result) or 0 for row in timed)
        span = f"{duration(times[0])} to {duration(times[-1])}"
        devices = ", ".join(dict.fromkeys(device(row.entry.result) for row in timed))
        plane = f"{_entries(len(timed))}, trained for {span} on {devices}; {_lead(section)}."
    subset = board.task_file is not None and board.task_file.data.subset is not None
    aside = subset or not section.official
    grey = f" and {len(background)} published rows of RobustBench in grey" if background else ""
    grey += ", shown by their button in the legend" if background and aside else ""
    tradeoff = f"{_entries(len(rows))}{grey}; {_lead(section)}."
    data: dict[str, Any] = {"series": series, "published": background, "aside": aside}
    if section.episodes is None:
        return Plots(data, plane, tradeoff)
    attacked = [row for row in rows if _robust(row) is not None]
    told = f"{_entries(len(attacked))}, under all attacks; {_lead(section)} (clean)."
    return Plots(data | {"fewshot": True}, plane, told if attacked else None)


def _series(board: Board, standing: Standing) -> dict[str, Any]:
    return {
        "name": f"{standing.method}, {standing.first.model.architecture}",
        "points": [
            {
                "label": row.id,
                "href": names.href(names.entry_file(board, row)),
                "robust": _robust(row),
                "clean": 100 * result.metrics.clean.value if result.metrics else None,
                "seconds": _seconds(result),
                "time": f"{duration(_seconds(result))} on {device(result)}",
                "passes": _passes(result),
            }
            for row in standing.rows
            for result in [row.entry.result]
        ],
    }


def _robust(row: Row) -> float | None:
    """Accuracy under attack, in percent: the score of images, all attacks of few-shot queries."""
    result = row.entry.result
    if result.task.episodes is None:
        return 100 * row.score
    metrics = result.metrics
    return 100 * metrics.robust.value if metrics and metrics.robust else None


def _seconds(result: Result) -> float | None:
    # The axis is logarithmic: a training of zero seconds has no place on it.
    seconds = result.training.wall_seconds if result.training else None
    return seconds or None


def _passes(result: Result) -> str | None:
    total = passes_in_all(result)
    return None if total is None else f"{count(total)} per image ({passes(result)}, every epoch)"


def _lead(section: Section) -> str:
    """Who is first on the board: by the mean over seeds, like its ranks."""
    first = [one for one in section.standings if one.rank == section.standings[0].rank]
    named = [f"{one.method} {percent(one.mean)} %" for one in first[:_NAMED]]
    named += [f"{len(first) - _NAMED} more"] * (len(first) > _NAMED)
    return f"first by the mean over seeds{', tied' * (len(first) > 1)}: {', '.join(named)}"


def _entries(n: int) -> str:
    return f"{n} {'entry' if n == 1 else 'entries'}"
