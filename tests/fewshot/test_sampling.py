"""Lists of episodes: what learn2learn draws, as positions in a split."""

import random

import pytest
import torch

from aal_bench.errors import UserError
from aal_bench.fewshot.sampling import EpisodeList, Sampler


def test_an_episode_has_distinct_classes_and_distinct_images(split):
    listed = Sampler(split.labels, ways=5, shots=3, queries=4).draw(50, seed=1)
    assert listed.support.shape == (50, 5, 3)
    assert listed.query.shape == (50, 5, 4)
    for support, query in zip(listed.support, listed.query, strict=True):
        together = torch.cat([support, query], 1)
        assert len(together.unique()) == 5 * 7
        classes = split.labels[together]
        assert bool((classes == classes[:, :1]).all())
        assert len(classes[:, 0].unique()) == 5


def test_every_class_and_every_image_is_drawn_equally_often(split):
    listed = Sampler(split.labels, ways=2, shots=1, queries=1).draw(6000, seed=0)
    drawn = torch.cat([listed.support, listed.query], 2)
    classes = split.labels[drawn[:, :, 0]].flatten().bincount(minlength=6)
    # 12,000 draws of six classes: sd of a count is sqrt(12000 / 6 * 5 / 6) = 41.
    assert (classes - 2000).abs().max() < 5 * 41
    images = drawn.flatten().bincount(minlength=120)
    assert (images - 200).abs().max() < 5 * 200**0.5


def test_a_seed_decides_the_list_and_a_shorter_one_begins_a_longer_one(split):
    sampler = Sampler(split.labels, ways=3, shots=1, queries=2)
    long, again, other = sampler.draw(40, 7), sampler.draw(40, 7), sampler.draw(40, 8)
    assert long.digest() == again.digest()
    assert long.digest() != other.digest()
    assert long.first(10).digest() == sampler.draw(10, 7).digest()


def test_the_digest_tells_support_from_query_and_shapes_apart(split):
    sampler = Sampler(split.labels, ways=3, shots=2, queries=2)
    listed = sampler.draw(4, 0)
    swapped = EpisodeList(listed.query, listed.support)
    reshaped = EpisodeList(listed.support.flatten(1), listed.query)
    assert len({part.digest() for part in (listed, swapped, reshaped)}) == 3


def test_the_global_generator_is_put_back(split):
    random.seed(3)
    expected = random.random()
    random.seed(3)
    Sampler(split.labels, ways=3, shots=1, queries=1).draw(5, seed=0)
    assert random.random() == expected


@pytest.mark.parametrize("shape", [{"ways": 7, "shots": 1, "queries": 1}, {"shots": 18}])
def test_what_does_not_fit_is_refused_with_the_numbers_that_are_there(split, shape):
    with pytest.raises(UserError, match="6 classes of 20 or more images"):
        Sampler(split.labels, **{"ways": 3, "shots": 1, "queries": 3} | shape)
