"""Hybrid feature fusion: its four terms against MixStyle's two, and the law of its weights."""

import pytest
import torch

from aal_bench.again.fusion import HFF, adain, fusion, statistics, weights

SHAPE = (5, 3, 4, 6)


@pytest.fixture
def maps():
    """A and A' (5,3,4,6) of unlike means and deviations."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(2, *SHAPE[:2], 1, 1, dtype=torch.float64, generator=generator) + 0.5
    noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    shift = torch.randn(2, *SHAPE[:2], 1, 1, dtype=torch.float64, generator=generator)
    return tuple(scale * noise + shift)


def by_hand(channel):
    """Mean and deviation of one channel of one image, the deviation lifted as officially."""
    values = channel.flatten().tolist()
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, (variance + 1e-5) ** 0.5


def mixstyle(a, b, share):
    """The two-term form: A normalised, and given share of its own statistics + the rest of A''s."""
    out = torch.empty_like(a)
    for image in range(len(a)):
        for channel in range(a.shape[1]):
            (mean, deviation), (to_mean, to_deviation) = (
                by_hand(part[image, channel]) for part in (a, b)
            )
            own = float(share[image])
            new_deviation = own * deviation + (1 - own) * to_deviation
            new_mean = own * mean + (1 - own) * to_mean
            out[image, channel] = (a[image, channel] - mean) / deviation * new_deviation + new_mean
    return out


@pytest.mark.parametrize("kind", ["batch", "sample", "quarter"])
def test_the_four_terms_are_the_two_of_mixstyle_with_the_first_and_last_weight_together(maps, kind):
    """AdaIN's maps have their style's statistics but for the lift of 1e-5 in the variance.

    AdaIN(A, A') has the variance s'^2 v / (v + 1e-5) for v = var A: relatively 1e-5 / v off, and
    half of that in the deviation; v is above 0.1 here, so 4e-5 holds with a margin.
    """
    a, b = maps
    gamma = weights(kind, a)
    share = (gamma[:, 0] + gamma[:, 3]).expand(len(a))
    found, expected = fusion(a, b, gamma), mixstyle(a, b, share)
    assert (found - expected).abs().max() <= 4e-5 * expected.abs().max()
    assert (found - a).abs().max() > 0.01


def test_a_larger_lift_would_be_seen(maps):
    """The identity is no matter of loose tolerance: with small variances the lift tells."""
    a, b = (0.003 * part for part in maps)
    gamma = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    expected = mixstyle(a, b, torch.full((len(a),), 0.5))
    assert (fusion(a, b, gamma) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("own", [0, 3])
def test_the_weight_of_ones_own_statistics_leaves_the_features(maps, own):
    a, b = maps
    gamma = torch.eye(4)[own : own + 1]
    torch.testing.assert_close(fusion(a, b, gamma), a, rtol=0, atol=1e-4)


@pytest.mark.parametrize("other", [1, 2])
def test_the_weight_of_the_partner_s_statistics_is_adain(maps, other):
    a, b = maps
    found = fusion(a, b, torch.eye(4)[other : other + 1])
    torch.testing.assert_close(found, adain(a, b), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mean((2, 3)), b.mean((2, 3)), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.std((2, 3)), b.std((2, 3)), rtol=1e-4, atol=0)


def test_the_fused_map_keeps_the_pattern_and_takes_the_mixed_statistics(maps):
    a, b = maps
    gamma = weights("sample", a)
    found = fusion(a, b, gamma)
    four = [statistics(part) for part in (a, b, adain(a, b), adain(b, a))]
    mixed = [
        sum(gamma[:, i, None, None, None] * four[i][which] for i in range(4)) for which in (0, 1)
    ]
    torch.testing.assert_close(found.mean((2, 3), keepdim=True), mixed[0])
    torch.testing.assert_close(found.std((2, 3), keepdim=True), mixed[1], rtol=1e-4, atol=0)
    for ours, theirs in zip(found.flatten(0, 1), a.flatten(0, 1), strict=True):
        pair = torch.stack([ours.flatten(), theirs.flatten()])
        assert torch.corrcoef(pair)[0, 1] == pytest.approx(1)


def test_the_weights_are_dirichlet_and_lambda_is_beta_2_2():
    """Means 1/4, variances 3/80; of gamma_1 + gamma_4: 1/2 and 1/20."""
    torch.manual_seed(0)
    gamma = weights("sample", torch.zeros(200_000, 1)).double()
    assert (gamma >= 0).all()
    torch.testing.assert_close(gamma.sum(1), torch.ones(200_000).double(), rtol=0, atol=1e-6)
    share = gamma[:, 0] + gamma[:, 3]
    assert gamma.mean(0).sub(1 / 4).abs().max() < 0.002
    assert gamma.var(0).sub(3 / 80).abs().max() < 0.0005
    assert share.mean().item() == pytest.approx(1 / 2, abs=0.002)
    assert share.var().item() == pytest.approx(1 / 20, abs=0.0005)
    # Beta(2,2) has the distribution function 3 t^2 - 2 t^3.
    for t in (0.1, 0.25, 0.5, 0.8):
        below = (share <= t).double().mean().item()
        assert below == pytest.approx(3 * t**2 - 2 * t**3, abs=0.005)


def test_one_draw_serves_the_batch_or_each_image_has_its_own(maps):
    a, _ = maps
    assert weights("batch", a).shape == (1, 4)
    each = weights("sample", a)
    assert each.shape == (5, 4)
    assert each.unique(dim=0).shape == (5, 4)
    assert torch.equal(weights("quarter", a), torch.full((1, 4), 0.25))


def test_gradients_flow_through_all_statistics(maps):
    a, b = (part[:2, :2, :2, :2].clone().requires_grad_() for part in maps)
    gamma = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *pair: fusion(*pair, gamma), (a, b))
    to_partner = torch.autograd.grad(fusion(a, b, gamma).square().sum(), b)[0]
    assert to_partner.abs().max() > 1e-3


def test_a_map_of_one_pixel_mixes_means_and_stays_finite():
    """Its variance is 0: the unbiased formula would divide by zero pixels."""
    a = torch.randn(4, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 3, 1, 1, dtype=torch.float64)
    found = fusion(a, b, torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(found, 0.5 * a + 0.5 * b)
    assert torch.autograd.grad(found.sum(), a)[0].isfinite().all()


def test_half_precision_is_lifted_inside(maps):
    a, b = (part.bfloat16() for part in maps)
    gamma = weights("quarter", a)
    found = fusion(a, b, gamma)
    assert found.dtype == torch.bfloat16
    expected = fusion(a.double(), b.double(), gamma)
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)


# ---- the module -----------------------------------------------------------------------------


def test_outside_its_context_it_is_the_identity_and_draws_nothing(maps):
    hff, state = HFF(), torch.get_rng_state()
    assert hff(maps[0]) is maps[0]
    assert hff.train()(maps[0]) is maps[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert not hff.state_dict()


def test_the_partner_is_a_permuted_batch(maps):
    a, hff = maps[0], HFF()
    torch.manual_seed(4)
    order, gamma = torch.randperm(5), weights("batch", a)
    torch.manual_seed(4)
    with hff.attacked_pass():
        found = hff(a)
    assert torch.equal(found, fusion(a, a[order], gamma))
    assert (found - a).abs().max() > 0.01


def test_the_partner_is_the_clean_counterpart_and_is_forgotten(maps):
    (a, clean), hff = maps, HFF(partner="clean", gamma="quarter")
    with pytest.raises(RuntimeError, match="pass the clean batch first"), hff.attacked_pass():
        hff(a)
    with hff.clean_pass():
        assert hff(clean) is clean
    with hff.attacked_pass():
        found = hff(a)
    assert torch.equal(found, fusion(a, clean, torch.full((1, 4), 0.25)))
    with pytest.raises(RuntimeError, match="HFF fuses"), hff.attacked_pass():
        hff(a)


@pytest.mark.parametrize("options", [{}, {"gamma": "sample", "p": 0.5}], ids=str)
def test_a_clean_pass_is_fused_by_the_draws_of_the_attacked_one_that_follows(maps, options):
    """Equal images are equal afterwards; the next pair draws anew."""
    (a, other), hff, found = maps, HFF(**options), []
    for seed in range(20):
        torch.manual_seed(seed)
        with hff.clean_pass():
            found.append(hff(a))
        with hff.attacked_pass():
            assert torch.equal(hff(a), found[-1])
    assert len({float(each[0, 0, 0, 0]) for each in [*found, a]}) > 5
    torch.manual_seed(1)
    with hff.clean_pass():
        hff(a)
    with hff.attacked_pass():
        attacked = hff(other)
    torch.manual_seed(1)
    with hff.attacked_pass():
        assert torch.equal(hff(other), attacked)
    with hff.attacked_pass():
        assert not torch.equal(hff(other), attacked)


def test_with_p_one_half_every_other_pass_is_fused(maps):
    torch.manual_seed(0)
    a, hff = maps[0], HFF(p=0.5)
    with hff.attacked_pass():
        fused = [not torch.equal(hff(a), a) for _ in range(400)]
    assert sum(fused) == pytest.approx(200, abs=40)


def test_one_seed_one_fusion(maps):
    a, hff, found = maps[0], HFF(gamma="sample", p=0.5), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with hff.attacked_pass():
            found.append(torch.stack([hff(a) for _ in range(4)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
