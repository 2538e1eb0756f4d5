"""What is attacked in a few-shot stage: every episode's own classifier, an episode at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from aal_bench.data.augment import to_unit
from aal_bench.data.splits import Images
from aal_bench.fewshot.answer import support_of
from aal_bench.methods.episodes import episode_labels

if TYPE_CHECKING:
    from aal_bench.adapters.fewshot import FewShot


class EpisodeVictim:
    """The classifier of each episode and the queries of it that are to be attacked."""

    def __init__(self, adapter: FewShot, model: nn.Module) -> None:
        self.adapter, self.model = adapter, model
        self.device = torch.device(adapter.run.device)

    def batches(self, rows: np.ndarray) -> Iterator[tuple[Callable[[], nn.Module], Images]]:
        """Yield what fits an episode's classifier, and its queries among `rows`."""
        adapter = self.adapter
        episodes = rows // adapter.queries
        labels = episode_labels(adapter.config.ways, adapter.config.queries)
        for episode in np.unique(episodes):
            own = rows[episodes == episode]
            within = torch.from_numpy(own - episode * adapter.queries)
            positions = adapter.episodes.query[episode].flatten()[within]
            x = to_unit(adapter.test.pixels(positions).to(self.device))
            images = Images(x, labels[within].to(self.device), torch.from_numpy(own))
            yield (lambda episode=episode: self._classifier(int(episode))), images

    def _classifier(self, episode: int) -> nn.Module:
        adapter, head = self.adapter, self.adapter.head()
        support = support_of(
            adapter.test,
            adapter.episodes.support[episode],
            adapter.config,
            head.copies,
            self.device,
        )
        return head.classifier(self.model, support)
