"""The pictures of a few-shot run: curves, accuracy over the episodes, one episode, the attack."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aal_bench import figures
from aal_bench.adapters.pictures import identity, is_selective, metrics, selective
from aal_bench.data.augment import to_unit
from aal_bench.evidence import Evidence
from aal_bench.figures.episodes import accuracy_over_episodes, one_episode
from aal_bench.methods.base import Method

if TYPE_CHECKING:
    from aal_bench.adapters.fewshot import FewShot

SHOWN = 5
"""Images in the picture of the selective attack."""


def draw(adapter: FewShot, method: Method, model: nn.Module, folder: Path) -> list[str]:
    """Draw into ``figures/``; returns the paths relative to `folder`."""
    target, told = folder / "figures", identity(adapter.run)
    target.mkdir(exist_ok=True)
    evidence = Evidence.load(folder / "evidence.npz")
    drawn = ["figures/episodes.png", "figures/episode.png"]
    _episodes(adapter, evidence, target / "episodes.png", told)
    _first(adapter, evidence, target / "episode.png", told)
    rows = metrics(folder / "metrics.jsonl")
    if rows:
        figures.training_curves(rows, target / "training.png", told)
        drawn.append("figures/training.png")
    if is_selective(method, model) and getattr(method.options, "reading", "F1") in {"F1", "F2"}:
        order = torch.arange(SHOWN)
        device = torch.device(adapter.run.device)
        images = next(
            adapter.images.train.batches(order, SHOWN, augment="none", pad=0, seed=0, device=device)
        )
        path = target / "selective_attack.png"
        selective(adapter, method, deepcopy(model), images, path, f"{told}\ntraining images")
        drawn.append("figures/selective_attack.png")
    return drawn


def _episodes(adapter: FewShot, evidence: Evidence, path: Path, told: str) -> None:
    stages: dict[str, Any] = {"clean": evidence.per_episode(evidence.clean_correct())}
    if evidence.stages:
        stages["under every attack"] = evidence.per_episode(evidence.robust())
    config = adapter.config
    accuracy_over_episodes(
        stages,
        path,
        chance=1 / config.ways,
        queries=config.ways * config.queries,
        title=f"{told}\n{len(adapter.episodes):,} episodes, {config.ways}-way {config.shots}-shot",
    )


def _first(adapter: FewShot, evidence: Evidence, path: Path, told: str) -> None:
    config, listed = adapter.config, adapter.episodes
    count = config.ways * config.queries
    shown, asked = (
        to_unit(adapter.test.pixels(part[0].flatten())).unflatten(0, part[0].shape)
        for part in (listed.support, listed.query)
    )
    predicted = evidence.clean_pred[:count].reshape(config.ways, config.queries)
    one_episode(
        shown[:, :SHOWN].numpy(),
        asked.numpy(),
        predicted,
        path,
        f"{told}\nthe first episode, without attack",
    )
