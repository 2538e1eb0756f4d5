"""The figure of a diagnosis: what masks an attack, and how far the mask closed in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aal_bench.evidence import wilson
from aal_bench.figures.canvas import COLOURS, blank, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACES = {
    "full": "full eps",
    "one_minus_m2": "masked by\n1 - M*M",
    "m": "masked by\nM",
    "m2": "masked by\nM*M",
}
"""What an attack is confined to, in the order of Table 8's accuracies."""
ATTACKS = {"fgsm": "FGSM", "pgd": "PGD-10"}
WIDTH = 0.38


class Bar(NamedTuple):
    """Images that stand."""

    k: int
    n: int


def draw(
    bars: Mapping[str, Mapping[str, Bar]],
    printed: Mapping[str, float],
    mean_k: Mapping[int, float],
    tested_k: float,
    closed: float,
    path: Path,
    title: str = "",
) -> None:
    """Accuracy under full and masked attacks, and mean k over training.

    Args:
        bars: ``clean``, ``full`` or a kernel -> attack -> images that stand.
        printed: kernel -> accuracy in [0, 1] that the paper prints for FGSM on ImageNet100.
        mean_k: epoch -> mean share of eps that training spent; empty: not logged.
        tested_k: the same on the test images.
        closed: mean k below which a mask counts as closed.
        path: PNG to write.
        title: printed above.
    """
    figure = blank(10.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _accuracies(left, bars, printed)
    _budget(right, mean_k, tested_k, closed)
    save(figure, path, title)


def _accuracies(
    axes: Axes, bars: Mapping[str, Mapping[str, Bar]], printed: Mapping[str, float]
) -> None:
    for number, (kind, told) in enumerate(ATTACKS.items()):
        for place, name in enumerate(PLACES):
            k, n = bars[name][kind]
            low, high = wilson(k, n)
            at, share = place + (number - 0.5) * WIDTH, k / n
            axes.bar(
                at,
                100 * share,
                WIDTH,
                color=COLOURS[(0, 5)[number]],
                edgecolor="0.3",
                linewidth=0.5,
                label=told if place == 0 else None,
                yerr=[[100 * (share - low)], [100 * (high - share)]],
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "0.25"},
            )
            axes.annotate(
                f"{100 * share:.1f}",
                (at, 100 * high),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    clean = bars["clean"]["clean"]
    axes.axhline(100 * clean.k / clean.n, color="0.35", linestyle="--", label="no attack")
    shown = [(place, printed[name]) for place, name in enumerate(PLACES) if name in printed]
    if shown:
        axes.plot(
            [place - 0.5 * WIDTH for place, _ in shown],
            [100 * value for _, value in shown],
            linestyle="none",
            marker="D",
            markersize=6,
            color=COLOURS[1],
            markeredgecolor="white",
            label="printed, Table 8 (FGSM, ImageNet100)",
        )
    axes.set(
        xticks=range(len(PLACES)),
        xticklabels=list(PLACES.values()),
        ylabel="accuracy (%)",
        ylim=(0, 118),
        yticks=range(0, 101, 20),
    )
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", ncols=2, fontsize=8, framealpha=0.9)


def _budget(axes: Axes, mean_k: Mapping[int, float], tested_k: float, closed: float) -> None:
    if mean_k:
        axes.plot(
            list(mean_k),
            list(mean_k.values()),
            color=COLOURS[0],
            marker="o",
            markersize=4,
            label="training, epoch mean",
        )
    else:
        axes.text(0.5, 0.6, "not logged in training", ha="center", transform=axes.transAxes)
    axes.axhline(tested_k, color=COLOURS[1], linestyle="--", label=f"test images: {tested_k:.3f}")
    axes.axhspan(0, closed, color="0.85", label=f"closed: below {closed:g}")
    last = max(mean_k, default=1)
    axes.set(
        xlabel="epoch",
        ylabel="mean k (share of eps)",
        ylim=(0, 1),
        xlim=(0.5, max(last, 1) + 0.5),
    )
    if last <= 12:
        axes.set_xticks(range(1, last + 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8, framealpha=0.9)
