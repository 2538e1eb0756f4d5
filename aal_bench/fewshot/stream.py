"""Training episodes in the shape in which the training loop takes images: numbered batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aal_bench.data.augment import mixed_seed
from aal_bench.data.splits import Images, InMemory, cut
from aal_bench.fewshot.sampling import Sampler
from aal_bench.methods.base import Episodic
from aal_bench.methods.episodes import EpisodeTargets


class EpisodeStream:
    """Batches of episodes; batch b of a pass depends on the seed and b, never on those before.

    Args:
        split: the training images.
        plan: shape and number of the episodes.
        steps_like: take as many steps as a pass over so many images would, one episode each; None:
            ``plan.per_epoch`` episodes, which must be given, `batch_size` of them a step.
    """

    def __init__(self, split: InMemory, plan: Episodic, steps_like: int | None = None) -> None:
        length = plan.per_epoch if steps_like is None else steps_like
        if length is None:
            raise ValueError("an epoch of episodes needs a length: per_epoch, or steps_like")
        self.split, self.plan, self.steps_like = split, plan, steps_like
        self._length = length
        self.sampler = Sampler(split.labels, plan.ways, plan.shots, plan.queries)

    def __len__(self) -> int:
        """Return what the loop divides by the batch size: episodes, or images to be like."""
        return self._length

    def batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        augment: str,
        pad: int,
        seed: int,
        device: torch.device | str,
        start: int = 0,
    ) -> Iterator[Images]:
        """Yield batches as `data.splits.Split.batches` does, their `y` an `EpisodeTargets`.

        Of `order` only the length counts: episodes have no order.
        """
        ways, shots, queries = self.plan[:3]
        for number, part in cut(order, batch_size, start):
            count = 1 if self.steps_like is not None else len(order[part])
            own = mixed_seed(seed, number)
            listed = self.sampler.draw(count, own)
            positions = torch.cat([listed.support.flatten(1), listed.query.flatten(1)], 1)
            images = next(
                self.split.batches(
                    positions.flatten(),
                    positions.numel(),
                    augment=augment,
                    pad=pad,
                    seed=own,
                    device=device,
                )
            )
            targets = EpisodeTargets(images.y, count, ways, shots, queries)
            yield images._replace(y=targets)  # pyright: ignore[reportArgumentType]
