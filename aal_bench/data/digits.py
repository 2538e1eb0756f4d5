"""The embedded set: scikit-learn's handwritten digits, upscaled, three equal channels."""

from __future__ import annotations

import numpy as np

from aal_bench.data.sources import Found, Pixels
from aal_bench.data.subset import hold_out

SIDE = 8
"""Pixels of the original's side; its grey levels are 0 to 16."""
LEVELS = 16
TEST = 360
"""Test images: 36 of each class; the other 1,437 are the training split."""
TEST_SEED = 0


def read(size: int) -> Found:
    """Return the 1,797 digits at `size` x `size`, split class-balanced into 1,437 and 360."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    grey = upscale(bundle.images.astype(np.int64), size)  # pyright: ignore[reportAttributeAccessIssue]
    labels = bundle.target.astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]
    images = np.repeat(grey[:, None], 3, axis=1)
    train, test = hold_out(labels, TEST, TEST_SEED)
    return Found(
        Pixels(images[train], labels[train]),
        Pixels(images[test], labels[test]),
        tuple(str(digit) for digit in range(10)),
        "embedded",
        official=True,
    )


def upscale(images: np.ndarray, size: int) -> np.ndarray:
    """Resize bilinearly (half-pixel centres, edges clamped) and stretch 0..16 to 0..255.

    In whole numbers: with floating point, a value that lies on .5 would round one way on one
    machine and the other way on the next, and the fingerprint of the pixels would differ.

    Args:
        images: int64 (N, 8, 8) in 0..16.
        size: new side in pixels.

    Returns:
        uint8 (N, size, size).
    """
    weights = _bilinear(size)
    scaled = weights @ images @ weights.T * 255
    whole = LEVELS * (2 * size) ** 2
    return ((2 * scaled + whole) // (2 * whole)).astype(np.uint8)


def _bilinear(size: int) -> np.ndarray:
    """Return int64 weights (size, 8); each row sums to 2 size."""
    # The centre of new pixel i lies at ((2 i + 1) 8 - size) / (2 size) old pixels.
    centre = ((2 * np.arange(size) + 1) * SIDE - size).clip(0, (SIDE - 1) * 2 * size)
    below, part = np.divmod(centre, 2 * size)
    weights = np.zeros((size, SIDE), np.int64)
    rows = np.arange(size)
    np.add.at(weights, (rows, below), 2 * size - part)
    np.add.at(weights, (rows, np.minimum(below + 1, SIDE - 1)), part)
    return weights
