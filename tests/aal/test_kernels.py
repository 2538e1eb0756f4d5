import pytest
import torch

from aal_bench.aal.kernels import kernel, pool, repeat, slope, upsample, upsample_adjoint

KERNELS = ["m", "m2", "one_minus_m2"]


def test_kernels_are_the_papers():
    mask = torch.tensor([0.0, 0.5, 0.8, 1.0])
    assert torch.equal(kernel(mask, "m"), mask)
    torch.testing.assert_close(kernel(mask, "m2"), torch.tensor([0.0, 0.25, 0.64, 1.0]))
    torch.testing.assert_close(kernel(mask, "one_minus_m2"), torch.tensor([1.0, 0.75, 0.36, 0.0]))


@pytest.mark.parametrize("name", KERNELS)
def test_slope_is_autograds(name):
    mask = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(kernel(mask, name).sum(), mask)
    torch.testing.assert_close(slope(mask, name), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=["multiple", "uneven"])
@pytest.mark.parametrize(("up", "down"), [(repeat, pool), (upsample, upsample_adjoint)])
def test_each_way_down_is_the_adjoint_of_its_way_up(up, down, size):
    """<up(M), f> = <M, down(f)>, which is what makes a pooled gradient a gradient."""
    mask = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    field = torch.randn(2, 1, *size, dtype=torch.float64)
    torch.testing.assert_close((up(mask, size) * field).sum(), (mask * down(field, (4, 4))).sum())


def test_pool_is_the_cells_sum_or_mean():
    field = torch.arange(16.0).view(1, 1, 4, 4)
    assert pool(field, (2, 2)).flatten().tolist() == [10, 18, 42, 50]
    assert pool(field, (2, 2), "mean").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_equal_resolution_is_left_alone():
    field = torch.rand(1, 1, 4, 4)
    for resized in (upsample(field, (4, 4)), repeat(field, (4, 4)), pool(field, (4, 4))):
        assert resized is field


def test_upsampling_keeps_a_constant_and_the_range():
    assert torch.allclose(upsample(torch.full((1, 1, 3, 3), 0.3), (12, 12)), torch.tensor(0.3))
    raised = upsample(torch.rand(1, 1, 3, 3), (12, 12))
    assert raised.min() >= 0
    assert raised.max() <= 1
