"""The figure of a detection run: what is found with an attack and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aal_bench.boxes import Detections
from aal_bench.figures.canvas import COLOURS, blank, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENT = 0.3
"""Detections of lower scores are not drawn."""
MOST = 12
"""Detections drawn in an image, the best first."""
ANYWAY = 3
"""Detections drawn where none is confident."""
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Of red, green and blue."""
PANEL = 3.3
"""Inches of an image's side, about: what the room for labels is reckoned by."""
TEXT = 8.5
"""Points."""


class Shown(NamedTuple):
    """A test image as it was fed, S pixels wide and T high; all boxes in its coordinates."""

    name: str
    image: ArrayLike
    """(3, T, S) in [0, 1]: red, green, blue."""
    attacked: ArrayLike
    """(3, T, S), x'."""
    boxes: NDArray[Any]
    """(g, 4) of the objects."""
    clean: Detections
    found: Detections
    """On x'."""
    mask: ArrayLike | None = None
    """(T, S), M^a."""


def colours(classes: int) -> list[Any]:
    """One colour for each of `classes`, dark enough for text: the palette's, or as many hues."""
    if classes <= len(COLOURS):
        return list(COLOURS[:classes])
    from matplotlib.colors import hsv_to_rgb

    found = []
    for place in range(classes):
        # The golden section spreads any number of hues; the lightness parts near ones.
        rgb = hsv_to_rgb((place * 0.618034 % 1, 0.9, 1.0))
        found.append(rgb * min(1.0, (0.42, 0.22)[place % 2] / (rgb @ LUMINANCE)))
    return found


def drawable(found: Detections) -> tuple[Detections, str]:
    """The detections worth drawing, the best first, and a line that says which they are."""
    ranked = found.at(np.argsort(-found.scores, kind="stable"))
    confident, least = int((found.scores >= CONFIDENT).sum()), f"score ≥ {CONFIDENT}"
    if confident:
        said = f"{MOST} best of {confident} with" if confident > MOST else f"{confident} with"
        return ranked.at(np.arange(min(confident, MOST))), f"{said} {least}"
    few = min(ANYWAY, len(found.scores))
    said = f"none with {least}: the {few} best" if few else "nothing found"
    return ranked.at(np.arange(few)), said


def detections(
    shown: Sequence[Shown],
    classes: Sequence[str],
    path: Path,
    stage: str,
    eps: float,
    title: str = "",
) -> None:
    """Rows of images: detections on x, detections on x', the perturbation and, where given, M^a.

    Args:
        shown: the images, with masks all or none.
        classes: names, in the order of the labels.
        path: PNG to write.
        stage: the attack that made x'.
        eps: its budget in pixel units: the perturbation's black and white.
        title: printed above.
    """
    masked = all(one.mask is not None for one in shown)
    width, budget = 4 if masked else 3, f"{255 * eps:g}/255"
    figure = blank((PANEL + 0.3) * width + 0.9 * masked, (PANEL + 0.3) * len(shown) + 1.1)
    grid = figure.subplots(len(shown), width, squeeze=False)
    tints = colours(len(classes))
    heads = [
        *("clean", f"under {stage}, eps {budget}"),
        *(f"$x' - x$: grey 0, white +{budget}", "mask $M^a$ over $x$"),
    ]
    for row, one in zip(grid, shown, strict=True):
        x, attacked = (_picture(image) for image in (one.image, one.attacked))
        for axes, image, found in zip(row, (x, attacked), (one.clean, one.found), strict=False):
            axes.imshow(image)
            kept, said = drawable(found)
            _objects(axes, one.boxes)
            _found(axes, kept, classes, tints, image.shape[1] / PANEL / 72)
            axes.set_xlabel(said, fontsize=9)
        row[2].imshow((0.5 + (attacked - x) / (2 * eps)).clip(0, 1))
        row[0].set_ylabel(one.name if len(one.name) <= 30 else f"...{one.name[-27:]}", fontsize=9)
    if masked:
        _masks(figure, list(grid[:, 3]), shown)
    for axes, head in zip(grid[0], heads, strict=False):
        axes.set_title(head, fontsize=11)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    _legend(figure, shown, classes, tints)
    save(figure, path, title)


