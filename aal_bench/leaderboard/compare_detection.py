"""Two detection results of one question, on the same draws of images; text and JSON. No torch.

A mean average precision has no closed test: the difference is bootstrapped over images, and what
its 95 % interval does not set apart from 0 is a tie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from aal_bench.config import Convention
from aal_bench.detection_evidence import DetectionEvidence, same_images
from aal_bench.detection_metrics import SAMPLES, SEED, Estimate, means
from aal_bench.detection_metrics import differences as paired
from aal_bench.errors import UserError
from aal_bench.grid import plain
from aal_bench.leaderboard.compare_view import columns, differing, side, title
from aal_bench.leaderboard.conventions import CONVENTIONS
from aal_bench.leaderboard.protocol import Difference, differences
from aal_bench.progress import track
from aal_bench.record import Result

HEAD = ("", "mAP", "A", "B", "A - B", "95 % interval", "better")
BASIS = "clean"
"""The stage that decides: the paper's claim is about clean images."""
LEAST = 6
"""Fewest images that decide: five, all in favour of one side, are chance once in sixteen times."""


class DetectionSide(NamedTuple):
    """One of the two results."""

    path: Path
    """Of its record."""
    result: Result
    evidence: DetectionEvidence


class PrecisionLine(NamedTuple):
    """One mean average precision in which both are compared."""

    verdict: str
    """``clean``, or a stage that both have."""
    convention: Convention
    a: float
    """Mean average precision of A, in [0, 1]."""
    b: float
    difference: float
    """A - B."""
    ci95: tuple[float, float] | None
    """Its percentile bootstrap over images; None: they are fewer than `LEAST`."""

    @property
    def winner(self) -> Literal["A", "B", "tie"]:
        """The one whose lead the interval sets apart from 0."""
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1]:
            return "tie"
        return "A" if self.difference > 0 else "B"


class DetectionComparison(NamedTuple):
    """What `compare` found of two detection results."""

    a: DetectionSide
    b: DetectionSide
    differing: list[Difference]
    """Protocol fields in which they differ."""
    lines: list[PrecisionLine]
    """Every stage in the headline's convention, then every stage in the next."""
    basis: Convention
    """The headline's convention: in it the clean images decide."""

    def line(self, verdict: str, convention: Convention | None = None) -> PrecisionLine:
        """The line of a stage; `convention` None: in the headline's."""
        wanted = (verdict, convention or self.basis)
        return next(line for line in self.lines if (line.verdict, line.convention) == wanted)

    @property
    def winner(self) -> Literal["A", "B", "tie"]:
        """Who is better on clean images."""
        return self.line(BASIS).winner


def compare(a: DetectionSide, b: DetectionSide) -> DetectionComparison:
    """Compare two results of one task_hash: seconds a stage for thousands of images.

    Raises:
        UserError: other images, objects or classes, no convention in common, or a missing row.
    """
    if not same_images(a.evidence, b.evidence):
        raise UserError(
            f"{a.path} and {b.path}: their evidence is of different images, objects or classes,"
            " although their task_hash is equal"
        )
    stages = ["clean", *(stage for stage in a.evidence.stages if stage in b.evidence.stages)]
    found: dict[str, dict[Convention, PrecisionLine]] = {}
    with track("compare", len(stages)) as progress:
        for stage in stages:
            found[stage] = _lines(stage, a, b)
            progress.advance()
    conventions = list(found[BASIS])
    lines = [found[stage][convention] for convention in conventions for stage in stages]
    return DetectionComparison(a, b, differences(a.result, b.result), lines, conventions[0])


def _lines(stage: str, a: DetectionSide, b: DetectionSide) -> dict[Convention, PrecisionLine]:
    try:
        estimates = paired(a.evidence, b.evidence, stage)
        one, other = (means(of.evidence, stage) for of in (a, b))
    except UserError as error:
        raise UserError(f"{a.path} or {b.path}: {error}") from None
    return {
        convention: PrecisionLine(
            stage,
            convention,
            one[convention],
            other[convention],
            estimate.value,
            _interval(estimate, len(a.evidence)),
        )
        for convention, estimate in estimates.items()
    }


def _interval(found: Estimate, images: int) -> tuple[float, float] | None:
    return (found.low, found.high) if images >= LEAST else None


def sentence(found: DetectionComparison) -> str:
    """The verdict in one line."""
    deciding, images = found.line(BASIS), len(found.a.evidence)
    who = "a tie" if deciding.winner == "tie" else f"{deciding.winner} is better"
    interval = f" {_bounds(deciding)}"
    if deciding.ci95 is None:
        who, interval = f"undecided with fewer than {LEAST} images", ""
    points = _points(deciding.difference)
    return f"{who}: {points} points{interval} of clean mAP ({found.basis}) over {images:,} images"


def text(found: DetectionComparison) -> str:
    """For a terminal; no line break at the end."""
    head = [f"{name}  {title(one)}" for name, one in (("A", found.a), ("B", found.b))]
    measured = [line for line in found.lines if line.verdict == BASIS]
    told = [f"{line.convention}: {CONVENTIONS[line.convention]}" for line in measured]
    told.append(f"interval: of A - B in points, {SAMPLES:,} draws of the images, the same for both")
    parts = [
        "\n".join(head),
        differing(found.differing),
        columns([HEAD, *map(_cells, found.lines)]),
        "\n".join(told),
        sentence(found),
    ]
    return "\n\n".join(parts)


def tree(found: DetectionComparison) -> dict[str, Any]:
    """As JSON; precisions and differences are fractions."""
    return {
        "a": side(found.a),
        "b": side(found.b),
        "task_hash": found.a.result.task.hash,
        "images": len(found.a.evidence),
        "differing": [field._asdict() for field in found.differing],
        "lines": [{**line._asdict(), "better": line.winner} for line in found.lines],
        "samples": SAMPLES,
        "seed": SEED,
        "basis": {"verdict": BASIS, "convention": found.basis},
        "better": found.winner,
        "sentence": sentence(found),
    }


def _cells(line: PrecisionLine) -> tuple[str, ...]:
    return (
        plain(line.verdict),
        line.convention,
        *(f"{100 * share:.2f} %" for share in (line.a, line.b)),
        _points(line.difference),
        _bounds(line),
        line.winner if line.ci95 is not None else "-",
    )


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _bounds(line: PrecisionLine) -> str:
    return "-" if line.ci95 is None else f"[{', '.join(map(_points, line.ci95))}]"
