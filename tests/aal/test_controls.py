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
    assert controls.controlled(K, "gaussian_noise") is K  # replaces the perturbation, not the mask
    for control in ("no_gate", "no_attack"):
        with pytest.raises(ValueError, match=f"{control}' has no mask"):
            controls.controlled(K, control)


class TestGaussianNoise:
    X = torch.full((3, 3, 8, 8), 0.5, dtype=torch.float64)
    EPS = torch.tensor([0.0, 0.01, 0.05], dtype=torch.float64).view(3, 1, 1, 1)
    """An attack that did nothing among them."""

    def test_each_image_has_noise_of_its_attacks_own_l2_norm_before_clipping(self):
        attacked = self.X + self.EPS * torch.randn(self.X.shape).sign()
        noise = controls.gaussian_noise(self.X, attacked) - self.X
        assert noise.abs().max() < 0.5  # nothing was clipped
        expected = (attacked - self.X).flatten(1).norm(dim=1)
        torch.testing.assert_close(noise.flatten(1).norm(dim=1), expected)
        assert expected[1].item() == pytest.approx(0.01 * (3 * 64) ** 0.5)
        assert noise.abs().amax((1, 2, 3))[1] > 0.01  # its Linf norm is larger

    def test_it_is_normal_and_without_any_place_or_sign_of_the_attack(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.full((2, 3, 64, 64), 0.5, dtype=torch.float64)
        attacked = x + 0.03 * torch.rand(x.shape, generator=generator, dtype=x.dtype)
        noise = (controls.gaussian_noise(x, attacked, generator) - x).flatten(1)
        z = noise / noise.std(1, keepdim=True)
        assert z.mean().abs() < 0.03
        assert z.pow(3).mean().abs() < 0.1
        assert (z.pow(4).mean() - 3).abs() < 0.2
        assert torch.corrcoef(torch.stack([noise[0], (attacked - x).flatten(1)[0]]))[0, 1] < 0.05

    def test_clipping_keeps_the_box_and_takes_some_of_the_norm(self):
        x = torch.zeros(1, 3, 8, 8)
        noisy = controls.gaussian_noise(x, x + 0.2, torch.Generator().manual_seed(0))
        assert noisy.min() == 0
        assert noisy.max() <= 1
        assert 0.6 < noisy.norm() / (0.2 * (3 * 64) ** 0.5) < 0.8  # half of the noise was below 0

    def test_the_generator_decides(self):
        attacked = self.X + self.EPS
        first, second, other = (
            controls.gaussian_noise(self.X, attacked, torch.Generator().manual_seed(seed))
            for seed in (0, 0, 1)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
