"""Two few-shot results of one question, paired episode by episode; as text and as JSON. No torch.

Episodes are the units: queries of one episode share its support set, and do not vote alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aal_bench.errors import UserError
from aal_bench.grid import plain
from aal_bench.leaderboard.compare_view import columns, differing, side, title
from aal_bench.leaderboard.paired import ALPHA
from aal_bench.leaderboard.paired_episodes import EpisodePair, pair
from aal_bench.leaderboard.protocol import Difference, differences
from aal_bench.registry import AUTOATTACK
from aal_bench.student import mean

if TYPE_CHECKING:
    from aal_bench.leaderboard.compare import Side

HEAD = ("", "A", "B", "A - B", "95 % interval", "p", "better")
BASIS = "clean"
"""The verdict that decides: few-shot boards rank by it."""


class EpisodeLine(NamedTuple):
    """One verdict on which both are compared."""

    verdict: str
    """``clean``, a stage that both have, ``autoattack``, ``robust``."""
    a: float
    """Mean accuracy of A over the episodes, in [0, 1]."""
    b: float
    pair: EpisodePair


class EpisodeComparison(NamedTuple):
    """What `compare` found of two few-shot results."""

    a: Side
    b: Side
    differing: list[Difference]
    """Protocol fields in which they differ."""
    lines: list[EpisodeLine]
    stages: list[str]
    """The attacks that both have: ``robust`` is the AND of these, and has no line without them."""

    def line(self, verdict: str) -> EpisodeLine:
        """The line of one verdict."""
        return next(line for line in self.lines if line.verdict == verdict)

    @property
    def winner(self) -> Literal["A", "B", "tie"]:
        """Who is significantly better on clean queries."""
        return self.line(BASIS).pair.winner


def compare(a: Side, b: Side) -> EpisodeComparison:
    """Compare two results that are known to answer the same episodes.

    Raises:
        UserError: a row of a stage is missing.
    """
    common = [stage for stage in a.evidence.stages if stage in b.evidence.stages]
    verdicts: list[tuple[str, Sequence[str]]] = [("clean", ())]
    verdicts += [(stage, (stage,)) for stage in common]
    if set(AUTOATTACK) <= set(common):
        verdicts.append(("autoattack", AUTOATTACK))
    if common:
        verdicts.append(("robust", common))
    lines = [_line(verdict, a, b, stages) for verdict, stages in verdicts]
    return EpisodeComparison(a, b, differences(a.result, b.result), lines, common)


def _line(verdict: str, a: Side, b: Side, stages: Sequence[str]) -> EpisodeLine:
    try:
        one, other = (of.evidence.hits(of.evidence.robust(stages)) for of in (a, b))
    except UserError as error:
        raise UserError(f"{a.path} or {b.path}: {error}") from None
    queries = len(a.evidence) // a.evidence.episodes
    means = [mean(hits, queries).value for hits in (one, other)]
    return EpisodeLine(verdict, means[0], means[1], pair(one, other, queries))


def sentence(found: EpisodeComparison) -> str:
    """The verdict in one line."""
    deciding = found.line(BASIS).pair
    who = "a tie" if deciding.winner == "tie" else f"{deciding.winner} is better"
    return (
        f"{who}: {_points(deciding.difference)} points {_interval(deciding)} over"
        f" {found.a.evidence.episodes:,} episodes, p = {deciding.p:.2g} (without attack)"
    )


def text(found: EpisodeComparison) -> str:
    """For a terminal; no line break at the end."""
    head = [f"{name}  {title(one)}" for name, one in (("A", found.a), ("B", found.b))]
    told = ["A - B: mean over episodes of the difference in accuracy, in points"]
    if found.stages:
        attacks = ", ".join(map(plain, found.stages))
        told.append(f"robust: correct without attack and under all that both have: {attacks}")
    parts = [
        "\n".join(head),
        differing(found.differing),
        columns([HEAD, *map(_cells, found.lines)]),
        "\n".join(told),
        sentence(found),
    ]
    return "\n\n".join(parts)


def tree(found: EpisodeComparison) -> dict[str, Any]:
    """As JSON; shares and differences are fractions."""
    return {
        "a": side(found.a),
        "b": side(found.b),
        "task_hash": found.a.result.task.hash,
        "episodes": found.a.evidence.episodes,
        "queries": len(found.a.evidence) // found.a.evidence.episodes,
        "differing": [field._asdict() for field in found.differing],
        "lines": [
            {
                "verdict": line.verdict,
                "a": line.a,
                "b": line.b,
                **line.pair._asdict(),
                "better": line.pair.winner,
            }
            for line in found.lines
        ],
        "robust_over": found.stages,
        "alpha": ALPHA,
        "basis": BASIS,
        "better": found.winner,
        "sentence": sentence(found),
    }


def _cells(line: EpisodeLine) -> tuple[str, ...]:
    return (
        plain(line.verdict) + " (cumulative)" * (line.verdict in AUTOATTACK),
        *(f"{100 * share:.2f} %" for share in (line.a, line.b)),
        _points(line.pair.difference),
        _interval(line.pair),
        f"{line.pair.p:.2g}",
        line.pair.winner,
    )


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _interval(found: EpisodePair) -> str:
    return f"[{', '.join(map(_points, found.ci95))}]"
