"""Augmentation of a batch, against torchvision's of one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms import functional as tv

from aal_bench.data.augment import (
    augment_batch,
    augment_with_crops,
    draw_boxes,
    draw_crops,
    mixed_seed,
    padded_crop,
    resized_crop,
    to_unit,
)
from aal_bench.data.jitter import draw_jitter

IMAGES = torch.randint(
    0, 256, (40, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(9)
)


def test_resized_crop_is_torchvisions_crop_and_resize_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 32, 32, generator=generator)
    boxes, flip = draw_boxes(40, images.shape[-2:], generator)
    ours = resized_crop(images, boxes, flip)
    for image, box, mirrored, x in zip(images, boxes, flip, ours, strict=True):
        top, left, height, width = (int(v) for v in box)
        reference = tv.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        reference = tv.hflip(reference) if mirrored else reference
        torch.testing.assert_close(x, reference, atol=2e-5, rtol=0)
    assert 0 < int(flip.sum()) < 40


def test_boxes_have_the_distribution_of_torchvision() -> None:
    torch.manual_seed(0)
    count, image = 4000, torch.zeros(3, 32, 32)
    params = [
        RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)
    ]
    theirs = np.array(params, float)
    ours = draw_boxes(count, image.shape[-2:], torch.Generator().manual_seed(1))[0].double().numpy()
    # A mean's standard error is at most 7 pixels / sqrt(4000) = 0.11, 0.16 for a difference.
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.5)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.5)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 32).all()
    assert (ours[:, 1] + ours[:, 3] <= 32).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("pad", [0, 4])
def test_padded_crop_is_torchvisions_pad_crop_and_flip_of_each_image(
    pad: int, dtype: torch.dtype
) -> None:
    images = IMAGES.to(dtype)
    top, left, flip = draw_crops(40, pad, torch.Generator().manual_seed(0))
    ours = padded_crop(images, pad, top, left, flip)
    for image, t, l, mirrored, x in zip(images, top, left, flip, ours, strict=True):  # noqa: E741
        reference = tv.crop(tv.pad(image, [pad] * 4), int(t), int(l), 12, 10)
        assert torch.equal(x, tv.hflip(reference) if mirrored else reference)


@pytest.mark.parametrize("augment", ["shift", "crop-flip"])
def test_the_crops_say_how_every_image_was_made(augment: str) -> None:
    x, crops = augment_with_crops(IMAGES, augment, 3, seed=5, batch=7)
    assert crops is not None
    assert crops.pad == 3
    for image, top, left, mirrored, made in zip(to_unit(IMAGES), *crops[:3], x, strict=True):
        reference = tv.crop(tv.pad(image, [3] * 4), int(top), int(left), 12, 10)
        assert torch.equal(made, tv.hflip(reference) if mirrored else reference)
    for values, known in zip(crops[:3], (7, 7, 2 if augment == "crop-flip" else 1), strict=True):
        assert values.dtype == torch.int64
        assert set(values.tolist()) == set(range(known))


@pytest.mark.parametrize("augment", ["none", "jitter-crop-flip", "resized-crop-flip"])
def test_an_augmentation_that_is_more_or_less_than_crops_states_none(augment: str) -> None:
    assert augment_with_crops(IMAGES, augment, 3, seed=5, batch=7)[1] is None


@pytest.mark.parametrize(
    "augment", ["none", "shift", "crop-flip", "jitter-crop-flip", "resized-crop-flip"]
)
def test_asking_for_the_crops_changes_no_pixel(augment: str) -> None:
    given = (IMAGES, augment, 3, 5, 7)
    assert torch.equal(augment_with_crops(*given)[0], augment_batch(*given))


def test_a_jittered_batch_is_torchvisions_crop_jitter_and_flip_of_each_image() -> None:
    x = augment_batch(IMAGES, "jitter-crop-flip", 3, seed=5, batch=7)
    # The batch's own generator: crops and flips as in crop-flip, then factors and orders.
    generator = torch.Generator().manual_seed(mixed_seed(5, 7))
    top, left, flip = draw_crops(40, 3, generator)
    factors, orders = draw_jitter(40, generator)
    functional = v2.functional
    adjust = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    for i, image in enumerate(to_unit(IMAGES)):
        reference = tv.crop(tv.pad(image, [3] * 4), int(top[i]), int(left[i]), 12, 10)
        for kind in orders[i].tolist():
            reference = adjust[kind](reference, float(factors[i, kind]))
        reference = tv.hflip(reference) if flip[i] else reference
        torch.testing.assert_close(x[i], reference, atol=1e-6, rtol=0)
    assert (x.shape, x.dtype, x.is_contiguous()) == (IMAGES.shape, torch.float32, True)


def test_a_jittered_batch_depends_on_seed_and_number_alone() -> None:
    state = torch.get_rng_state()
    first, again, seed, number = (
        augment_batch(IMAGES, "jitter-crop-flip", 3, *which)
        for which in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, seed)
    assert not torch.equal(first, number)
    assert torch.equal(torch.get_rng_state(), state)


def test_jitter_takes_any_batch() -> None:
    channels_last = IMAGES.to(memory_format=torch.channels_last)
    expected = augment_batch(IMAGES, "jitter-crop-flip", 2, 0, 0)
    x = augment_batch(channels_last, "jitter-crop-flip", 2, 0, 0)
    assert torch.equal(x, expected)
    assert x.is_contiguous()
    assert augment_batch(IMAGES[:0], "jitter-crop-flip", 2, 0, 0).shape == (0, 3, 12, 10)


def test_seeds_of_neighbouring_batches_and_passes_do_not_meet() -> None:
    seeds = {mixed_seed(seed, number) for seed in range(50) for number in range(50)}
    assert len(seeds) == 2500
