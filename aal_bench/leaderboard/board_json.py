"""The boards as one machine-readable tree: the same entries give the same bytes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aal_bench.leaderboard import published
from aal_bench.leaderboard.board import Board, Section
from aal_bench.leaderboard.cells import PASSES, passes_in_all, rules
from aal_bench.leaderboard.standings import Row, Standing

SCHEMA_VERSION = "1.0"
"""A change of the first number makes older readers fail."""


def tree(
    boards: Sequence[Board], robustbench: bool = False, reported: bool = False
) -> dict[str, Any]:
    """The boards as JSON; shares are fractions in [0, 1], paths relative to the boards' root.

    Args:
        boards: as `board.boards` gives them.
        robustbench: with ``robustbench``: RobustBench's rows for the same data set, norm and eps.
        reported: with ``reported``: the papers' claims for the task.
    """
    listed = []
    for board in boards:
        one: dict[str, Any] = {
            "task": board.task,
            "title": board.title,
            "norm": board.norm,
            "eps": board.eps,
            "sections": [_section(board, section) for section in board.sections],
        }
        if robustbench:
            one["robustbench"] = _robustbench(board)
        if reported:
            one["reported"] = [claim._asdict() for claim in published.claims(board)]
        listed.append(one)
    return {"schema_version": SCHEMA_VERSION, "rules": [*rules(boards), PASSES], "boards": listed}


def _section(board: Board, section: Section) -> dict[str, Any]:
    asked = section.episodes
    return {
        "task_hash": section.task_hash,
        "eps": section.eps,
        "examples": section.examples,
        **({} if asked is None else {"episodes": asked.model_dump(mode="json")}),
        "fingerprint": section.fingerprint,
        "pixels": section.pixels,
        "official": section.official,
        "standings": [_standing(board, standing) for standing in section.standings],
    }


def _standing(board: Board, standing: Standing) -> dict[str, Any]:
    first = standing.first
    return {
        "rank": standing.rank,
        "tied": standing.tied,
        "method": first.training.method if first.training else None,
        "config_hash": first.training.config_hash if first.training else None,
        "model": first.model.name,
        "architecture": first.model.architecture,
        "mean": standing.mean,
        "spread": standing.spread,
        "seeds": len(standing.rows),
        "collapsed": standing.collapsed,
        "unreliable": standing.unreliable,
        "level": standing.level,
        "rows": [_row(board, row) for row in standing.rows],
    }


def _row(board: Board, row: Row) -> dict[str, Any]:
    result = row.entry.result
    metrics = result.metrics
    assert metrics is not None  # the board refused the entry otherwise
    shares = metrics.model_dump(mode="json")
    return {
        "submission_id": row.id,
        "path": f"{board.task}/{board.norm}/{row.entry.path.name}",
        "name": result.name,
        "authors": result.authors,
        "venue": result.venue,
        "link": result.link,
        "footnote": result.footnote,
        "protocol": result.protocol,
        "seed": row.seed,
        "score": row.score,
        "ci95": list(row.measure.ci95),
        "collapsed": row.collapsed,
        "external": result.external,
        "reported": result.reported,
        **{key: shares.get(key) for key in ("clean", "autoattack", "robust", "stages")},
        **({"episodes": shares["episodes"]} if "episodes" in shares else {}),
        "level": result.verification.level,
        "unreliable": result.unreliable,
        "flags": [flag.model_dump(mode="json") for flag in result.flags],
        "hashes": _hashes(row),
        "parameters": result.model.parameters,
        "macs": result.model.macs,
        "forward_passes": result.model.forward_passes,
        "additional_data": result.additional_data,
        "training": _training(row),
    }


def _hashes(row: Row) -> dict[str, str | None]:
    result = row.entry.result
    checkpoint, evidence = result.model.checkpoint, result.evidence
    return {
        "run": result.run_hash,
        "checkpoint": checkpoint.sha256 if checkpoint else None,
        "evidence": evidence.sha256 if evidence else None,
        "seal": result.seal,
    }


def _training(row: Row) -> dict[str, Any] | None:
    training = row.entry.result.training
    if training is None:
        return None
    kept = {"wall_seconds", "gpu", "gpu_count", "peak_memory_bytes", "epochs", "steps"}
    tree = training.model_dump(mode="json", include=kept | {"passes", "data", "selection"})
    result = row.entry.result
    return tree | {"cpu": result.environment.cpu, "passes_all_epochs": passes_in_all(result)}


def _robustbench(board: Board) -> dict[str, Any]:
    found = published.rows(board)
    return {
        "dataset": found.dataset,
        "remark": published.remark(board) if found.rows else found.reason,
        "same_images": bool(found.rows) and not published.other_images(board),
        "rows": [row._asdict() for row in found.rows],
    }
