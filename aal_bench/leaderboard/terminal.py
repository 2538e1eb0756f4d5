"""The boards in a terminal. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from aal_bench.grid import plain
from aal_bench.leaderboard import cells, published
from aal_bench.leaderboard.board import Board, Section
from aal_bench.leaderboard.cells import NONE, percent
from aal_bench.leaderboard.standings import Row, Standing

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

HEAD = ("", "method", "network", "clean", "AutoAttack", "external", "95 % interval")
HEAD += ("level", "flags", "training")
FEWSHOT = ("", "method", "network", "clean", "95 % interval", "AutoAttack", "all attacks")
FEWSHOT += ("level", "flags", "training")
OPTIONAL = {"external"}, {"AutoAttack", "all attacks"}
"""Columns that are left out where no row has them: of boards of images, and of few-shot ones."""
WORDS = {"", "method", "network", "flags", "training", "where", "entry", "venue"}
"""Columns of words: left-aligned, and folded where the terminal is narrow. Numbers never are."""
DROPPED = ("training", "network", "95 % interval", "clean", "level")
"""Columns that a narrow terminal does without, the first of them first."""
FOLDED = {"method": 20, "flags": 14}
"""These are folded to so many characters before another column is dropped."""
WIDE = 200


def show(boards: Sequence[Board], robustbench: bool = False, reported: bool = False) -> None:
    """Print the boards, and below each what others published where that is asked for."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width
        console.width = WIDE
    if not boards:
        console.print("no entries yet: aal-bench submit RUN makes one")
        return
    for board in boards:
        parts = table(board, console.width)
        parts += [_robustbench(board)] if robustbench else []
        parts += [_claims(board)] if reported else []
        for part in parts:
            console.print(part)
            console.print()
    for line in cells.rules(boards):
        console.print(line, markup=False, style="dim")


def table(board: Board, width: int = WIDE) -> list[RenderableType]:
    """One table for each section: a line for each standing, and below it one for each seed.

    A last line names the folder of the entries, whose files `verify` and `compare` take.

    Percentages; what was submitted is printed as it is, without the characters that steer a
    terminal. Columns that do not fit into `width` characters are left out, and named.
    """
    from rich.text import Text

    if not board.sections:
        return [Text(plain(f"{cells.heading(board)}: no entries yet"), style="bold")]
    folder = board.sections[0].standings[0].rows[0].entry.path.parent
    files = Text(plain(f"files: {folder}/*.json, names as in --markdown"), style="dim")
    return [*(_section(board, section, width) for section in board.sections), files]


def _section(board: Board, section: Section, width: int) -> Table:
    from rich.text import Text

    fewshot = section.episodes is not None
    told = _episode_lines if fewshot else _lines
    lines = [line for standing in section.standings for line in told(standing)]
    head: tuple[str, ...] = FEWSHOT if fewshot else HEAD
    columns: dict[str, tuple[str, ...]] = dict(zip(head, zip(*lines, strict=True), strict=True))
    for name in OPTIONAL[fewshot]:
        if set(columns[name]) == {NONE}:
            del columns[name]
    left_out = []
    # Clean accuracy ranks few-shot boards: it is never dropped there.
    for name in (name for name in DROPPED if not (fewshot and name == "clean")):
        if sum(_needed(*column) for column in columns.items()) > width:
            del columns[name]
            left_out.append(name)
    out = _table(list(columns), list(zip(*columns.values(), strict=True)))
    out.title = Text(plain(cells.heading(board)), style="bold")
    narrow = f" (too narrow for {', '.join(left_out)})" if left_out else ""
    out.caption = Text(plain(cells.question(section) + narrow))
    return out


def _needed(name: str, column: Sequence[str]) -> int:
    """Characters that a column takes at least, the gap to the next included."""
    return min(max(map(len, (name, *column))), FOLDED.get(name, WIDE)) + 2


