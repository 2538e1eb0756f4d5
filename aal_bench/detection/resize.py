"""SSD-512 on images of another size: maps, strides and priors in proportion."""

from __future__ import annotations

from typing import Any

from aal_bench.errors import UserError

GRIDS = (64, 32, 16, 8, 4, 2, 1)
"""Sides of SSD-512's maps at 512 pixels."""


def resize(config: Any, size: int) -> None:
    """Feed images of another size than 512: maps, strides and priors shrink in proportion."""
    if size == 512:
        return
    for pipeline in (config.train_pipeline, config.test_pipeline):
        for step in pipeline:
            if step["type"] == "Resize":
                step["scale"] = (size, size)
    sides = grids(size, len(config.model.backbone.out_indices))
    anchors = config.model.bbox_head.anchor_generator
    smallest, largest = _prior_sizes(anchors)
    for key in ("input_size", "basesize_ratio_range"):
        anchors.pop(key, None)
    anchors.strides = [size / side for side in sides]
    anchors.min_sizes = [round(side * size / 512, 2) for side in smallest]
    anchors.max_sizes = [round(side * size / 512, 2) for side in largest]


def _prior_sizes(anchors: Any) -> tuple[list[float], list[float]]:
    """Sides in pixels of each map's priors of ratio 1, the smaller and the limit of the larger."""
    from mmdet.registry import TASK_UTILS

    made = TASK_UTILS.build(anchors)
    smallest = [float(side) for side in made.base_sizes]
    # A map's second scale is sqrt(max / min), in float32.
    growth = [float(scales[1]) ** 2 for scales in made.scales]
    return smallest, [round(side * by, 3) for side, by in zip(smallest, growth, strict=True)]


def grids(size: int, backbone_maps: int) -> list[int]:
    """Sides of the seven maps for images of `size` pixels.

    Args:
        size: side in pixels.
        backbone_maps: how many of them the backbone gives, from stride 8 on.

    Raises:
        UserError: the extra layers would have nothing left to halve.
    """
    sides = [-(-size // (8 * 2**i)) for i in range(backbone_maps)]
    while len(sides) < len(GRIDS) - 1:
        sides.append((sides[-1] - 1) // 2 + 1)  # a 3 x 3 convolution of stride 2, padding 1
    sides.append(sides[-1] - 1)  # the last one is 4 x 4 with padding 1
    if sides[-1] < 1:
        raise UserError(f"data.size = {size}: too small for SSD-512's seven maps; use 264 or more")
    return sides
