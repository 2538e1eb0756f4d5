"""Augmentation that depends on (seed, epoch, image) alone.

MMDetection's pipelines draw from numpy's and Python's global generators, so that an image's
augmentation depends on the number of workers and on what was drawn before. Here a killed run
continues with the same images, and one worker gives what eight give.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from mmdet.registry import DATASETS

from aal_bench.data.augment import mixed_seed
from aal_bench.data.subset import some


@DATASETS.register_module()
class SeededDataset:
    """Wraps a data set; every sample is drawn from a seed of its own.

    Args:
        dataset: the data set, or its config.
        seed: of the run.
        limit: use so many of the images, from everywhere in the set; None: all.
    """

    def __init__(self, dataset: Any, seed: int = 0, limit: int | None = None) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.seed, self.epoch = seed, 0
        self._chosen = some(len(self.dataset), limit)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Of the wrapped data set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Read the annotations."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The annotation of an image."""
        return self.dataset.get_data_info(int(self._chosen[index]))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Any:
        seed = mixed_seed(mixed_seed(self.seed, self.epoch), index) % 2**32
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  the generator that the pipelines draw from
        return self.dataset[int(self._chosen[index])]
