"""The figures of few-shot runs: accuracy over the episodes, and one episode as it was answered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from aal_bench.figures.canvas import COLOURS, blank, save

RIGHT, WRONG = COLOURS[2], COLOURS[1]


def accuracy_over_episodes(
    accuracies: Mapping[str, ArrayLike],
    path: Path,
    chance: float,
    queries: int,
    title: str = "",
) -> None:
    """How many episodes reach which accuracy, for each stage, with the means.

    Args:
        accuracies: stage -> (E,) accuracies of the episodes in [0, 1].
        path: PNG to write.
        chance: accuracy of guessing, drawn as a line.
        queries: of an episode: accuracies are multiples of 1 / queries, and so are the bins.
        title: printed above.
    """
    figure = blank(7.2, 4.0)
    axes = figure.subplots()
    every = max(1, queries // 25)
    edges = ((np.arange(0, queries + every + 1, every) - 0.5) * 100 / queries).tolist()
    for place, (stage, values) in enumerate(accuracies.items()):
        percent = 100 * np.asarray(values, np.float64)
        colour = COLOURS[place % len(COLOURS)]
        weights = np.full(len(percent), 100 / len(percent))
        label = f"{stage}: mean {percent.mean():.1f} %"
        axes.hist(percent, edges, weights=weights, color=colour, alpha=0.45, label=label)
        axes.axvline(percent.mean(), color=colour, linewidth=1.5)
    axes.axvline(100 * chance, color="0.5", linestyle=":", label=f"chance {100 * chance:.0f} %")
    axes.set(xlabel="accuracy of an episode (%)", ylabel="share of episodes (%)", xlim=(-2, 102))
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9, framealpha=0.9)
    save(figure, path, title)


def one_episode(
    support: ArrayLike, query: ArrayLike, predicted: ArrayLike, path: Path, title: str = ""
) -> None:
    """The support set beside the queries of each class, framed by whether they were answered right.

    Args:
        support: (ways, shots, 3, H, W) in [0, 1].
        query: (ways, queries, 3, H, W) in [0, 1].
        predicted: (ways, queries), the class 0..ways-1 that each query was taken for.
        path: PNG to write.
        title: printed above.
    """
    shown, asked = (np.asarray(x, np.float64).clip(0, 1) for x in (support, query))
    answered = np.asarray(predicted)
    ways, shots, queries = len(shown), shown.shape[1], asked.shape[1]
    figure = blank(0.72 * (shots + queries) + 1.2, 0.82 * ways + 1.0)
    gap = 0.35
    grid = figure.subplots(
        ways, shots + 1 + queries, squeeze=False, width_ratios=[1] * shots + [gap] + [1] * queries
    )
    for way in range(ways):
        grid[way, shots].set_axis_off()
        for place in range(shots):
            _picture(grid[way, place], shown[way, place], "0.4")
        grid[way, 0].set_ylabel(f"class {way}", fontsize=9, rotation=0, ha="right", va="center")
        for place in range(queries):
            axes, taken = grid[way, shots + 1 + place], int(answered[way, place])
            _picture(axes, asked[way, place], RIGHT if taken == way else WRONG)
            if taken != way:
                axes.set_xlabel(f"as {taken}", fontsize=7, labelpad=1, color=WRONG)
    grid[0, 0].set_title("support", fontsize=9, loc="left")
    grid[0, shots + 1].set_title("queries", fontsize=9, loc="left")
    save(figure, path, title)


def _picture(axes: Any, image: np.ndarray, colour: str) -> None:
    axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(color=colour, linewidth=2.2)
