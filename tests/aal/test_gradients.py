import pytest
import torch

from aal_bench.aal.gradients import clip, full_precision, per_image_maxabs, surfacing_sign


def test_sign_surfaces_what_torch_hides():
    g = torch.tensor([-2.0, 0.0, 1e-38, torch.nan, torch.inf, -torch.inf])
    assert torch.sign(g)[3] == 0  # the reason: a NaN gradient would be a pixel left alone
    found = surfacing_sign(g)
    assert found[:3].tolist() == [-1, 0, 1]
    assert found[3:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_lifted_and_double_is_kept(dtype):
    assert surfacing_sign(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert full_precision(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_maxabs_makes_each_image_peak_at_one_and_leaves_zeros():
    g = torch.stack([torch.full((2, 3), -4.0), torch.zeros(2, 3), torch.arange(6.0).view(2, 3)])
    scaled = per_image_maxabs(g)
    assert scaled.abs().amax((1, 2)).tolist() == [1, 0, 1]
    assert torch.equal(scaled[2], g[2] / 5)


def test_clip_takes_tensors_and_keeps_nan():
    value = torch.tensor([[-3.0, 0.5, torch.nan]])
    assert clip(value, 1.0)[0, :2].tolist() == [-1, 0.5]
    assert clip(value, torch.tensor([[0.25]]))[0, :2].tolist() == [-0.25, 0.25]
    assert clip(value, torch.tensor([[0.25]]))[0, 2].isnan()
