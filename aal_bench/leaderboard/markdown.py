"""The boards as Markdown: ``BOARD.md``, and what others published beside them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from aal_bench.grid import escape, grid
from aal_bench.leaderboard import cells, published
from aal_bench.leaderboard.board import Board, Section
from aal_bench.leaderboard.cells import NONE, percent
from aal_bench.leaderboard.standings import Row, Standing

HEAD = (
    *("", "method", "network", "clean, %", "AutoAttack, %", "external, %", "95 % interval"),
    *("seeds", "level", "flags", "training", "passes", "passes, all epochs", "data"),
)
FEWSHOT = (
    *("", "method", "network", "clean, %", "95 % interval", "AutoAttack, %", "all attacks, %"),
    *("seeds", "level", "flags", "training", "passes", "passes, all epochs", "data"),
)
OPTIONAL = {"external, %"}, {"AutoAttack, %", "all attacks, %"}
"""Columns that are left out where no row has them: of boards of images, and of few-shot ones."""
LEGEND = (
    "Several seeds: mean ± sample standard deviation [each seed]. Level: the seeds' lowest level of"
    " verification. Training: mean time."
)


def markdown(boards: Sequence[Board], robustbench: bool = False, reported: bool = False) -> str:
    """Every board as one text that ends with a line break; links are relative to the boards' root.

    Args:
        boards: as `board.boards` gives them.
        robustbench: with RobustBench's rows for the same data set, norm and eps.
        reported: with the papers' claims for the task.
    """
    parts = ["# Leaderboards"]
    parts += ["\n".join(f"- {line}" for line in (*cells.rules(boards), LEGEND, cells.PASSES))]
    if not boards:
        parts.append("No entries yet.")
    for board in boards:
        parts.append(f"## {escape(cells.heading(board))}")
        parts += [_section(board, section) for section in board.sections] or ["No entries yet."]
        if robustbench:
            parts.append(_robustbench(board))
        if reported:
            parts.append(_claims(board))
    return "\n\n".join(parts) + "\n"


def _section(board: Board, section: Section) -> str:
    fewshot = section.episodes is not None
    head = FEWSHOT if fewshot else HEAD
    rows = [_standing(board, standing, fewshot) for standing in section.standings]
    shown = [
        column
        for column, name in enumerate(head)
        if name not in OPTIONAL[fewshot] or any(row[column] != NONE for row in rows)
    ]
    table = grid([head[i] for i in shown], [[row[i] for i in shown] for row in rows])
    return f"{escape(cells.question(section))}\n\n{table}"


def _standing(board: Board, standing: Standing, fewshot: bool) -> tuple[str, ...]:
    rows, first = standing.rows, standing.first
    links = ", ".join(_link(board, row) for row in rows)
    own = "" if first.training is None else f"{escape(standing.method)}: "
    interval = cells.interval(rows[0].measure.ci95) if len(rows) == 1 else NONE
    if fewshot:
        under = (interval, cells.attacked(rows, "autoattack"), cells.attacked(rows, "robust"))
    else:
        shares = _each([cells.autoattack(row) for row in rows])
        under = (shares, escape(cells.external(standing)), interval)
    return (
        standing.place,
        own + links,
        escape(first.model.architecture),
        _each([cells.clean(row) for row in rows]),
        *under,
        cells.seeds(standing),
        f"{standing.level}",
        escape(cells.flags(rows)),
        escape(cells.seconds(rows)),
        cells.passes(first),
        cells.count(cells.passes_in_all(first)),
        escape(cells.data(first)),
    )


def _each(shares: Sequence[float]) -> str:
    listed = f" [{', '.join(percent(share) for share in shares)}]" if len(shares) > 1 else ""
    return cells.spread(shares) + listed


def _link(board: Board, row: Row) -> str:
    place = "/".join(quote(part) for part in (board.task, board.norm, row.entry.path.name))
    return f"[{escape(row.id)}]({place})"


def _robustbench(board: Board) -> str:
    found = published.rows(board)
    title = "### Published by RobustBench, not verified here"
    if not found.rows:
        return f"{title}\n\nNone: {escape(found.reason)}."
    head = ("entry", "network", "venue", "clean, %", "AutoAttack, %", "external, %", "extra data")
    rows = [
        (
            f"[{escape(row.entry)}]({quote(row.link, safe=':/?&=#%')})",
            escape(row.architecture),
            escape(row.venue),
            percent(row.clean),
            percent(row.robust) + (" (unreliable)" if row.unreliable else ""),
            percent(row.external),
            "yes" if row.additional_data else "no",
        )
        for row in found.rows
    ]
    return f"{title}\n\n{published.remark(board)}\n\n{grid(head, rows)}"


def _claims(board: Board) -> str:
    found = published.claims(board)
    title = "### What papers claim, not verified here"
    if not found:
        return f"{title}\n\nNone for this task."
    stages = list(dict.fromkeys(stage for claim in found for stage in claim.values))
    rows = [
        (
            escape(f"{claim.paper}, {claim.table}"),
            escape(claim.method),
            escape(claim.backbone or "not printed"),
            *(percent(claim.values.get(stage)) for stage in stages),
            escape("; ".join(claim.notes)),
        )
        for claim in found
    ]
    head = ("where", "method", "network", *(f"{stage}, %" for stage in stages), "notes")
    return f"{title}\n\n{grid(head, rows)}"
