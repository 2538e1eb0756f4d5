"""What stands in the cells of a board, as plain text: shared by the terminal and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from aal_bench.leaderboard.board import Board, Section
from aal_bench.leaderboard.paired import RULE
from aal_bench.leaderboard.standings import Row, Standing
from aal_bench.record import Result

NONE = "-"
"""What stands where there is nothing to say."""
RULES = (
    "Ranked by AutoAttack accuracy, or by the lower verified external value of an entry that has"
    " one: the mean over all seeds.",
    RULE,
    "A seed collapsed when its clean accuracy is at most twice chance, or its score below half of"
    " its best sibling's; it counts like any other. An unreliable entry is ranked and marked.",
)
"""How the boards rank, one sentence a line."""


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with two decimals."""
    return NONE if share is None else f"{100 * share:.2f}"


def spread(shares: Sequence[float]) -> str:
    """One share, or ``mean ± sample standard deviation`` of several, in percent."""
    if len(shares) == 1:
        return percent(shares[0])
    return f"{percent(fmean(shares))} ± {percent(stdev(shares))}"


def clean(row: Row) -> float:
    """Accuracy without attack, in [0, 1]."""
    assert row.entry.result.metrics is not None
    return row.entry.result.metrics.clean.value


def autoattack(row: Row) -> float:
    """Accuracy under AutoAttack, in [0, 1]; a row of a board has one."""
    metrics = row.entry.result.metrics
    assert metrics is not None
    assert metrics.autoattack is not None
    return metrics.autoattack.value


def external(standing: Standing) -> str:
    """The lower values of the seeds that have one, and the mean that ranks the standing."""
    values = [row.entry.result.external for row in standing.rows]
    if not any(values):
        return NONE
    each = ", ".join(value or NONE for value in values)
    return each if len(values) == 1 else f"{each}; ranked by {percent(standing.mean)}"


def interval(row: Row) -> str:
    """The 95 % interval of the row's score, in percent."""
    low, high = row.measure.ci95
    return f"[{percent(low)}, {percent(high)}]"


def seeds(standing: Standing) -> str:
    """All seeds, and how many of them collapsed."""
    numbers = [row.seed for row in standing.rows]
    listed = ", ".join(NONE if seed is None else f"{seed}" for seed in numbers)
    if not standing.collapsed:
        return listed
    return f"{listed}; collapsed: {standing.collapsed} of {len(numbers)}"


def flags(rows: Sequence[Row]) -> str:
    """Findings beyond mere notes, those that make an entry unreliable first."""
    found = [flag for row in rows for flag in row.entry.result.flags if flag.severity != "note"]
    found.sort(key=lambda flag: flag.severity != "unreliable")
    return ", ".join(dict.fromkeys(f"{flag.severity}: {flag.code}" for flag in found)) or NONE


def seconds(rows: Sequence[Row]) -> str:
    """Mean training time, and on what: seconds on different machines do not compare."""
    results = [row.entry.result for row in rows]
    times = [one.training.wall_seconds for one in results if one.training]
    if not times:
        return NONE
    machines = ", ".join(dict.fromkeys(device(one) for one in results if one.training))
    return f"{fmean(times):,.0f} s, {machines}"


def device(result: Result) -> str:
    """What the weights were trained on."""
    gpu = result.training.gpu if result.training else None
    return gpu or result.environment.cpu or "CPU"


def passes(result: Result) -> str:
    """Forward and backward passes of training, per image and epoch."""
    counted = result.training.passes if result.training else None
    return NONE if counted is None else f"{counted.forward:g} + {counted.backward:g}"


def data(result: Result) -> str:
    """The sources of training images; a role other than the training split is named."""
    sources = result.training.data if result.training else []
    return (
        ", ".join(
            f"{source.name} {source.count:,}" + (f" ({source.role})" * (source.role != "train"))
            for source in sources
        )
        or NONE
    )


def heading(board: Board) -> str:
    """Task, title and threat of a board; a title that names the threat is not told it again."""
    threat = f"{board.norm} {board.eps}"
    return f"{board.task}: {board.title}" + (f", {threat}" * (threat not in board.title))


def question(section: Section) -> str:
    """What all rows of a section answer: images, pixels, hash; one line."""
    pixels = section.pixels
    if section.official is not None:
        pixels = f"pixels {section.fingerprint[:8]}: {pixels}"
    doubt = {True: "", False: "; not the official bytes", None: "; perhaps not the official bytes"}
    return (
        f"{section.examples:,} test images, {section.eps}, task_hash {section.task_hash[:8]}; "
        f"{pixels}{doubt[section.official]}"
    )
