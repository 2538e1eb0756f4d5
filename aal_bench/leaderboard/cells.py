"""What stands in the cells of a board, as plain text: shared by the terminal and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal

from aal_bench import record
from aal_bench.leaderboard import paired_episodes
from aal_bench.leaderboard.board import Board, Section
from aal_bench.leaderboard.paired import RULE
from aal_bench.leaderboard.standings import Row, Standing
from aal_bench.record import Result

NONE = "-"
"""What stands where there is nothing to say."""
RULES = (
    "Ranked by AutoAttack accuracy, or by the lower external value of an entry that has"
    " one: the mean over all seeds.",
    "A row with an external value is the AND of everything that was tried on it; a neighbour that"
    " nobody tried has AutoAttack alone: compare their levels too.",
    "Seeds of one configuration have equal method, network, configuration, title and authors;"
    " anything else is a row of its own.",
    RULE,
    "A seed collapsed when its clean accuracy is at most twice chance, or its score below half of"
    " its best sibling's; it counts like any other. An unreliable entry is ranked and marked.",
)
"""How the boards rank, one sentence a line."""
FEWSHOT_RULES = (
    "Few-shot boards are ranked by clean accuracy, as the papers' tables are: the mean over all"
    " seeds of the mean over episodes. Accuracy under attack is shown where it was measured, and"
    " ranks nothing.",
    f"Few-shot: {paired_episodes.RULE[0].lower()}{paired_episodes.RULE[1:]}",
    "A few-shot seed collapsed when the 95 % interval of its clean accuracy reaches chance, or its"
    " score is below half of its best sibling's.",
)
"""The same of few-shot boards."""
_SHARED = RULES[2]
PASSES = (
    "Passes: forward + backward through the network, per training image and epoch; “all epochs” is"
    " their sum times the epochs. They do not depend on the machine. Seconds do, and on what else"
    " ran there."
)
"""What the columns of cost count."""


def rules(boards: Sequence[Board]) -> tuple[str, ...]:
    """How these boards rank, one sentence a line."""
    fewshot = [board.fewshot for board in boards]
    if not any(fewshot):
        return RULES
    return (*FEWSHOT_RULES, _SHARED) if all(fewshot) else (*RULES, *FEWSHOT_RULES)


def percent(share: float | None, none: str = NONE) -> str:
    """A share in [0, 1] as a percentage with two decimals; `none` where there is no share."""
    return none if share is None else record.percent(share)


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


def attacked(rows: Sequence[Row], name: Literal["autoattack", "robust"]) -> str:
    """Few-shot accuracies under attack of the seeds that have one."""
    measures = [getattr(row.entry.result.metrics, name) for row in rows]
    shares = [measure.value for measure in measures if measure is not None]
    if not shares:
        return NONE
    told = f" ({len(shares)} of {len(rows)} seeds)" if len(shares) < len(rows) else ""
    return spread(shares) + told


def external(standing: Standing) -> str:
    """The lower values of the seeds that have one, and the mean that ranks the standing."""
    values = [row.entry.result.external for row in standing.rows]
    if not any(values):
        return NONE
    each = ", ".join(value or NONE for value in values)
    return each if len(values) == 1 else f"{each}; ranked by {percent(standing.mean)}"


def interval(bounds: Sequence[float]) -> str:
    """Two shares as an interval in percent: ``[17.98, 26.50]``."""
    return f"[{percent(bounds[0])}, {percent(bounds[1])}]"


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


def passes_in_all(result: Result) -> float | None:
    """Forward and backward passes per training image over all epochs; None: not counted."""
    training = result.training
    if training is None or training.passes is None or training.epochs is None:
        return None
    return (training.passes.forward + training.passes.backward) * training.epochs


def count(value: float | None, none: str = NONE) -> str:
    """A count with thousands separated; means with one decimal: ``7,856``, ``848.1``."""
    if value is None:
        return none
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


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
    """What all rows of a section answer: images or episodes, pixels, hash; one line."""
    pixels = section.pixels
    if section.official is not None:
        pixels = f"pixels {section.fingerprint[:8]}: {pixels}"
    doubt = {True: "", False: "; not the official bytes", None: "; perhaps not the official bytes"}
    return (
        f"{units(section)}, {section.eps}, task_hash {section.task_hash[:8]}; "
        f"{pixels}{doubt[section.official]}"
    )


def units(section: Section) -> str:
    """What is answered, and by what few-shot boards rank: ``360 test images``."""
    asked = section.episodes
    if asked is None:
        return f"{section.examples:,} test images"
    return (
        f"{section.examples:,} {asked.ways}-way {asked.shots}-shot episodes of"
        f" {asked.ways * asked.queries} queries, ranked by clean accuracy"
    )
