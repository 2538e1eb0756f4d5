"""What every figure is drawn on, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aal_bench.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""


def blank(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, without global state or a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, title: str) -> None:
    """Write a PNG, whole or not at all; equal data give equal bytes."""
    if title:
        figure.suptitle(title, fontsize=12)
    with replacing(path) as handle:
        # Without the software's version in it, equal data give equal bytes.
        figure.savefig(handle, format="png", dpi=150, metadata={"Software": None})
