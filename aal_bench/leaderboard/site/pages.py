"""What each kind of page is told: the variables of the templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from aal_bench.attacks.parameters import EPISODE_PARTITION, PARTITION
from aal_bench.leaderboard import published
from aal_bench.leaderboard.board import Board, Row, Section, Standing
from aal_bench.leaderboard.extend import stood
from aal_bench.leaderboard.site import names, show
from aal_bench.leaderboard.site.levels import LEVELS
from aal_bench.leaderboard.site.plots import plots
from aal_bench.record import Result, percent
from aal_bench.schema import Event

SURVIVORS = (PARTITION[True], EPISODE_PARTITION[True])
"""Partitions of a stage that attacks only what the ones before left standing."""


class Page(NamedTuple):
    """One page before it is rendered."""

    path: str
    """Relative to the site's folder, with ``/``."""
    template: str
    context: dict[str, Any]


def pages(boards: Sequence[Board]) -> Iterator[Page]:
    """Every page of the site: the index, one for each board, one for each entry."""
    common = {"levels": LEVELS, "boards": boards}
    yield Page(names.INDEX, "index.html.j2", common | {"root": ""})
    for board in boards:
        context = common | {"root": "", "board": board, **_board(board)}
        yield Page(names.board_file(board), "board.html.j2", context)
        for section in board.sections:
            for standing in section.standings:
                for row in standing.rows:
                    context = common | _entry(board, section, standing, row) | {"root": "../"}
                    yield Page(names.entry_file(board, row), "entry.html.j2", context)


def _board(board: Board) -> dict[str, Any]:
    rows, claims = published.rows(board).rows, published.claims(board)
    subset = board.task_file.data.subset if board.task_file else None
    return {
        "sections": [(one, plots(board, one, rows)) for one in board.sections],
        "published": rows,
        "subset": subset.count if subset else None,
        "claims": claims,
        "claim_notes": list(dict.fromkeys(note for one in claims for note in one.notes)),
        "claim_stages": list(dict.fromkeys(name for one in claims for name in one.values)),
    }


def _entry(board: Board, section: Section, standing: Standing, row: Row) -> dict[str, Any]:
    result = row.entry.result
    return {
        "board": board,
        "section": section,
        "standing": standing,
        "row": row,
        "result": result,
        "stages": _stages(result),
        "lowered": _lowered(result),
        "history": history(result),
        "commands": _commands(result),
        "environment": _environment(result),
        "hashes": _hashes(result),
        "place": f"leaderboards/{board.task}/{board.norm}/{row.id}",
    }


def _stages(result: Result) -> list[dict[str, Any]]:
    """Each stage's record with the share that stands after it and how that share is counted."""
    measures = result.metrics.stages if result.metrics else {}
    clean = result.metrics.clean if result.metrics else None
    return [
        {
            "record": stage,
            "measure": clean if stage.attack == "clean" else measures.get(stage.attack),
            "cumulative": stage.partition in SURVIVORS,
            "params": list(show.flat(stage.params)),
        }
        for stage in result.evaluation
    ]


def _lowered(result: Result) -> bool:
    """Whether an image fell in somebody's challenge, whatever the entry's level."""
    return any(
        stage.attack.startswith("challenge-") and stood(stage) < stage.n_in
        for stage in result.evaluation
    )


def history(result: Result) -> list[tuple[Event, str]]:
    """Each event with the numbers that the entry had before it, in percent; empty: none."""
    metrics = result.metrics
    autoattack = percent(metrics.autoattack.value) if metrics and metrics.autoattack else None
    told: list[tuple[Event, str]] = []
    # From the last backwards: before a replacement the entry held another run's value.
    for event in reversed(result.verification.history):
        autoattack = event.autoattack_acc or autoattack
        first = event.event in {"challenged", "reattacked"} and event.external is None
        shown = autoattack if first else event.autoattack_acc
        values = (("AutoAttack", shown), ("external", event.external))
        told.append((event, " ".join(f"{name} {value} %" for name, value in values if value)))
    return told[::-1]


def _commands(result: Result) -> str | None:
    """What repeats the run in a shell; None where pasting it could do harm."""
    commit = result.environment.aal_bench.commit
    checkout = [["git", "checkout", commit]] if commit else []
    # Nothing is there to resume where the run is repeated.
    run = [word for word in result.command if word != "--resume"]
    lines = [show.command(argv) for argv in (*checkout, run)]
    return None if None in lines else "\n".join(line for line in lines if line)


def _environment(result: Result) -> list[tuple[str, str]]:
    tree = result.environment.model_dump(mode="json", exclude={"packages", "gpu_count"})
    return [(key, text) for key, text in show.flat(tree) if text != show.NONE]


def _hashes(result: Result) -> list[tuple[str, str, str]]:
    """(name, value, what it covers)."""
    evidence, training, model = result.evidence, result.training, result.model
    adversarials, checkpoint = result.adversarials, model.checkpoint
    rows = [
        ("task_hash", result.task.hash, "the question: task file and test images"),
        ("config_hash", training and training.config_hash, "the training's configuration"),
        ("run_hash", result.run_hash, "everything that may change a number"),
        ("weights", checkpoint and checkpoint.sha256, "the evaluated checkpoint"),
        ("evidence", evidence and evidence.sha256, "the table of verdicts, image by image"),
        ("adversarials", adversarials and adversarials.sha256, "the stored adversarials"),
        ("seal", result.seal, "the record itself"),
    ]
    pixels = evidence.dataset_fingerprint if evidence else {}
    rows += [(f"test {name}", pixels.get(name), "as fed") for name in ("pixels", "labels")]
    return [(name, value, covers) for name, value, covers in rows if value]
