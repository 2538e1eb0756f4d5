"""What others published for a board's question: RobustBench's rows, the papers' claims. No torch.

Nothing of it was verified here, and it is never ranked with the entries.
"""

from __future__ import annotations

from typing import NamedTuple

from aal_bench.config import Task
from aal_bench.leaderboard import reported, robustbench
from aal_bench.leaderboard.board import Board
from aal_bench.leaderboard.reported import Claim
from aal_bench.leaderboard.robustbench import Row
from aal_bench.threat import Threat


class Published(NamedTuple):
    """RobustBench's rows for a board."""

    dataset: str | None
    """RobustBench's name of the data set; None: it has none for this task."""
    rows: list[Row]
    """Same data set, norm and exactly the same eps; best ``external`` or AutoAttack first."""
    reason: str
    """Why there are no rows; empty where there are."""


def rows(board: Board) -> Published:
    """RobustBench's rows for the board's data set, norm and eps."""
    found: list[Row] = []
    reasons: list[str] = []
    for task in _questions(board):
        near = robustbench.nearest(task, task.model, n=1 << 20)
        found += near.rows
        reasons += [near.reason] if near.reason else []
    dataset = board.task_file.paper.get("robustbench") if board.task_file else None
    if board.task_file is None:
        reasons = [f"there is no task file for {board.task}"]
    found.sort(key=lambda row: (-(row.robust if row.external is None else row.external), row.entry))
    return Published(dataset, found, "" if found else "; ".join(reasons))


def claims(board: Board) -> list[Claim]:
    """Every row that the papers print for the board's task, by paper and table."""
    found: list[Claim] = []
    for task in _questions(board):
        for method in reported.PRINTED:
            # Two names of ours may stand for one printed row.
            found += [
                claim for claim in reported.claims(task, method, task.model) if claim not in found
            ]
    return sorted(found, key=lambda claim: (claim.paper, claim.table))


def other_images(board: Board) -> str:
    """Why published rows were measured on other images than the board's; empty: on the same."""
    if board.task_file is not None and board.task_file.data.subset is not None:
        return f"{board.task_file.data.subset.count:,} images of the test set"
    known = [section.official for section in board.sections]
    if False in known:
        return "pixels that are not the official bytes"
    return "pixels that the task file does not know" if None in known else ""


def remark(board: Board) -> str:
    """What RobustBench's rows are, one or two sentences."""
    dataset = rows(board).dataset
    other = other_images(board)
    text = (
        f"As published for {dataset}, {board.norm} {board.eps}, on the whole test set; best known"
        " number first."
    )
    if not other:
        return text
    return f"{text} This board has {other}: these rows were measured on other images."


def _questions(board: Board) -> list[Task]:
    """The task under the threat of each section: an entry's eps need not be the task file's."""
    if board.task_file is None:
        return []
    return [
        board.task_file.model_copy(
            update={"threat": Threat.model_validate({"norm": board.norm, "eps": eps})}
        )
        for eps in dict.fromkeys([section.eps for section in board.sections] or [board.eps])
    ]
