"""Augmented copies of single images, which are the same in every batch: their features can be kept.

Copy c of the image at position i takes its random numbers from a fixed place of PCG64's raw stream
number c, which numpy keeps stable (NEP 19), as it does SeedSequence.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from aal_bench.data.augment import (
    AREA,
    RATIO,
    TRIES,
    fit_boxes,
    padded_crop,
    resized_crop,
    to_unit,
)
from aal_bench.data.jitter import ORDERS, STRENGTH, color_jitter_

WORDS = 32
"""64-bit words of the stream that belong to one copy; five are spare."""
FLIP, TOP, LEFT = range(3)
FACTORS, ORDER = slice(3, 6), 6
AREAS, RATIOS = slice(7, 7 + TRIES), slice(7 + TRIES, 7 + 2 * TRIES)
"""What each word decides; the augmentations share flip and place."""


def augmented_copies(
    images: Tensor, positions: Tensor, copies: int, augment: str, pad: int, seed: int
) -> Tensor:
    """Make augmented copies of each image, as `augment_batch` would augment it.

    Copy c of an image depends on (`seed`, its position, c, `augment`, `pad`) and its pixels alone:
    not on the batch, its order, the number of copies or of threads, nor the size of the split.
    Every device gets the same random numbers; its pixels can differ by rounding.

    Args:
        images: uint8 (B, 3, H, W).
        positions: int64 (B,), what tells the images apart: positions in the split as it was read.
        copies: how many of each, at least 1.
        augment: one of ``config.Augment``.
        pad: zero pixels on every side before the random crop.
        seed: decides every copy.

    Returns:
        float32 (B, copies, 3, H, W) in [0, 1], on the device of `images`; for ``none`` (B, 1, 3, H,
        W), whatever `copies` is: there is nothing to repeat.
    """
    if len(positions) != len(images):
        raise ValueError(f"{len(images)} images, but {len(positions)} positions")
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if augment == "none":
        return to_unit(images)[:, None]
    if augment not in {"shift", "crop-flip", "jitter-crop-flip", "resized-crop-flip"}:
        raise ValueError(f"unknown augmentation {augment!r}")
    words = _words(positions.tolist(), copies, seed)
    device = images.device
    repeated = images.repeat_interleave(copies, 0)
    flip = torch.from_numpy(_below(2, words[:, FLIP])).to(device)
    if augment == "resized-crop-flip":
        x = resized_crop(to_unit(repeated), _boxes(words, images.shape[-2:]).to(device), flip)
    else:
        top, left = torch.from_numpy(_below(2 * pad + 1, words[:, [TOP, LEFT]])).to(device).T
        flip = torch.zeros_like(flip) if augment == "shift" else flip
        x = to_unit(padded_crop(repeated, pad, top, left, flip))
    if augment == "jitter-crop-flip":
        factors = _between(1 - STRENGTH, 1 + STRENGTH, words[:, FACTORS]).to(device)
        color_jitter_(x, factors, ORDERS[_below(len(ORDERS), words[:, ORDER])].to(device))
    return x.unflatten(0, (len(images), copies))


def _words(positions: list[int], copies: int, seed: int) -> np.ndarray:
    """Return uint64 (B * copies, WORDS), the copies of one image next to each other."""
    if min(positions, default=0) < 0:
        raise ValueError(f"a position is negative: {min(positions)}")
    words = np.empty((len(positions), copies, WORDS), np.uint64)
    for copy in range(copies):
        # spawn_key: a stream that no other use of the seed has. One stream for all copies would
        # need a largest number of copies to find its place in.
        bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(copy,)))
        reached = 0
        for row, position in enumerate(positions):
            bits.advance((position * WORDS - reached) % 2**128)
            words[row, copy] = bits.random_raw(WORDS)
            reached = (position + 1) * WORDS
    return words.reshape(-1, WORDS)


def _below(count: int, words: np.ndarray) -> np.ndarray:
    """Turn words into int64 in [0, count), each as likely but for count / 2^32."""
    scaled = (words >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
    return scaled.astype(np.int64)


def _unit(words: np.ndarray) -> np.ndarray:
    """Turn words into float64 in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0**-53


def _between(low: float, high: float, words: np.ndarray) -> Tensor:
    """Turn words into float32 in [low, high]."""
    return torch.from_numpy((low + (high - low) * _unit(words)).astype(np.float32))


def _boxes(words: np.ndarray, shape: torch.Size) -> Tensor:
    """Draw RandomResizedCrop's boxes: float32 (N, 4) of top, left, height, width."""
    height, width = shape
    area = _between(*AREA, words[:, AREAS]) * height * width
    low, high = map(math.log, RATIO)
    logs = low + (high - low) * _unit(words[:, RATIOS])
    # One by one: a vectorised exp may round by place in the batch, and the box's side with it.
    ratio = torch.tensor([[math.exp(log) for log in row] for row in logs.tolist()])
    where = _between(0, 1, words[:, [TOP, LEFT]].T.copy())
    return fit_boxes(area, ratio.view_as(area), where, shape)
