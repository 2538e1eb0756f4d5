"""Batches of a split in memory: exact pixels, honest augmentation, resumable anywhere."""

import itertools

import pytest
import torch

from aal_bench.data.splits import InMemory

EVAL = {"augment": "none", "pad": 0, "seed": 0, "device": "cpu"}


@pytest.fixture
def split() -> InMemory:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return InMemory(images, torch.arange(300) % 10)


def everything(split, **options):
    order = torch.arange(len(split)).flip(0)
    return list(split.batches(order, 64, **{**EVAL, **options}))


def test_unaugmented_batches_are_the_pixels_over_255_in_the_order_asked_for(
    split: InMemory,
) -> None:
    batches = everything(split)
    assert [len(batch.x) for batch in batches] == [64, 64, 64, 64, 44]
    x, y, idx = (torch.cat([batch[i] for batch in batches]) for i in range(3))
    assert {batch.aug for batch in batches} == {None}
    assert idx.tolist() == list(range(299, -1, -1))
    assert torch.equal(y, split.labels[idx])
    assert torch.equal(x, split.pixels(idx).float() / 255)
    assert all(batch.x.dtype == torch.float32 and batch.x.is_contiguous() for batch in batches)


@pytest.mark.parametrize(("augment", "mirrored"), [("shift", False), ("crop-flip", True)])
def test_every_augmented_image_is_one_of_the_crops_and_all_crops_occur(
    split: InMemory, augment: str, mirrored: bool
) -> None:
    seen = set()
    for batch in everything(split, augment=augment, pad=1, seed=5):
        assert batch.x.is_contiguous()
        for x, i in zip(batch.x, batch.idx, strict=True):
            canvas = torch.zeros(3, 8, 8, dtype=torch.uint8)
            canvas[:, 1:7, 1:7] = split.pixels(i[None])[0]
            matches = [
                (top, left, flip)
                for top, left, flip in itertools.product(range(3), range(3), (False, True))
                if torch.equal((x * 255).round().byte(), _crop(canvas, top, left, flip))
            ]
            assert len(matches) == 1
            seen.update(matches)
    flips = (False, True) if mirrored else (False,)
    assert seen == set(itertools.product(range(3), range(3), flips))


def _crop(canvas: torch.Tensor, top: int, left: int, flip: bool) -> torch.Tensor:
    crop = canvas[:, top : top + 6, left : left + 6]
    return crop.flip(2) if flip else crop


@pytest.mark.parametrize("augment", ["none", "shift", "crop-flip", "resized-crop-flip"])
def test_a_pass_started_at_batch_b_equals_the_rest_of_a_full_pass(
    split: InMemory, augment: str
) -> None:
    whole = everything(split, augment=augment, pad=2, seed=3)
    for start in range(6):
        rest = everything(split, augment=augment, pad=2, seed=3, start=start)
        assert len(rest) == max(0, 5 - start)
        for a, b in zip(whole[start:], rest, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)  # the crops included


@pytest.mark.parametrize("augment", ["shift", "crop-flip", "resized-crop-flip"])
def test_seed_and_batch_number_change_the_augmentation(split: InMemory, augment: str) -> None:
    order = torch.zeros(128, dtype=torch.int64)  # one image, over and over
    options = {**EVAL, "augment": augment, "pad": 2}
    first, second = split.batches(order, 64, **{**options, "seed": 1})
    other, _ = split.batches(order, 64, **{**options, "seed": 2})
    assert not torch.equal(first.x, second.x)
    assert not torch.equal(first.x, other.x)


def test_batches_leave_the_global_generator_alone(split: InMemory) -> None:
    before = torch.get_rng_state()
    everything(split, augment="crop-flip", pad=1)
    everything(split, augment="resized-crop-flip")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subset_of_a_subset_knows_where_its_images_came_from(split: InMemory) -> None:
    part = split.subset(torch.tensor([7, 200, 13])).subset(torch.tensor([2, 0]))
    assert part.origin.tolist() == [13, 7]
    assert part.labels.tolist() == [3, 7]
    assert torch.equal(part.pixels(torch.tensor([0, 1])), split.pixels(torch.tensor([13, 7])))
    (batch,) = part.batches(torch.tensor([1]), 8, **EVAL)
    assert batch.idx.tolist() == [1]
    assert torch.equal(batch.x[0], split.pixels(torch.tensor([7]))[0] / 255)


def test_an_unknown_augmentation_is_an_error(split: InMemory) -> None:
    with pytest.raises(ValueError, match="mixup"):
        everything(split, augment="mixup")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", ["none", "shift", "crop-flip", "resized-crop-flip"])
def test_on_a_gpu_batches_are_the_same_and_never_wait_for_it(split: InMemory, augment: str) -> None:
    options = {"augment": augment, "pad": 2, "seed": 3}
    on_cpu = everything(split, **options)
    stream = split.batches(torch.arange(300).flip(0), 64, **{**EVAL, **options, "device": "cuda"})
    on_gpu = [next(stream)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu += list(stream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(b.x.cpu(), a.x, atol=1e-5, rtol=0)
        assert torch.equal(b.idx.cpu(), a.idx)
