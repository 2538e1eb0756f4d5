"""Augmented copies: decided by seed, position and number of the copy, and drawn fairly."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from aal_bench.data.augment import to_unit
from aal_bench.data.copies import augmented_copies

SIZE = 12
IMAGES = torch.randint(
    0, 256, (30, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
POSITIONS = torch.randperm(200_000, generator=torch.Generator().manual_seed(1))[:30]
RANDOM = ["shift", "crop-flip", "jitter-crop-flip", "resized-crop-flip"]
every = pytest.mark.parametrize("augment", RANDOM)


def made(
    rows: slice | torch.Tensor = slice(None),
    *,
    copies: int = 4,
    augment: str,
    pad: int = 3,
    seed: int = 5,
):
    return augmented_copies(IMAGES[rows], POSITIONS[rows], copies, augment, pad, seed)


def transcribed(
    image: torch.Tensor, position: int, copy: int, augment: str, pad: int, seed: int
) -> torch.Tensor:
    """Make one copy slowly: the stream from its start, Python's numbers, torchvision."""
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(copy,)))
    words = [int(word) for word in stream.random_raw(32 * (position + 1))[-32:]]

    def below(count: int, word: int) -> int:
        return (words[word] >> 32) * count >> 32

    def between(low: float, high: float, word: int) -> float:
        return low + (high - low) * (words[word] >> 11) / 2**53

    x = image / 255
    if augment == "resized-crop-flip":
        top, left, height, width = 0, 0, SIZE, SIZE
        for attempt in range(10):
            area = between(0.08, 1, 7 + attempt) * SIZE * SIZE
            ratio = math.exp(between(math.log(3 / 4), math.log(4 / 3), 17 + attempt))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= SIZE and 0 < w <= SIZE:
                top = int(between(0, SIZE - h + 1, 1))
                left = int(between(0, SIZE - w + 1, 2))
                height, width = h, w
                break
        x = tv.resized_crop(x, top, left, height, width, [SIZE, SIZE], antialias=False)
    else:
        places = 2 * pad + 1
        x = tv.crop(tv.pad(x, [pad] * 4), below(places, 1), below(places, 2), SIZE, SIZE)
    if augment == "jitter-crop-flip":
        orders = ["bcs", "bsc", "cbs", "csb", "sbc", "scb"]
        adjust = {
            "b": lambda x: tv.adjust_brightness(x, between(0.6, 1.4, 3)),
            "c": lambda x: tv.adjust_contrast(x, between(0.6, 1.4, 4)),
            "s": lambda x: tv.adjust_saturation(x, between(0.6, 1.4, 5)),
        }
        for kind in orders[below(6, 6)]:
            x = adjust[kind](x)
    return tv.horizontal_flip(x) if augment != "shift" and below(2, 0) else x


@every
def test_copies_equal_a_plain_transcription(augment: str) -> None:
    positions = torch.randperm(3000, generator=torch.Generator().manual_seed(2))[:30]
    ours = augmented_copies(IMAGES, positions, 3, augment, 2, 8)
    assert ours.shape == (30, 3, 3, SIZE, SIZE)
    assert ours.dtype == torch.float32
    # Of the crops alone the pixels are exact; grid_sample rounds coordinates.
    atol = {"jitter-crop-flip": 1e-6, "resized-crop-flip": 2e-5}.get(augment, 0)
    for image, position, row in zip(IMAGES, positions.tolist(), ours, strict=True):
        for copy, x in enumerate(row):
            reference = transcribed(image, position, copy, augment, 2, 8)
            torch.testing.assert_close(x, reference, atol=atol, rtol=0)


@every
def test_a_copy_has_the_same_bits_in_every_batch_and_order(augment: str) -> None:
    whole = made(augment=augment)
    backwards = torch.arange(29, -1, -1)
    assert torch.equal(made(backwards, augment=augment), whole[backwards])
    for rows in (slice(3, 20), slice(7, 8), torch.tensor([2, 2, 29, 0])):
        assert torch.equal(made(rows, augment=augment), whole[rows])


@every
def test_fewer_copies_are_the_first_of_more(augment: str) -> None:
    assert torch.equal(made(copies=2, augment=augment), made(copies=5, augment=augment)[:, :2])


