"""The figures of a report: training curves, the selective attack step by step, accuracy over eps.

Plain numpy in, one PNG out. Figures are explicit objects on the Agg canvas: no global pyplot state,
no display. matplotlib is imported only here, and only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aal_bench.figures.canvas import COLOURS, blank, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSSES = {"cls": "classes", "loc": "boxes", "loss_cls": "classes", "loss_bbox": "boxes"}
"""Parts of a detector's loss, as methods that attack log them and as MMDetection does."""
VALIDATED = {"val_clean": "clean", "val_pgd": "under PGD", "val_map": "mAP, clean"}
WATCHED = {"watch_clean": "clean", "watch_fgsm": "FGSM", "watch_pgd": "PGD-5"}
"""Accuracies on one fixed batch of training images, by which training watches itself."""
BASIC = ("epoch", "step", "loss", "lr", "seconds", *VALIDATED, *WATCHED, *LOSSES)
"""Keys of a row of metrics.jsonl that have a panel of their own; any other is a method's log."""


class Curve(NamedTuple):
    """Accuracy of one attack at each eps; `low` and `high` bound its interval."""

    value: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def training_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Loss, accuracies on the way, learning rate and the method's own logs over the epochs.

    Args:
        rows: of metrics.jsonl; ``val_clean`` and ``val_pgd``, or ``val_map``, in [0, 1], where
            validated; ``watch_clean``, ``watch_fgsm`` and ``watch_pgd`` where training watched.
        path: PNG to write.
        title: printed above, e.g. task and method.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no epochs to draw")
    logs = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in BASIC]
    figure = blank(9.0, 7.0) if logs else blank(12.6, 3.6)
    panels = figure.subplots(*((2, 2) if logs else (1, 3))).flat
    _curve(panels[0], rows, "loss", COLOURS[0], "training loss")
    _parts(panels[0], rows)
    _validation(panels[1], rows)
    _curve(panels[2], rows, "lr", COLOURS[2], "learning rate")
    panels[2].set(title="Learning rate", ylabel="learning rate", ylim=(0, None))
    if logs:
        for place, key in enumerate(logs):
            _curve(panels[3], rows, key, COLOURS[place % len(COLOURS)], key.replace("_", " "))
        panels[3].set(title="Method's log", ylabel="mean per epoch")
        if all(row.get(key) is None or row[key] > 0 for row in rows for key in logs):
            panels[3].set_yscale("log")
        panels[3].legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=9)
    for axes in panels:
        axes.set(xlabel="epoch", xlim=(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
    save(figure, path, title)


def selective_attack(
    images: ArrayLike,
    M: ArrayLike,
    Ma: ArrayLike,
    K: ArrayLike,
    eta: ArrayLike,
    x_adv: ArrayLike,
    path: Path,
    eps: float,
    title: str = "",
    labels: Sequence[str] | None = None,
) -> None:
    """x, M, M^a, k(M^a), eta and x' side by side, one sample per row (the AAL paper's Fig. 3).

    Args:
        images: (n, 3, H, W) in [0, 1].
        M: (n, h, w) or (n, 1, h, w), the gate's reading on x, in [0, 1].
        Ma: same shape, the associative attention M^a (Eq. 13).
        K: (n, H, W) or (n, 1, H, W), the kernel k(M^a) that scales the attack, in [0, 1].
        eta: (n, 3, H, W), the perturbation in pixel units.
        x_adv: (n, 3, H, W) in [0, 1], the attacked image.
        path: PNG to write.
        eps: budget in pixel units: the colours of eta span [-eps, eps].
        title: printed above.
        labels: one per row, printed at its left.
    """
    x, adversarial, noise = (np.asarray(a, np.float64) for a in (images, x_adv, eta))
    masks = [_maps(mask) for mask in (M, Ma, K)]
    n = len(x)
    figure = blank(1.75 * 6 + 0.6, 1.72 * n + 1.1)
    # The last row holds the colour bars: as axes of their own they keep every column the same size.
    grid = figure.subplots(n + 1, 6, squeeze=False, height_ratios=[1] * n + [0.07])
    span = 255 * eps
    columns: list[tuple[str, NDArray[np.float64], dict[str, Any]]] = [
        ("$x$", x.transpose(0, 2, 3, 1).clip(0, 1), {}),
        *(
            (name, mask, {"cmap": "viridis", **_range(mask)})
            for name, mask in zip(("$M$", "$M^a$", "$k(M^a)$"), masks, strict=True)
        ),
        (r"$\eta$", 255 * noise.mean(1), {"cmap": "RdBu_r", "vmin": -span, "vmax": span}),
        ("$x'$", adversarial.transpose(0, 2, 3, 1).clip(0, 1), {}),
    ]
    for place, (name, pictures, style) in enumerate(columns):
        shown = [
            axes.imshow(picture, interpolation="nearest", **style)
            for axes, picture in zip(grid[:n, place], pictures, strict=True)
        ]
        grid[0, place].set_title(name)
        if style:
            bar = figure.colorbar(shown[0], cax=grid[n, place], orientation="horizontal")
            bar.locator = _ticks(4)
            bar.ax.tick_params(labelsize=8)
            bar.set_label("mean of channels, in 1/255" if name == r"$\eta$" else "", fontsize=8)
        else:
            grid[n, place].set_axis_off()
    for axes in grid[:n].flat:
        axes.set(xticks=[], yticks=[])
    for row, label in enumerate(labels or ()):
        grid[row, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    save(figure, path, title)


def accuracy_against_eps(
    eps: Sequence[float],
    curves: Mapping[str, Curve],
    path: Path,
    eps_threat: float,
    chance: float | None = None,
    title: str = "",
) -> None:
    """Accuracy of each attack over the budget, the task's own budget marked.

    Args:
        eps: budgets in pixel units (8/255 = 0.0314), ascending.
        curves: attack -> accuracies in [0, 1] at these budgets, with their intervals.
        path: PNG to write.
        eps_threat: the task's budget, in pixel units.
        chance: accuracy of guessing; drawn as a line when given.
        title: printed above.

    Raises:
        ValueError: a curve's length is not that of `eps`.
    """
    figure = blank(6.4, 4.2)
    axes = figure.subplots()
    budget = 255 * np.asarray(eps, np.float64)
    for place, (attack, curve) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        value = 100 * np.asarray(curve.value, np.float64)
        if value.shape != budget.shape:
            raise ValueError(f"{attack}: {len(value)} accuracies for {len(budget)} budgets")
        axes.plot(budget, value, marker="o", markersize=4, color=colour, label=attack)
        if curve.low is not None and curve.high is not None:
            low, high = (100 * np.asarray(edge, np.float64) for edge in (curve.low, curve.high))
            axes.fill_between(budget, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.axvline(255 * eps_threat, color="0.35", linestyle="--", linewidth=1)
    axes.annotate(
        f"task: {255 * eps_threat:g}/255",
        (255 * eps_threat, 101),
        xytext=(4, -3),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color="0.35",
    )
    if chance is not None:
        axes.axhline(100 * chance, color="0.6", linestyle=":", label="chance")
    axes.set(
        xlabel="eps (in 1/255)", ylabel="accuracy (%)", ylim=(0, 102), xlim=(0, budget.max() or 1)
    )
    axes.grid(alpha=0.3)
    axes.legend(title="attack; bands: 95 % intervals", loc="best", framealpha=0.9)
    save(figure, path, title or "Accuracy against eps")


def _curve(
    axes: Axes, rows: Iterable[Mapping[str, Any]], key: str, colour: str, label: str
) -> None:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    marker = "o" if len(points) < 40 else None
    axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3)


def _parts(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """A detector's loss has two parts; per image it is a mean over the batch's positive priors."""
    axes.set(title="Training loss", ylabel="mean loss per image")
    parts = [key for key in LOSSES if key in rows[0]]
    for place, key in enumerate(parts, start=3):
        _curve(axes, rows, key, COLOURS[place], LOSSES[key])
    if parts:
        axes.set(ylabel="mean loss of a batch", ylim=(0, None))
        axes.legend(loc="upper right")


def _validation(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """What was held out, solid; what training watches itself by, dashed."""
    detector = any(key in row for row in rows for key in ("val_map", *LOSSES))
    what = "mAP" if detector else "accuracy"
    drawn = [key for key in VALIDATED if _has(rows, key)]
    watched = [key for key in WATCHED if _has(rows, key)]
    title = "Accuracy after each epoch" if watched else f"Validation {what}"
    axes.set(title=title, ylabel=f"{what} (%)", ylim=(0, 102))
    if not (drawn or watched):
        axes.text(0.5, 0.5, "no validation split", ha="center", transform=axes.transAxes)
        return
    for key in drawn:
        _curve(axes, _percent(rows, key), key, COLOURS[key == "val_pgd"], VALIDATED[key])
    for key, colour in zip(WATCHED, COLOURS[5:2:-1], strict=True):
        if key in watched:
            label = f"{WATCHED[key]}, training batch"
            _curve(axes, _percent(rows, key), key, colour, label)
            axes.lines[-1].set(linestyle="--", linewidth=1, marker="")
    if watched:  # in the panel five names would hide what collapsed
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8)
    else:
        axes.legend(loc="lower right")


def _has(rows: Iterable[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


def _percent(rows: Iterable[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{**row, key: 100 * row[key]} for row in rows if row.get(key) is not None]


def _maps(mask: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(mask, np.float64)
    return array[:, 0] if array.ndim == 4 else array


def _range(mask: NDArray[np.float64]) -> dict[str, float]:
    # A gate moves by a few percent around its mean: the full range [0, 1] would show nothing.
    low, high = float(mask.min()), float(mask.max())
    middle, half = (low + high) / 2, max((high - low) / 2, 0.005)
    return {"vmin": middle - half, "vmax": middle + half}


def _ticks(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count)
