"""The figures of an audit: accuracy against eps and steps, the loss around images, all attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aal_bench.figures import Curve
from aal_bench.figures.canvas import COLOURS, blank, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255)
"""Budgets written below the axis of eps, in 1/255."""
LEVELS = 12
"""Contour lines of a loss surface, about."""


class Surface(NamedTuple):
    """The loss around one image, on a square grid that is centred on it."""

    loss: ArrayLike
    """(G, G): rows along the second direction, columns along the first."""
    margin: ArrayLike
    """(G, G): the largest other logit less that of the class; positive where the model is wrong."""
    told: str
    """Which image, and what became of it."""


def accuracy_over_eps(
    eps: Sequence[float],
    curve: Curve,
    path: Path,
    eps_threat: float,
    chance: float,
    attack: str,
    title: str = "",
) -> None:
    """Accuracy from eps 0 to the largest, on an axis that is logarithmic from 1/255 on.

    Args:
        eps: budgets in pixel units, ascending.
        curve: accuracies in [0, 1] there, with their intervals.
        path: PNG to write.
        eps_threat: the task's budget, in pixel units.
        chance: accuracy of guessing.
        attack: its name, for the legend.
        title: printed above.

    Raises:
        ValueError: the curve's length is not that of `eps`.
    """
    budget = 255 * np.asarray(eps, np.float64)
    if len(curve.value) != len(budget):
        raise ValueError(f"{attack}: {len(curve.value)} accuracies for {len(budget)} budgets")
    figure = blank(6.8, 4.2)
    axes = figure.subplots()
    _banded(axes, budget, curve, COLOURS[0], attack, marker="o")
    axes.axhline(100 * chance, color="0.5", linestyle=":", label=f"chance {100 * chance:.3g} %")
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.set(
        xlabel="eps (in 1/255; logarithmic from 1 on)",
        ylabel="accuracy (%)",
        xlim=(0, budget.max()),
        ylim=(-2, 102),
    )
    _mark(axes, 255 * eps_threat, f"task: {255 * eps_threat:g}/255")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9, framealpha=0.9)
    save(figure, path, title)


def accuracy_over_steps(
    starts: ArrayLike,
    curves: Mapping[str, Curve],
    path: Path,
    marked: Mapping[int, str],
    title: str = "",
) -> None:
    """Accuracy at every iterate of PGD: whether more steps or more starts would break more.

    Args:
        starts: (R, S+1) accuracies in [0, 1] at iterates 0 to S, one row for each random start.
        curves: name -> accuracies at the same iterates, with their intervals.
        path: PNG to write.
        marked: number of steps -> what it is, drawn as lines.
        title: printed above.
    """
    rows = 100 * np.asarray(starts, np.float64)
    steps = np.arange(rows.shape[1])
    figure = blank(6.8, 4.2)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        label = "cross-entropy, each start" if place == 0 else None
        axes.plot(steps, row, color=COLOURS[0], linewidth=0.8, alpha=0.6, label=label)
    for place, (name, curve) in enumerate(curves.items()):
        _banded(axes, steps, curve, COLOURS[place % len(COLOURS)], name)
    axes.set(
        xlabel="PGD steps (0: the random start)",
        ylabel="accuracy (%)",
        xlim=(0, max(1, len(steps) - 1)),
        ylim=(-2, 102),
    )
    for step, told in sorted(marked.items()):
        if step < len(steps):
            _mark(axes, step, told)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9, framealpha=0.9, title="bands: 95 % intervals")
    save(figure, path, title)


def loss_surfaces(
    surfaces: Sequence[Surface], path: Path, span: float, eps: float, title: str = ""
) -> None:
    """The loss in the plane of the gradient's sign and a random sign vector, image by image.

    Colours and thin lines: the loss, each image on a scale of its own. Thick line: where the
    prediction changes. Square: the eps ball; cross: the image.

    Args:
        surfaces: one for each panel.
        path: PNG to write.
        span: half the side of a grid, in pixel units.
        eps: the task's budget, in pixel units.
        title: printed above.

    Raises:
        ValueError: nothing to draw.
    """
    if not surfaces:
        raise ValueError("no loss surface to draw")
    from matplotlib.lines import Line2D

    columns = min(2, len(surfaces))
    rows = -(-len(surfaces) // columns)
    figure = blank(4.3 * columns + 0.3, 3.5 * rows + 1.0)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in list(grid.flat)[len(surfaces) :]:
        axes.set_axis_off()
    for axes, surface in zip(grid.flat, surfaces, strict=False):
        _surface(axes, surface, 255 * span, 255 * eps)
    legend = [
        Line2D([], [], color=COLOURS[1], linewidth=2.2, label="the prediction changes"),
        Line2D([], [], color="white", marker="x", markeredgecolor="black", label="the image"),
        Line2D([], [], color="black", linestyle="--", label=f"eps = {255 * eps:g}/255"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path, title)


def attack_bars(
    attacks: Mapping[str, float],
    whole: Mapping[str, float],
    path: Path,
    diagnostic: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Accuracy under each adaptive attack, beside the accuracies that all of them leave together.

    Args:
        attacks: name -> accuracy in [0, 1] under it alone.
        whole: name -> accuracy that is about all images and attacks, drawn first; the last of
            them is drawn across as a line.
        path: PNG to write.
        diagnostic: attacks that are no measure of robustness, drawn hatched.
        title: printed above.
    """
    bars = [
        *((name, share, COLOURS[0], None) for name, share in whole.items()),
        *((name, share, COLOURS[5], None) for name, share in attacks.items()),
        *((name, share, "0.85", "///") for name, share in (diagnostic or {}).items()),
    ]
    figure = blank(7.6, 0.24 * len(bars) + 1.5)
    axes = figure.subplots()
    for place, (_, share, colour, hatch) in enumerate(bars):
        axes.barh(place, 100 * share, 0.75, color=colour, hatch=hatch, edgecolor="0.3", lw=0.4)
        axes.annotate(
            f"{100 * share:.1f}",
            (100 * share, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    worst = 100 * list(whole.values())[-1]
    axes.axvline(worst, color=COLOURS[1], linestyle="--", linewidth=1.2)
    axes.set(
        yticks=range(len(bars)),
        yticklabels=[name for name, *_ in bars],
        ylim=(len(bars) - 0.4, -0.6),
        xlim=(0, 108),
        xlabel="accuracy (%); hatched: a masked attack, which is no robustness"
        if diagnostic
        else "accuracy (%)",
    )
    axes.tick_params(axis="y", labelsize=8, length=0)
    for label in axes.get_yticklabels()[: len(whole)]:
        label.set_fontweight("bold")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    save(figure, path, title)


def _banded(
    axes: Axes,
    places: NDArray[Any],
    curve: Curve,
    colour: str,
    label: str,
    marker: str | None = None,
) -> None:
    value = 100 * np.asarray(curve.value, np.float64)
    axes.plot(places, value, color=colour, label=label, marker=marker, markersize=4)
    if curve.low is not None and curve.high is not None:
        low, high = (100 * np.asarray(edge, np.float64) for edge in (curve.low, curve.high))
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)


def _mark(axes: Axes, place: float, told: str) -> None:
    axes.axvline(place, color="0.35", linestyle="--", linewidth=1)
    # Above the frame: no curve passes there.
    axes.annotate(
        told,
        (place, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color="0.35",
    )


def _surface(axes: Axes, surface: Surface, span: float, eps: float) -> None:
    from matplotlib.patches import Rectangle

    loss = np.asarray(surface.loss, np.float64)
    margin = np.asarray(surface.margin, np.float64)
    places = np.linspace(-span, span, len(loss))
    finite, told = loss[np.isfinite(loss)], surface.told
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    drawn = axes.pcolormesh(
        places, places, np.ma.masked_invalid(loss), shading="gouraud", vmin=low, vmax=high
    )
    if high > low:
        bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.9)
        bar.set_label("cross-entropy", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        if len(finite) == loss.size:
            axes.contour(places, places, loss, LEVELS, colors="white", linewidths=0.5, alpha=0.8)
    else:
        told += f"\ncross-entropy {low + 0.0:.3g} everywhere" if len(finite) else "\nnot finite"
    if (margin > 0).any() and (margin < 0).any():
        axes.contour(places, places, margin, [0.0], colors=COLOURS[1], linewidths=2.2)
    for style in ({"edgecolor": "black", "lw": 2.2}, {"edgecolor": "white", "ls": "--", "lw": 1.4}):
        axes.add_patch(Rectangle((-eps, -eps), 2 * eps, 2 * eps, fill=False, **style))
    axes.plot(0, 0, marker="x", color="black", markersize=9, markeredgewidth=3.5)
    axes.plot(0, 0, marker="x", color="white", markersize=8, markeredgewidth=1.8)
    axes.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")
    axes.set_title(told, fontsize=9)
    axes.set_xlabel("along the gradient's sign (in 1/255)", fontsize=8)
    axes.set_ylabel("along random signs (in 1/255)", fontsize=8)
    axes.tick_params(labelsize=8)
