"""Prototypical networks (Snell et al. 2017, arXiv 1703.05175)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from aal_bench.methods.episodes import EpisodicMethod, EpisodicOptions


class ProtoNetOptions(EpisodicOptions):
    """Options of prototypical networks."""

    train_ways: int | None = Field(default=20, ge=2)
    """More ways than are tested: 30 for one shot and 20 for five in learn2learn's example."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Between a query's features and the prototypes; euclidean is squared."""


class ProtoNet(EpisodicMethod):
    """min_W CE(-|f(q) - c_k|^2, y), c_k the mean of the support features of class k.

    Head and training are the same; the classifier of the network is not used.
    """

    Options = ProtoNetOptions
    options: ProtoNetOptions
    train_defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "batch_size": 1,
        "schedule": "cosine",
    }

    @property
    def head(self) -> str:
        return "prototype"
