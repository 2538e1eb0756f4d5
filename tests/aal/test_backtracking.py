"""Each equation against autograd or a closed form, in float64."""

import pytest
import torch

from aal_bench.aal import backtracking as eq
from aal_bench.aal.backtracking import Change
from aal_bench.aal.kernels import kernel, repeat, upsample
from aal_bench.aal.options import Selective

EPS, XI1, XI2 = 8 / 255, 0.1, 0.1


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mask(size=6, batch=2) -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(batch, 1, size, size, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_eq5_is_eq12_then_eq13():
    M, g_mask, through = mask(), normal(2, 1, 6, 6), normal(2, 1, 6, 6)
    both = eq.backtrack(eq.descend(M, g_mask, XI1), through, XI2)
    torch.testing.assert_close(eq.total_step(M, g_mask, through, XI1, XI2), both)


def test_eq12_with_step_one_lands_on_the_minimum_of_a_unit_quadratic():
    M, target = mask().requires_grad_(), mask()
    (g_mask,) = torch.autograd.grad(0.5 * ((M - target) ** 2).sum(), M)
    torch.testing.assert_close(eq.descend(M.detach(), g_mask, 1.0), target)


def test_eq6_and_eq7_the_mask_cancels_elementwise():
    M, g, r = mask(), normal(2, 3, 6, 6), normal(2, 3, 6, 6)
    torch.testing.assert_close(
        M * eq.decoupled_gradient(g, M) * r, eq.coupling_integrand(g, r), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("cell", [1, 2], ids=["same-resolution", "half-resolution"])
def test_elementwise_is_exact_where_delta_depends_on_its_own_mask_entry(cell):
    """A2: delta_cij = a_cij M_ij; the row readings are wrong by more than their own size."""
    M, a, target = mask().requires_grad_(), normal(2, 3, 6 * cell, 6 * cell), 3.0
    size = (6 * cell, 6 * cell)
    delta = a * repeat(M, size)
    G = ((delta - target) ** 4).sum()
    exact, g = torch.autograd.grad(G, (M, delta))
    M = M.detach()
    step = 0.01 * normal(2, 1, 6, 6)
    change = Change(g, delta.detach(), a * repeat(step, size), step)

    def error(gamma):
        found = eq.coupling(M, change, gamma, "raw")
        return ((found - exact).norm() / exact.norm()).item()

    assert error("elementwise") < 1e-12
    assert error("row") > 0.5
    assert error("row_T") > 0.5
    assert error("matrix") > 0.5


def test_row_reading_is_eq13s_stack_of_inner_products_times_rows():
    M, g, r = mask(4, 1), normal(1, 3, 4, 4), normal(1, 3, 4, 4)
    expected, expected_T = torch.zeros_like(M), torch.zeros_like(M)
    for m in range(4):
        for c in range(3):
            for n in range(4):
                expected[0, 0, m] += g[0, c, m, n] / M[0, 0, m, n] * r[0, c, m, n] * M[0, 0, m]
                expected_T[0, 0, m] += g[0, c, n, m] / M[0, 0, m, n] * r[0, c, m, n] * M[0, 0, m]
    cells = eq.coupling_integrand(g, r).sum(1, keepdim=True)
    torch.testing.assert_close(eq.row_coupling(cells, M), expected)
    torch.testing.assert_close(eq.transposed_row_coupling(g, r, M), expected_T)


def test_matrix_reading_satisfies_eq7_where_the_mask_is_invertible():
    """Tr(M G^ r) = <dG/d(delta), r>, with G^ = M^-1 g^T read off through r = 1 at one entry."""
    M = mask(4, 1) + 2 * torch.eye(4, dtype=torch.float64)
    g, r = normal(1, 1, 4, 4), normal(1, 1, 4, 4)
    hat = eq.matrix_coupling(g, torch.ones_like(r), M) / M
    torch.testing.assert_close(M @ hat, g.mT)
    trace = torch.einsum("bcij,bcji->", M @ hat, r)
    torch.testing.assert_close(trace, (g * r).sum())


def test_matrix_reading_survives_the_constant_mask_of_a_fresh_gate():
    half = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    assert eq.matrix_coupling(normal(2, 3, 4, 4), normal(2, 3, 4, 4), half).isfinite().all()


@pytest.mark.parametrize("gamma", ["row_T", "matrix"])
def test_readings_that_transpose_need_square_images(gamma):
    g = normal(1, 3, 4, 6)
    with pytest.raises(ValueError, match="square"):
        eq.coupling(g.new_ones(1, 1, 4, 6), Change(g, g, g, g[:, :1]), gamma)


@pytest.mark.parametrize("image", [6, 12], ids=["same-resolution", "upsampled"])
@pytest.mark.parametrize("name", ["m", "m2", "one_minus_m2"])
def test_exact_mask_is_the_chain_rule_through_the_kernel(name, image):
    """A4, and its sign to first order: >= 0 for m and m2, <= 0 for 1 - m2 under ascent."""
    M, g = mask().requires_grad_(), normal(2, 3, image, image)
    delta = EPS * g.sign()
    G = (g * upsample(kernel(M, name), (image, image)) * delta).sum()
    (exact,) = torch.autograd.grad(G, M)
    found = eq.coupling(M.detach(), Change(g, delta, delta, M.detach()), "exact_mask", kernel=name)
    torch.testing.assert_close(found, exact)
    assert (found * (-1 if name == "one_minus_m2" else 1) >= 0).all()


def test_change_ratio_follows_its_definition():
    change = torch.tensor([0.03, 0.03, -0.03, 0.03]).view(1, 1, 1, 4)
    moved = torch.tensor([1.0, -1.0, 1e-7, 0.0]).view(1, 1, 1, 4)
    found = {
        how: eq.change_ratio(change, moved, how).flatten()
        for how in ("signed_clip1", "abs_clip1", "one", "raw")
    }
    expected = torch.tensor([0.03 / 1.00001, -0.03 / 1.00001, -1.0, 1.0])  # sgn(0) = +1
    torch.testing.assert_close(found["signed_clip1"], expected)
    torch.testing.assert_close(found["abs_clip1"], expected.abs())
    assert found["one"].tolist() == [1] * 4
    torch.testing.assert_close(found["raw"][:3], torch.tensor([0.03, -0.03, -3e5]))
    assert found["raw"][3].isfinite()


@pytest.mark.parametrize(("sign", "towards"), [(1, True), (-1, False)], ids=["ascent", "printed"])
def test_with_ascent_the_backtracking_points_back_to_the_clean_mask_everywhere(sign, towards):
    """A1, reason (iii): with the printed sign it leads away, everywhere."""
    M, g_mask, g = mask(), normal(2, 1, 6, 6), normal(2, 3, 6, 6)
    options = Selective(trigger="all", xi2=1e-3)
    found = eq.associative_attention(M, g_mask, g, sign * EPS * g.sign(), options, XI1)
    back = (found.Ma - found.Mhat) * (found.Mhat - M) < 0
    assert back.all() if towards else not back.any()


def test_the_raw_ratio_has_a_closed_form_that_adds_the_loss_the_attack_gains():
    """A5: gamma o M = -eps sum_c|g_c| / (xi1 g_M), so g_M (M^a - M^) = (xi2/xi1) eps |g|_1."""
    M, g, g_mask = mask(), normal(2, 3, 6, 6), normal(2, 1, 6, 6)
    delta = EPS * g.sign()
    change = Change(g, delta, delta, eq.descend(M, g_mask, XI1) - M)
    coupled = eq.coupling(M, change, ratio="raw")
    torch.testing.assert_close(coupled, -EPS * g.abs().sum(1, keepdim=True) / (XI1 * g_mask))
    gained = (g_mask * (-XI2 * coupled)).sum()
    torch.testing.assert_close(gained, XI2 / XI1 * EPS * g.abs().sum())


@pytest.mark.parametrize(
    ("trigger", "zeta", "expected"),
    [
        ("top_frac", 0.25, [0, 0, 0, 0, 0, 0, 1, 1]),
        ("top_frac", 0.0, [0] * 8),
        ("rank_gt", 0.25, [0, 0, 1, 1, 1, 1, 1, 1]),
        ("minmax_gt", 0.3, [0, 0, 0, 1, 1, 1, 1, 1]),
        ("value_gt", 0.25, [0, 0, 1, 1, 1, 1, 1, 1]),
        ("all", 0.25, [1] * 8),
        ("signed", 0.125, [0, 0, 0, 0, 0, 1, 0, 0]),
    ],
)
def test_eq14s_trigger(trigger, zeta, expected):
    g = torch.tensor([-0.1, 0.2, 0.3, -0.4, 0.6, 0.7, -0.8, -0.9]).view(1, 1, 2, 4)
    found = eq.triggered(eq.severity(g, (2, 4), trigger), trigger, zeta)
    assert found.flatten().int().tolist() == expected


def test_the_trigger_ranks_each_image_by_itself_and_over_its_channels():
    g = torch.rand(2, 3, 4, 4) * torch.tensor([1.0, 1000.0]).view(2, 1, 1, 1)
    chosen = eq.triggered(eq.severity(g, (4, 4)), "top_frac", 0.1).flatten(1)
    order = g.abs().sum(1).flatten(1).argsort(1, descending=True)
    assert chosen.sum(1).tolist() == [2, 2]
    assert chosen.gather(1, order[:, :2]).all()


def test_eq14_takes_p_where_triggered_and_clamps():
    M, P = torch.tensor([0.5, -0.2, 1.3, 0.4]), torch.tensor([0.1, 0.2, 0.3, 1.7])
    chosen = torch.tensor([True, False, False, True])
    assert eq.associate(chosen, P, M).tolist() == pytest.approx([0.1, 0.0, 1.0, 1.0])


@pytest.mark.parametrize("trigger", ["top_frac", "value_gt"])
@pytest.mark.parametrize("pooling", ["sum", "mean", "image"])
def test_the_default_reading_is_the_specifications_pseudo_code(pooling, trigger):
    """Eqs. 12-14 written out with other torch operations; the mask at half the resolution."""
    M, g_mask, g = mask(4), normal(2, 1, 4, 4), 0.3 * normal(2, 3, 8, 8)
    options = Selective(pooling=pooling, trigger=trigger, zeta=0.75)
    found = eq.associative_attention(M, g_mask, g, EPS * g.sign(), options, XI1)

    Mhat, big = M - XI1 * g_mask, 8
    Mhat_big = Mhat.repeat_interleave(2, 2).repeat_interleave(2, 3)
    M_big = M.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if pooling == "image":
        up = torch.nn.Upsample((big, big), mode="bilinear")
        M_big, Mhat_big, Mhat = up(M), up(Mhat), up(Mhat)
    moved = Mhat_big - M_big
    r = torch.clip(EPS * g.sign() / (moved + 1e-5 * torch.where(moved < 0, -1, 1)), -1, 1)
    gam, sev = (g * r).sum(1, keepdim=True), g.abs().sum(1, keepdim=True)
    if pooling != "image":
        shrink = torch.nn.AvgPool2d(2)
        scale = 4 if pooling == "sum" else 1
        gam, sev = scale * shrink(gam), scale * shrink(sev)
    least = sev.flatten(1).sort(1).values[:, -round(0.75 * sev[0].numel())].view(2, 1, 1, 1)
    severe = sev >= least if trigger == "top_frac" else sev > 0.75
    Ma = torch.where(severe, Mhat - XI2 * gam, Mhat).clamp(0, 1)
    torch.testing.assert_close(found.Ma, Ma)
    torch.testing.assert_close(found.Mhat, Mhat)


def test_refresh_uses_the_changes_between_iterates():
    M, before, g_mask, g = mask(), mask(), normal(2, 1, 6, 6), normal(2, 3, 6, 6)
    delta, delta_before = normal(2, 3, 6, 6), normal(2, 3, 6, 6)
    options = Selective(trigger="all", ratio="raw", clamp_mask=(0, 1), xi2=1e-4)
    found = eq.associative_attention(
        M, g_mask, g, delta, options, XI1, before=(delta_before, before)
    )
    coupled = (g * (delta - delta_before) / (M - before)).sum(1, keepdim=True)
    torch.testing.assert_close(found.Ma, (M - XI1 * g_mask - 1e-4 * coupled).clamp(0, 1))
