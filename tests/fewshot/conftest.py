"""A few-shot set of six classes that a look tells apart, and small networks for it."""

from __future__ import annotations

import pytest
import torch

from aal_bench.config import Episodes, Normalisation
from aal_bench.data.splits import InMemory
from aal_bench.models.build import Classifier, build


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def split() -> InMemory:
    """Six classes of 20 images of 16 px; the classes differ in colour, images by noise."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(40, 216, (6, 3, 1, 1), generator=generator)
    labels = torch.arange(6).repeat(20)[torch.randperm(120, generator=generator)]
    noise = torch.randint(-40, 40, (120, 3, 16, 16), generator=generator)
    return InMemory((colours[labels] + noise).to(torch.uint8), labels)


@pytest.fixture
def network() -> Classifier:
    """A CNN4 of width 8 at 16 px, in eval mode."""
    torch.manual_seed(0)
    return build("cnn4-8", 6, 16, Normalisation()).eval()


@pytest.fixture
def config() -> Episodes:
    """3-way 2-shot, 4 queries of each class, 10 episodes."""
    return Episodes(ways=3, shots=2, queries=4, count=10)
