"""Three splits with classes of their own: named, numbered from 0, and held apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from aal_bench.data.sources import Source
from aal_bench.errors import UserError

SPLITS = ("train", "validation", "test")


class Listed(NamedTuple):
    """One split as a layout lists it."""

    source: Source
    rows: np.ndarray
    """int64 (N,): the split's images among those of `source`."""
    labels: np.ndarray
    """int64 (N,): their classes, as the layout numbers them."""
    names: tuple[str, ...] | None
    """Of the layout's classes, if it names them."""


class Part(NamedTuple):
    """One split, class by class: the classes in the order of their names, images as listed."""

    source: Source
    rows: np.ndarray
    """int64 (N,): the split's images among those of `source`."""
    labels: np.ndarray
    """int64 (N,), ascending, 0..C-1."""
    names: tuple[str, ...]


def whole(source: Source, names: tuple[str, ...] | None) -> Listed:
    """List all images of `source` as one split."""
    return Listed(source, np.arange(len(source)), source.labels, names)


def number(found: dict[str, Listed], where: str) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Number each split's classes from 0 and make sure that no two splits share one.

    Classes are the same when their names are. Without names, equal numbers are the same class,
    unless every split numbers its own classes from 0.

    Args:
        found: ``train``, ``validation`` and ``test``.
        where: opens every error.

    Returns:
        The splits, and notes on named classes that no split has.

    Raises:
        UserError: a split without images, an image without a label, a class without an image, or a
            class in two splits.
    """
    for split, one in found.items():
        if not len(one.labels):
            raise UserError(f"{where}: the {split} split holds no images")
        check_labels(one.labels, one.names, f"{where}: {split} split")
    named = {split: _names(split, found) for split in found}
    _check_apart(named, where)
    parts = {}
    for split, one in found.items():
        names = named[split]
        # Names give every layout of the same images the same order; numbers have one already.
        by_name = all(other.names is not None for other in found.values())
        order = sorted(names, key=lambda label: (names[label], label) if by_name else label)
        new = np.empty(max(order) + 1, np.int64)
        new[order] = np.arange(len(order))
        labels = new[one.labels]
        sort = np.argsort(labels, kind="stable")
        parts[split] = Part(
            one.source, one.rows[sort], labels[sort], tuple(names[label] for label in order)
        )
    return parts, _without_images(found, where)


def check_labels(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> None:
    """Raise a UserError for labels below 0, and for those that have no name."""
    missing = int((labels < 0).sum())
    if missing:
        raise UserError(f"{where}: {missing:,} unlabelled images (-1). Remove them.")
    if names is not None and labels.max(initial=-1) >= len(names):
        raise UserError(f"{where}: labels up to {labels.max()}, but {len(names)} class names.")


def few(things: Iterable[str], limit: int = 3) -> str:
    """``a, b, c, ...``: the first few, in the order given."""
    everything = list(things)
    return ", ".join(everything[:limit]) + (", ..." if len(everything) > limit else "")


def _names(split: str, found: dict[str, Listed]) -> dict[int, str]:
    """Name the classes of `split` that have images, by their labels."""
    present = {one: np.unique(listed.labels).tolist() for one, listed in found.items()}
    names = found[split].names
    if names is not None and all(one.names is not None for one in found.values()):
        return {label: names[label] for label in present[split]}
    own = all(labels == list(range(len(labels))) for labels in present.values())
    return {label: f"{split}/{label}" if own else str(label) for label in present[split]}


def _check_apart(named: dict[str, dict[int, str]], where: str) -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for split, names in named.items():
        for one in set(names.values()):
            homes[one].append(split)
    shared = {one: splits for one, splits in sorted(homes.items()) if len(splits) > 1}
    if shared:
        shown = few(f"{one}: {' and '.join(splits)}" for one, splits in shared.items())
        raise UserError(
            f"{where}: {len(shared)} of {len(homes)} classes lie in more than one split ({shown}). "
            "Few-shot splits share no class: divide the classes, not their images."
        )


def _without_images(found: dict[str, Listed], where: str) -> tuple[str, ...]:
    """Refuse classes without an image that belong to a split; note those that belong to none."""
    lists = {one.names for one in found.values()}
    missing = {
        split: [one.names[i] for i in np.setdiff1d(np.arange(len(one.names)), one.labels)]
        for split, one in found.items()
        if one.names is not None
    }
    if len(lists) == 1:  # one list of names for all splits
        everywhere = set.intersection(*map(set, missing.values())) if missing else set()
        return _note(sorted(everywhere))
    for split, names in missing.items():
        if names:
            raise UserError(
                f"{where}: {split} split: no image of {len(names)} classes ({few(names)}). "
                "Complete the set, or take their names out."
            )
    return ()


def _note(names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"{len(names)} named classes have no image in any split ({few(names)})",)
