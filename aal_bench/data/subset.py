"""Class-balanced parts of a split, chosen by a seed: the same on every machine and version.

Every image gets a 64-bit key from PCG64's raw stream, which numpy keeps stable (NEP 19 promises
that for bit streams and SeedSequence only, not for ``Generator.permutation``), and each class gives
its smallest keys. Smaller subsets of one seed therefore lie within larger ones.
"""

from __future__ import annotations

import numpy as np

from aal_bench.errors import UserError


def balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` images, equally many of every class (one more of some if it does not divide).

    Args:
        labels: integers (N,).
        count: images wanted.
        seed: decides which.

    Returns:
        int64 (count,), ascending positions in `labels`.

    Raises:
        UserError: a class has too few images.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    if not 0 < count <= len(labels):
        raise UserError(
            f"a class-balanced part of {count} images does not fit {len(labels)}: "
            f"ask for 1 to {len(labels)}."
        )
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    keys = bits.random_raw(len(labels))
    quotas = np.full(len(classes), count // len(classes))
    extra = np.argsort(bits.random_raw(len(classes)), kind="stable")[: count % len(classes)]
    quotas[extra] += 1
    short = np.flatnonzero(quotas > sizes)
    if len(short):
        first = short[0]
        raise UserError(
            f"a class-balanced part of {count} images needs {quotas[first]} of class "
            f"{classes[first]}, which has {sizes[first]}. Ask for at most "
            f"{int(sizes.min()) * len(classes)}."
        )
    chosen = []
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(keys[members], kind="stable")[:quota]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off a class-balanced validation part of the *training* images.

    Args:
        labels: integers (N,).
        count: images to hold out; 0 holds out none.
        seed: decides which.

    Returns:
        (train_idx, val_idx), int64, ascending, disjoint, together all N positions.

    Raises:
        UserError: a class has too few images, or none would be left to train on.
    """
    everything = np.arange(len(labels), dtype=np.int64)
    if count == 0:
        return everything, everything[:0]
    if count >= len(labels):
        raise UserError(
            f"{count} validation images would leave nothing of {len(labels)} to train on: "
            "lower train.validation, or give more training images."
        )
    held = balanced(labels, count, seed)
    return np.setdiff1d(everything, held, assume_unique=True), held


def some(total: int, count: int | None) -> np.ndarray:
    """Ascending positions of `count` (None: all) of `total` images, from everywhere among them.

    The choice is the same on every machine, and a smaller one lies within a larger one.
    """
    if count is None or count >= total:
        return np.arange(total)
    keys = np.random.PCG64(np.random.SeedSequence(0)).random_raw(total)
    return np.sort(np.argsort(keys, kind="stable")[:count])
