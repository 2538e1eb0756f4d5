import pytest
import torch

from aal_bench.aal import controls


@pytest.fixture(params=[0.02, 0.3, 0.55, 0.97], ids=lambda mean: f"mean-{mean}")
def K(request):
    torch.manual_seed(0)
    spread = min(request.param, 1 - request.param)
    noise = 2 * torch.rand(3, 1, 8, 8, dtype=torch.float64) - 1
    return request.param + spread * noise * torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)


def means(mask):
    return mask.mean((1, 2, 3))


@pytest.mark.parametrize(
    "control", ["const_mask_matched_mean", "shuffled_mask", "random_mask", "full_mask_eps_scaled"]
)
def test_every_control_spends_the_same_mean_budget_inside_the_unit_interval(K, control):
    found = controls.controlled(K, control)
    assert found.shape == K.shape
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(found.mean(), K.mean())
    if control != "full_mask_eps_scaled":
        torch.testing.assert_close(means(found), means(K))


def test_constants_are_constant_per_image_and_per_batch(K):
    per_image = controls.const_mask_matched_mean(K).flatten(1)
    assert (per_image.amax(1) == per_image.amin(1)).all()
    whole = controls.full_mask_eps_scaled(K)
    assert whole.amax() == whole.amin()


def test_shuffling_keeps_each_images_values_and_moves_them(K):
    found = controls.shuffled_mask(K, torch.Generator().manual_seed(0)).flatten(1)
    assert torch.equal(found.sort(1).values, K.flatten(1).sort(1).values)
    assert not torch.equal(found[1:], K.flatten(1)[1:])


def test_random_masks_vary_within_and_between_images_and_follow_the_generator(K):
    first = controls.random_mask(K, torch.Generator().manual_seed(0))
    assert (first.flatten(1).std(1) > 0).all()
    assert not torch.equal(first[0] - first[0].mean(), first[1] - first[1].mean())
    assert torch.equal(first, controls.random_mask(K, torch.Generator().manual_seed(0)))


def test_no_gate_has_no_mask_and_none_changes_nothing(K):
    assert controls.controlled(K, "none") is K
    with pytest.raises(ValueError, match="ungated"):
        controls.controlled(K, "no_gate")
