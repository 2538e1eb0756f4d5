"""A comparison as text and as JSON. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aal_bench.evidence import Evidence
from aal_bench.grid import plain
from aal_bench.leaderboard.paired import ALPHA
from aal_bench.registry import AUTOATTACK, SEARCHED

if TYPE_CHECKING:
    from aal_bench.leaderboard.compare import Comparison, Line, Side
    from aal_bench.leaderboard.compare_detection import DetectionSide
    from aal_bench.leaderboard.protocol import Difference

SHOWN = 20
"""At most so many indices in the text; the JSON has all."""
NAMES = {
    "autoattack": "AutoAttack",
    "external": "everything that ranks them, challenges and fresh attacks included",
    "robust": "all attacks that both have, which are not full AutoAttack",
}


def sentence(found: Comparison) -> str:
    """The verdict in one line."""
    pair = found.line(found.basis).pair
    told = f"{pair.only_a} images only A, {pair.only_b} only B, p = {pair.p:.2g}"
    who = "a tie" if pair.winner == "tie" else f"{pair.winner} is better"
    return f"{who}: {told} (under {NAMES[found.basis]})"


def text(found: Comparison) -> str:
    """For a terminal; no line break at the end."""
    head = [f"{name}  {title(one)}" for name, one in (("A", found.a), ("B", found.b))]
    parts = [
        "\n".join(head),
        differing(found.differing),
        columns([("", "A", "B", "only A", "only B", "p", "better"), *map(_cells, found.lines)]),
        _indices(found),
        sentence(found),
    ]
    return "\n\n".join(parts)


def tree(found: Comparison) -> dict[str, Any]:
    """As JSON; shares are fractions in [0, 1].

    `indices` are positions in the test split, of images on which only one side stands under the
    verdict that decides (`basis`).
    """
    deciding = found.line(found.basis)
    return {
        "a": side(found.a),
        "b": side(found.b),
        "task_hash": found.a.result.task.hash,
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
        "robust_over": [] if found.basis == "external" else found.stages,
        "indices": {"only_a": deciding.only_a, "only_b": deciding.only_b},
        "alpha": ALPHA,
        "basis": found.basis,
        "better": found.winner,
        "sentence": sentence(found),
    }


def title(one: Side | DetectionSide) -> str:
    """What a side is: its name, its question and where it lies, one line."""
    result, (kind, count) = one.result, _units(one)
    units = f"{count:,} {kind}" if kind == "episodes" else f"{count} {kind}"
    question = f"{result.task.id}, {result.threat.norm} {result.eps}, {units}"
    return plain(f"{result.submission_id}  ({question}; {one.path})")


def differing(fields: Sequence[Difference]) -> str:
    """The fields in which the two differ, as a table."""
    if not fields:
        return "no protocol field differs"
    return columns([("field", "A", "B"), *((field.name, field.a, field.b) for field in fields)])


def side(one: Side | DetectionSide) -> dict[str, Any]:
    """A side as JSON."""
    result, (kind, count) = one.result, _units(one)
    return {
        "submission_id": result.submission_id,
        "path": str(one.path),
        "run_hash": result.run_hash,
        kind: count,
        "external": result.external,
    }


def _units(one: Side | DetectionSide) -> tuple[str, int]:
    """What a side's numbers are about, and how many: episodes or images."""
    evidence = one.evidence
    if isinstance(evidence, Evidence) and evidence.episodes:
        return "episodes", evidence.episodes
    return "images", len(evidence)


def _cells(line: Line) -> tuple[str, ...]:
    shares = (f"{100 * share:.2f} %" for share in (line.a, line.b))
    pair = line.pair
    return (
        plain(line.verdict) + " (cumulative)" * (line.verdict in (*AUTOATTACK, *SEARCHED)),
        *shares,
        f"{pair.only_a}",
        f"{pair.only_b}",
        f"{pair.p:.2g}",
        pair.winner,
    )


def _indices(found: Comparison) -> str:
    """The images behind the sentence: those of the verdict that decides."""
    deciding = found.line(found.basis)
    rows = [f"robust: correct without attack and under {NAMES[found.basis]}"]
    if found.basis == "robust":
        rows[0] += f": {', '.join(map(plain, found.stages))}"
    for name, indices in (("A", deciding.only_a), ("B", deciding.only_b)):
        listed = ", ".join(map(str, indices[:SHOWN])) or "none"
        more = f", and {len(indices) - SHOWN} more (--json)" if len(indices) > SHOWN else ""
        rows.append(f"only {name} robust: {listed}{more}")
    return "\n".join(rows)


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a table of aligned columns."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in listed
    )
