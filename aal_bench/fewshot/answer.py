"""Test episodes answered: from kept features where the network stays, else one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from aal_bench.config import Episodes
from aal_bench.data.augment import to_unit
from aal_bench.data.copies import augmented_copies
from aal_bench.data.splits import InMemory
from aal_bench.fewshot.features import Features
from aal_bench.fewshot.heads.base import Head, Support
from aal_bench.fewshot.sampling import EpisodeList
from aal_bench.methods.episodes import episode_labels


def support_of(
    split: InMemory, positions: Tensor, config: Episodes, copies: bool, device: torch.device
) -> Support:
    """The support set of one episode.

    Args:
        split: the images.
        positions: int64 (ways, shots).
        config: of the task's episodes: how copies are made.
        copies: whether the head is fitted to augmented copies.
        device: where it is wanted.
    """
    flat = positions.flatten()
    pixels = split.pixels(flat).to(device)
    images = to_unit(pixels)
    made = (
        augmented_copies(pixels, flat, config.copies, config.augment, config.pad, config.seed)
        if copies
        else images[:, None]
    )
    labels = episode_labels(positions.shape[0], positions.shape[1], device)
    return Support(images, made, labels, positions.shape[0])


def answers(
    model: nn.Module,
    head: Head,
    split: InMemory,
    episodes: EpisodeList,
    config: Episodes,
    device: torch.device,
    advance: Callable[[int], object] = int,
    start: int = 0,
) -> Iterator[Tensor]:
    """Yield, for each episode from number `start` on, its logits (ways * queries, ways).

    Args:
        model: in eval mode, on `device`.
        head: of the method.
        split: that the episodes were drawn from.
        episodes: positions in it.
        config: how copies of the support images are made.
        device: of the model.
        advance: told the number of images whose features were extracted, after every batch.
        start: the first episode to answer. Features are those of the whole list all the same: in
            other batches they would round otherwise, and a continued stage end otherwise.
    """
    if not head.adapts:
        features = Features(model, split, device, advance)
        yield from _from_features(features, head, episodes, config, start)
        return
    for support, query in zip(episodes.support[start:], episodes.query[start:], strict=True):
        classifier = head.classifier(model, support_of(split, support, config, head.copies, device))
        with torch.no_grad():
            yield classifier(to_unit(split.pixels(query.flatten()).to(device)))


def images_read(head: Head, episodes: EpisodeList, config: Episodes) -> int:
    """How many images go through the network once before the episodes are answered."""
    if head.adapts:
        return 0
    copies = config.copies if head.copies and config.augment != "none" else 1
    return len(episodes.query.unique()) + copies * len(episodes.support.unique())


def _from_features(
    features: Features, head: Head, episodes: EpisodeList, config: Episodes, start: int
) -> Iterator[Tensor]:
    asked = features.of(episodes.query.unique())
    shown = episodes.support.unique()
    given = features.of_copies(shown, config) if head.copies else features.of(shown)
    ways = episodes.support.shape[1]
    for support, query in zip(episodes.support[start:], episodes.query[start:], strict=True):
        fitted = given[support]  # (ways, shots, copies, D)
        labels = episode_labels(ways, fitted.shape[1] * fitted.shape[2], features.device)
        with torch.no_grad():
            readout = head.fit(fitted.flatten(0, 2), labels, ways, features.model)
            yield readout(asked[query].flatten(0, 2))