def _lines(standing: Standing) -> Iterator[tuple[str, ...]]:
    rows, first = standing.rows, standing.first
    single = len(rows) == 1
    yield (
        standing.place,
        standing.method + _seed(rows[0]) * single,
        first.model.architecture,
        cells.spread([cells.clean(row) for row in rows]),
        cells.spread([cells.autoattack(row) for row in rows]),
        cells.external(standing) if single else percent(standing.mean) * _lowered(standing) or NONE,
        cells.interval(rows[0].measure.ci95) if single else NONE,
        f"{standing.level}",
        _flags(rows),
        cells.seconds(rows),
    )
    for row in () if single else rows:
        yield (
            "",
            _seed(row),
            "",
            percent(cells.clean(row)),
            percent(cells.autoattack(row)),
            row.entry.result.external or NONE,
            cells.interval(row.measure.ci95),
            f"{row.entry.result.verification.level}",
            _flags([row]),
            cells.seconds([row]),
        )


def _episode_lines(standing: Standing) -> Iterator[tuple[str, ...]]:
    rows, first = standing.rows, standing.first
    single = len(rows) == 1
    yield (
        standing.place,
        standing.method + _seed(rows[0]) * single,
        first.model.architecture,
        cells.spread([cells.clean(row) for row in rows]),
        cells.interval(rows[0].measure.ci95) if single else NONE,
        cells.attacked(rows, "autoattack"),
        cells.attacked(rows, "robust"),
        f"{standing.level}",
        _flags(rows),
        cells.seconds(rows),
    )
    for row in () if single else rows:
        yield (
            "",
            _seed(row),
            "",
            percent(cells.clean(row)),
            cells.interval(row.measure.ci95),
            cells.attacked([row], "autoattack"),
            cells.attacked([row], "robust"),
            f"{row.entry.result.verification.level}",
            _flags([row]),
            cells.seconds([row]),
        )


def _seed(row: Row) -> str:
    return "" if row.seed is None else f"  seed {row.seed}"


def _lowered(standing: Standing) -> bool:
    return any(row.entry.result.external for row in standing.rows)


def _flags(rows: Sequence[Row]) -> str:
    collapsed = sum(row.collapsed for row in rows)
    told = f"collapsed: {collapsed} of {len(rows)}" if len(rows) > 1 else "collapsed"
    found = cells.flags(rows)
    return "; ".join([told] * bool(collapsed) + [found] * (found != NONE)) or NONE


def _robustbench(board: Board) -> RenderableType:
    found = published.rows(board)
    rows = [
        (
            *(row.entry, row.architecture, row.venue, percent(row.clean)),
            percent(row.robust) + " unreliable" * row.unreliable,
            percent(row.external),
        )
        for row in found.rows
    ]
    head = ("entry", "network", "venue", "clean", "AutoAttack", "external")
    remark = published.remark(board) if rows else f"None: {found.reason}."
    title = f"Published by RobustBench, not verified here{_elsewhere(board)}"
    return _titled(title, head, rows, remark)


def _claims(board: Board) -> RenderableType:
    found = published.claims(board)
    stages = list(dict.fromkeys(stage for claim in found for stage in claim.values))
    rows = [
        (
            *(f"{claim.paper}, {claim.table}", claim.method, claim.backbone or NONE),
            *(percent(claim.values.get(stage)) for stage in stages),
        )
        for claim in found
    ]
    other = published.other_images(board)
    warning = f"This board has {other}: these rows were measured on other images." if other else ""
    remark = warning if rows else "None for this task."
    return _titled(
        f"What papers claim, not verified here{_elsewhere(board)}",
        ("where", "method", "network", *stages),
        rows,
        remark,
    )


def _elsewhere(board: Board) -> str:
    return "; measured on other images" if published.other_images(board) else ""


def _titled(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], remark: str
) -> RenderableType:
    from rich.text import Text

    if not rows:
        return Text(f"{title}\n{plain(remark)}")
    out = _table(head, rows)
    out.title, out.caption = Text(title, style="bold"), Text(plain(remark))
    return out


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    out.caption_justify = "left"
    for name in head:
        words = name in WORDS
        out.add_column(
            name, justify="left" if words else "right", overflow="fold", no_wrap=not words
        )
    for row in rows:
        out.add_row(*(Text(_indented(cell)) for cell in row))
    return out


def _indented(cell: str) -> str:
    return " " * (len(cell) - len(cell.lstrip(" "))) + plain(cell)