def _picture(image: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(image, np.float64).transpose(1, 2, 0).clip(0, 1)


def _box(axes: Axes, box: NDArray[Any], **style: Any) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    # Pixel centres have whole coordinates in a picture, pixel edges in a box.
    axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **style))


def _objects(axes: Axes, boxes: NDArray[Any]) -> None:
    for box in boxes:
        _box(axes, box, edgecolor="black", linewidth=1.8)
        _box(axes, box, edgecolor="white", linewidth=0.9, linestyle=(0, (4, 4)))


def _found(
    axes: Axes, found: Detections, classes: Sequence[str], tints: Sequence[Any], point: float
) -> None:
    """Boxes and their labels; `point` is the size of a typographic point in pixels."""
    from matplotlib.patheffects import withStroke

    taken: list[tuple[float, ...]] = []
    high, wide = axes.get_images()[0].get_size()
    for rank, (box, score, label) in enumerate(zip(*found, strict=True)):
        over = 10 + 2 * (len(found.scores) - rank)  # the best on top
        _box(axes, box, edgecolor="white", linewidth=3.2, zorder=over)
        _box(axes, box, edgecolor=tints[label], linewidth=1.8, zorder=over + 1)
        said = f"{classes[label]} {score:.2f}"
        size = 0.66 * TEXT * point * len(said), 1.25 * TEXT * point
        corner = _room(box.tolist(), size, taken, (wide, high))
        if corner is None:
            continue
        axes.text(
            *corner,
            said,
            va="top",
            fontsize=TEXT,
            fontweight="bold",
            color=tints[label],
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=1000,
        )


def _room(
    box: Sequence[float],
    size: tuple[float, float],
    taken: list[tuple[float, ...]],
    picture: tuple[float, float],
) -> tuple[float, float] | None:
    """Where a label of `size` covers no better one, which is then taken; None: nowhere."""
    x1, y1, x2, y2 = box
    width, height = size
    for x in (x1, x2 - width):
        for y in (y1 - height, y2, y1, y2 - height):
            x, y = min(max(x, 0), picture[0] - width), min(max(y, 0), picture[1] - height)
            clear = all(
                x + width <= a or c <= x or y + height <= b or d <= y for a, b, c, d in taken
            )
            if clear:
                taken.append((x, y, x + width, y + height))
                return x, y
    return None


def _masks(figure: Any, column: Sequence[Any], shown: Sequence[Shown]) -> None:
    """Heat over a grey image, on one scale: a gate moves by a few percent around its mean."""
    masks = [np.asarray(one.mask, np.float64) for one in shown]
    low, high = min(mask.min() for mask in masks), max(mask.max() for mask in masks)
    middle, half = (low + high) / 2, max((high - low) / 2, 0.0005)
    heat = None
    for axes, one, mask in zip(column, shown, masks, strict=True):
        axes.imshow(_picture(one.image).mean(2), cmap="gray", vmin=0, vmax=1)
        heat = axes.imshow(mask, cmap="inferno", alpha=0.6, vmin=middle - half, vmax=middle + half)
        axes.set_xlabel(f"{mask.min():.4f} to {mask.max():.4f}", fontsize=9)
    bar = figure.colorbar(heat, ax=column, shrink=0.5, aspect=30)
    bar.ax.set_title("$M^a$", fontsize=11)


def _legend(
    figure: Any, shown: Sequence[Shown], classes: Sequence[str], tints: Sequence[Any]
) -> None:
    from matplotlib.patheffects import withStroke

    seen = {
        int(k) for one in shown for kind in (one.clean, one.found) for k in drawable(kind)[0][2]
    }
    cased = [withStroke(linewidth=2.2, foreground="black")]
    handles = [_line("white", "object", linestyle=(0, (4, 4)), linewidth=1, path_effects=cased)]
    handles += [_line(tints[label], classes[label], linewidth=3) for label in sorted(seen)]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=9)


def _line(colour: Any, label: str, **style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **style)
