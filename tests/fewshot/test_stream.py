"""Training episodes as the loop takes them: numbered batches that can be begun anywhere."""

import torch

from aal_bench.fewshot.stream import EpisodeStream
from aal_bench.methods.base import Episodic

PLAN = Episodic(ways=3, shots=2, queries=4, per_epoch=5)


def passes(stream, batch_size=2, start=0, seed=11):
    return list(
        stream.batches(
            torch.arange(len(stream)),
            batch_size,
            augment="shift",
            pad=1,
            seed=seed,
            device="cpu",
            start=start,
        )
    )


def test_a_batch_holds_whole_episodes_support_first(split):
    batches = passes(EpisodeStream(split, PLAN))
    assert [batch.y.count for batch in batches] == [2, 2, 1]
    for batch in batches:
        targets = batch.y
        assert len(batch.x) == targets.count * 3 * (2 + 4)
        assert torch.equal(split.labels[batch.idx], targets.labels)
        for classes, asked in zip(
            targets.support(targets.labels), targets.query(targets.labels), strict=True
        ):
            of_way = classes[torch.arange(3) * 2]
            assert torch.equal(classes, of_way[targets.support_labels()])
            assert torch.equal(asked, of_way[targets.query_labels()])


def test_the_support_mask_is_the_support(split):
    batch = passes(EpisodeStream(split, PLAN))[0]
    marked = batch.idx[batch.y.in_support()]
    assert torch.equal(marked, batch.y.support(batch.idx).flatten())


def test_a_pass_begun_in_the_middle_continues_exactly(split):
    stream = EpisodeStream(split, PLAN)
    whole, rest = passes(stream), passes(stream, start=1)
    for expected, batch in zip(whole[1:], rest, strict=True):
        assert torch.equal(expected.x, batch.x)
        assert torch.equal(expected.idx, batch.idx)


def test_other_seeds_draw_other_episodes(split):
    stream = EpisodeStream(split, PLAN)
    assert not torch.equal(passes(stream)[0].idx, passes(stream, seed=12)[0].idx)


def test_in_place_of_images_it_takes_as_many_steps_as_they_would(split):
    stream = EpisodeStream(split, PLAN, steps_like=len(split))
    batches = passes(stream, batch_size=50)
    assert len(stream) == len(split)
    assert [batch.y.count for batch in batches] == [1, 1, 1]