@every
def test_seeds_positions_and_copies_differ(augment: str) -> None:
    one = IMAGES[:1].expand(20, -1, -1, -1)
    settings = [(first, seed) for first in (0, 20) for seed in (0, 1, 2**32 - 1)]
    sets = [
        augmented_copies(one, torch.arange(first, first + 20), 5, augment, 5, seed)
        for first, seed in settings
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(sets) for b in sets[:i])
    different = {x.numpy().tobytes() for x in torch.cat(sets).flatten(0, 1)}
    # Of 600 copies: so small an image has few crops (shift: 11 * 11).
    fewest = {"shift": 100, "crop-flip": 180, "resized-crop-flip": 400, "jitter-crop-flip": 590}
    assert len(different) >= fewest[augment]


def test_no_augmentation_gives_each_image_once() -> None:
    assert torch.equal(made(copies=5, augment="none"), to_unit(IMAGES)[:, None])


def test_flips_and_crops_are_drawn_uniformly() -> None:
    """A single bright pixel in the left half tells where its image went."""
    side, pad, count = 16, 3, 4900
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    image[:, 8, 4] = 255
    images = image.expand(count // 5, -1, -1, -1)
    x = augmented_copies(images, torch.arange(count // 5), 5, "crop-flip", pad, 0)
    _, row, column = x[:, :, 0].flatten(0, 1).nonzero().T
    assert len(row) == count
    flip = column >= side // 2
    # 2450 flips are expected, standard deviation 35.
    assert abs(int(flip.sum()) - 2450) < 175
    across = torch.where(flip, side - 1 - column, column) - 4
    places = (row - 8 + pad) * 7 + across + pad
    counts = torch.bincount(places, minlength=49)
    assert len(counts) == 49
    # Chi-squared with 48 degrees of freedom: mean 48, standard deviation 9.8.
    assert float((counts - 100).square().sum() / 100) < 97
    # Neighbouring copies go to places that have nothing to do with each other.
    pairs = torch.stack([places[:-1], places[1:]]).double()
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.07


def test_jitter_has_the_mean_and_spread_of_torchvisions() -> None:
    image = IMAGES[:1]
    ours = augmented_copies(image, torch.tensor([7]), 3000, "jitter-crop-flip", 0, 0)[0]
    torch.manual_seed(0)
    transform = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4), v2.RandomHorizontalFlip()])
    theirs = torch.stack([transform(image[0] / 255) for _ in range(3000)])
    for statistic in (torch.mean, torch.std):
        a, b = statistic(ours, dim=0), statistic(theirs, dim=0)
        # Standard error of a pixel's mean: at most 0.5 / sqrt(3000) = 0.009, 0.013 of a difference.
        torch.testing.assert_close(a, b, atol=0.065, rtol=0)


def test_resized_crops_have_the_mean_and_spread_of_torchvisions() -> None:
    image = IMAGES[:1]
    ours = augmented_copies(image, torch.tensor([7]), 3000, "resized-crop-flip", 0, 0)[0]
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(SIZE, antialias=False)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])
    theirs = torch.stack([transform(image[0] / 255) for _ in range(3000)])
    for statistic in (torch.mean, torch.std):
        a, b = statistic(ours, dim=0), statistic(theirs, dim=0)
        torch.testing.assert_close(a, b, atol=0.065, rtol=0)


def test_crops_are_pinned_because_published_rows_rest_on_them() -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(4, 3, -1, -1)
    x = augmented_copies(image, torch.arange(4), 2, "crop-flip", 3, seed=0)
    # Two neighbours in the middle: 16 * row + column of where they come from; falling: mirrored.
    middle = (x[:, :, 0, 8, 7:9] * 255).round().int()
    assert middle.tolist() == [
        [[122, 121], [105, 104]],
        [[119, 120], [181, 180]],
        [[86, 85], [87, 86]],
        [[101, 102], [117, 118]],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copies": 0}, "copies"),
        ({"augment": "mixup"}, "mixup"),
        ({"positions": torch.arange(3)}, "positions"),
        ({"positions": torch.arange(-1, 29)}, "negative"),
    ],
)
def test_what_makes_no_sense_is_an_error(change: dict, message: str) -> None:
    options = {"copies": 2, "augment": "shift", "pad": 1, "seed": 0}
    with pytest.raises(ValueError, match=message):
        augmented_copies(**{"images": IMAGES, "positions": POSITIONS, **options, **change})
