"""What a batch of training episodes is, and the options of every method that trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from aal_bench.methods.base import Episodic, Method, Options, Outputs


@dataclass(frozen=True)
class EpisodeTargets:
    """The targets of a batch of `count` episodes of one shape.

    Its images lie episode by episode: the support set, class by class, then the queries, class by
    class. Within an episode the classes are 0..ways-1 in that order.
    """

    labels: Tensor
    """int64 (B,): classes in the training split."""
    count: int
    ways: int
    shots: int
    queries: int
    """Of each class."""

    def support(self, x: Tensor) -> Tensor:
        """(B, ...) -> (count, ways * shots, ...)."""
        return self._episodes(x)[:, : self.ways * self.shots]

    def query(self, x: Tensor) -> Tensor:
        """(B, ...) -> (count, ways * queries, ...)."""
        return self._episodes(x)[:, self.ways * self.shots :]

    def support_labels(self) -> Tensor:
        """int64 (ways * shots,), the same for every episode."""
        return episode_labels(self.ways, self.shots, self.labels.device)

    def query_labels(self) -> Tensor:
        """int64 (ways * queries,), the same for every episode."""
        return episode_labels(self.ways, self.queries, self.labels.device)

    def in_support(self) -> Tensor:
        """Bool (B,): which images are of a support set."""
        return (
            torch.arange(len(self.labels), device=self.labels.device)
            % (self.ways * (self.shots + self.queries))
            < self.ways * self.shots
        )

    def _episodes(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.count, -1))


def episode_labels(ways: int, each: int, device: torch.device | str = "cpu") -> Tensor:
    """0..ways-1, `each` times in a row: int64 (ways * each,)."""
    return torch.arange(ways, device=device).repeat_interleave(each)


class EpisodicOptions(Options):
    """Options of a method that trains on episodes."""

    train_ways: int | None = Field(default=None, ge=2)
    """Classes of a training episode; None: the task's ways."""
    train_shots: int | None = Field(default=None, ge=1)
    """Support images of each class; None: the task's shots."""
    train_queries: int = Field(default=15, ge=1)
    """Query images of each class."""
    episodes_per_epoch: int | None = Field(default=None, ge=1)
    """Training episodes that make an epoch; None: as many as hold as many images as the split."""

    def episodic(self, ways: int, shots: int) -> Episodic:
        """For a task of so many ways and shots."""
        return Episodic(
            self.train_ways or ways,
            self.train_shots or shots,
            self.train_queries,
            self.episodes_per_epoch,
        )


class EpisodicMethod(Method):
    """Base of methods that train on clean episodes, and answer by the head they trained with."""

    Options = EpisodicOptions
    attacks: ClassVar[bool] = False
    outputs: ClassVar[Outputs] = "features"

    def episodes(self, ways: int, shots: int) -> Episodic:
        assert isinstance(self.options, EpisodicOptions)
        return self.options.episodic(ways, shots)
