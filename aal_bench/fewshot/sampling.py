"""Lists of episodes, drawn by learn2learn's `MetaDataset` and `Taskset` as positions.

Only positions are drawn here: the images, or features of theirs, are looked up later, which is what
makes evaluation fast and lets every method answer the very same episodes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aal_bench.errors import UserError


@dataclass(frozen=True)
class EpisodeList:
    """Positions in a split, class by class; the classes of an episode are 0..ways-1 in order."""

    support: Tensor
    """int64 (E, ways, shots)."""
    query: Tensor
    """int64 (E, ways, queries)."""

    def __len__(self) -> int:
        return len(self.support)

    def first(self, count: int) -> EpisodeList:
        """The first `count` episodes."""
        return EpisodeList(self.support[:count], self.query[:count])

    def digest(self) -> str:
        """sha256 over the shape, the support positions and the query positions, little-endian."""
        hashed = hashlib.sha256()
        for part in self.support, self.query:
            hashed.update(f"int64 {','.join(map(str, part.shape))}\n".encode())
            hashed.update(part.numpy().astype("<i8").tobytes())
        return hashed.hexdigest()


class Sampler:
    """Draws episodes of one shape from a split.

    Args:
        labels: int64 (N,), classes 0..C-1 of the split's images.
        ways: classes of an episode, without replacement.
        shots: support images of each class.
        queries: further images of each class.

    Raises:
        UserError: a class has fewer than shots + queries images, or there are fewer classes.
    """

    def __init__(self, labels: Tensor, ways: int, shots: int, queries: int) -> None:
        self.labels, self.ways, self.shots = labels, ways, shots
        self.each = shots + queries
        self._tasks = _tasks(labels.tolist(), ways, self.each)

    def draw(self, count: int, seed: int) -> EpisodeList:
        """Draw `count` episodes; a shorter list of one seed begins a longer one.

        learn2learn draws from Python's generator, which is seeded and put back after.
        """
        with _seeded(seed):
            drawn = [self._tasks.sample() for _ in range(count)]
        positions = torch.stack(drawn).reshape(count, self.ways, self.each)
        # learn2learn yields an episode's images class by class; everything here rests on that.
        classes = self.labels[positions]
        if not bool((classes == classes[:, :, :1]).all()):
            raise RuntimeError("learn2learn drew an episode that is not ordered by class")
        support, query = positions.split([self.shots, self.each - self.shots], 2)
        return EpisodeList(support.contiguous(), query.contiguous())


def _tasks(labels: list[int], ways: int, each: int) -> Any:
    from aal_bench.toolkits import learn2learn_import

    learn2learn_import.repair()
    try:
        from learn2learn.data import MetaDataset, Taskset
        from learn2learn.data.transforms import FusedNWaysKShots
    except ModuleNotFoundError as error:
        if error.name != "learn2learn":
            raise
        raise UserError(
            "few-shot tasks need learn2learn, which is not installed."
            " Mend: pip install 'aal-bench[fewshot]'"
        ) from error
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    fewest = min(map(len, members.values()), default=0)
    if len(members) < ways or fewest < each:
        raise UserError(
            f"episodes of {ways} classes with {each} images each do not fit {len(members)} classes"
            f" of {fewest} or more images"
        )
    data = MetaDataset(
        _Positions(labels), indices_to_labels=dict(enumerate(labels)), labels_to_indices=members
    )
    return Taskset(data, [FusedNWaysKShots(data, n=ways, k=each)], num_tasks=-1)


class _Positions(torch.utils.data.Dataset[tuple[int, int]]):
    """(position, label): all that learn2learn has to see of a split."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[int, int]:
        return position, self.labels[position]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
