"""The figure of a detection run's numbers: every stage's mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aal_bench.figures.canvas import COLOURS, blank, save

PARTS = {"total": "whole loss", "cls": "loss of the classes", "loc": "loss of the boxes"}


class Bar(NamedTuple):
    """The mean average precision of a stage, in [0, 1], and its interval."""

    stage: str
    part: str
    """Of the loss that was attacked, a key of `PARTS`; ``clean``: none."""
    value: float
    low: float
    high: float


def precisions(bars: Sequence[Bar], path: Path, metric: str, title: str = "") -> None:
    """Mean average precision of every stage with its interval, by the part of the loss attacked.

    Args:
        bars: in the order of the protocol.
        path: PNG to write.
        metric: the convention's name.
        title: printed above.
    """
    from matplotlib.lines import Line2D

    tints = {"clean": "0.25", **dict(zip(PARTS, COLOURS, strict=False))}
    ordered = [bar for part in tints for bar in bars if bar.part == part]
    figure = blank(7.6, 0.3 * len(ordered) + 1.7)
    axes = figure.subplots()
    place, before, places = 0.0, None, []
    for bar in ordered:
        place += 1.0 if before in (None, bar.part) else 1.5
        before = bar.part
        places.append(place)
        value, low, high = (100 * part for part in (bar.value, bar.low, bar.high))
        axes.errorbar(
            value,
            place,
            xerr=[[value - low], [high - value]],
            fmt="o",
            markersize=5,
            capsize=3,
            color=tints[bar.part],
        )
        axes.annotate(
            f"{value:.1f}",
            (high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    reach = max(100 * bar.high for bar in ordered)
    axes.set(
        yticks=places,
        yticklabels=[bar.stage for bar in ordered],
        ylim=(place + 0.7, 0.3),
        xlim=(0, min(108.0, max(5.0, 1.13 * reach))),
        xlabel=f"mAP (%), {metric}, with 95 % bootstrap intervals over images",
    )
    for label, bar in zip(axes.get_yticklabels(), ordered, strict=True):
        label.set_color(tints[bar.part])
    axes.grid(axis="x", alpha=0.3)
    parts = [part for part in PARTS if any(bar.part == part for bar in ordered)]
    if len(parts) > 1:
        handles = [
            Line2D([], [], color=tints[part], label=f"attack on the {PARTS[part]}")
            for part in parts
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path, title)
