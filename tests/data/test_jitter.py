"""The batched colour jitter, against torchvision's adjustments of one image at a time."""

from itertools import permutations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from aal_bench.data.jitter import color_jitter_, draw_jitter

ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)


def images(count: int, height: int, width: int) -> torch.Tensor:
    """Noise, with bright, dark and one-coloured images among it, which the clamps meet."""
    x = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    x[1] = x[1] * 0.2 + 0.8
    x[2] *= 0.2
    x[3], x[4], x[5] = 0, 1, torch.tensor([0.9, 0.5, 0.1])[:, None, None]
    return x


@pytest.mark.parametrize("shape", [(84, 84), (7, 5), (1, 1)])
def test_each_image_is_adjusted_as_torchvision_adjusts_it(shape: tuple[int, int]) -> None:
    x = images(60, *shape)
    factors, orders = draw_jitter(60, torch.Generator().manual_seed(1))
    ours = color_jitter_(x.clone(), factors, orders)
    for image, own, order, result in zip(x, factors, orders, ours, strict=True):
        for kind in order.tolist():
            image = ADJUST[kind](image, float(own[kind]))
        torch.testing.assert_close(result, image, atol=1e-6, rtol=0)


def test_every_order_and_the_ends_of_the_range_equal_torchvisions() -> None:
    x = images(48, 9, 9)
    ends = torch.cartesian_prod(*[torch.tensor([0.6, 1.4])] * 3)
    factors = ends.repeat(6, 1)
    orders = torch.tensor(list(permutations(range(3)))).repeat_interleave(8, 0)
    ours = color_jitter_(x.clone(), factors, orders)
    for image, own, order, result in zip(x, factors, orders, ours, strict=True):
        for kind in order.tolist():
            image = ADJUST[kind](image, float(own[kind]))
        torch.testing.assert_close(result, image, atol=1e-6, rtol=0)


def test_factors_of_one_change_nothing_and_work_is_done_in_place() -> None:
    x = images(8, 6, 6)
    before = x.clone()
    result = color_jitter_(x, torch.ones(8, 3), torch.arange(3).repeat(8, 1))
    assert result is x
    assert torch.equal(x, before)


def test_an_image_gets_the_same_bits_alone_and_in_a_batch_and_on_any_number_of_threads() -> None:
    x = images(12, 199, 201)  # more pixels than torch gives to one thread
    factors, orders = draw_jitter(12, torch.Generator().manual_seed(2))
    whole = color_jitter_(x.clone(), factors, orders)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for i in range(12):
            one = slice(i, i + 1)
            alone = color_jitter_(x[one].clone(), factors[one], orders[one])
            assert torch.equal(alone, whole[one])
    finally:
        torch.set_num_threads(threads)


def test_draws_have_the_distribution_of_torchvisions_color_jitter() -> None:
    factors, orders = draw_jitter(6000, torch.Generator().manual_seed(3))
    drawn = v2.ColorJitter(0.4, 0.4, 0.4)
    assert [drawn.brightness, drawn.contrast, drawn.saturation] == [(0.6, 1.4)] * 3
    assert 0.6 <= factors.min() < 0.601
    assert 1.399 < factors.max() <= 1.4
    # Standard error of a mean: 0.8 / sqrt(12 * 6000) = 0.003.
    torch.testing.assert_close(factors.mean(0), torch.ones(3), atol=0.015, rtol=0)
    correlation = torch.corrcoef(factors.T) - torch.eye(3)
    assert correlation.abs().max() < 0.06
    # Each of the six orders is expected 1000 times, standard deviation 29.
    found, counts = orders.unique(dim=0, return_counts=True)
    assert found.tolist() == [list(order) for order in permutations(range(3))]
    assert (counts - 1000).abs().max() < 150
