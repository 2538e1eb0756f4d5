"""The clean pass and the one-step attack: budget, independence, gradients through the mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from aal_bench.aal.attention import gate_of
from aal_bench.aal.kernels import slope
from aal_bench.aal.options import Selective
from aal_bench.aal.selective import (
    associative_mask,
    fgsm_step,
    perturbation,
    second_attention,
    selective_fgsm,
)

EPS = 8 / 255
CHOICES = {
    name: st.sampled_from(values)
    for name, values in {
        "sign": ["ascent", "descent"],
        "kernel": ["m", "m2", "one_minus_m2"],
        "gamma": ["elementwise", "row", "row_T", "matrix", "exact_mask", "none"],
        "ratio": ["signed_clip1", "abs_clip1", "one", "raw"],
        "trigger": ["top_frac", "rank_gt", "minmax_gt", "value_gt", "all", "signed"],
        "pooling": ["sum", "mean", "image"],
        "reduction": ["sum", "mean"],
        "grad_norm": ["none", "maxabs"],
        "control": ["none", "const_mask_matched_mean", "shuffled_mask", "random_mask"],
        "xi2": [0.0, 0.1, 10.0],
        "zeta": [0.0, 0.1, 1.0],
        "clamp_mask": [(0.0, 1.0), (0.2, 0.9)],
        "detach_mask": [True, False],
    }.items()
}


def test_eq1_ascends_and_its_printed_sign_descends():
    g = torch.tensor([[-3.0, 0.0, 2.0]])
    assert perturbation(g, 0.5).tolist() == [[-0.5, 0, 0.5]]
    assert torch.equal(perturbation(g, 0.5, "descent"), -perturbation(g, 0.5))


@pytest.mark.parametrize("stride", [1, 2], ids=["same-resolution", "half-resolution"])
def test_eta_stays_in_its_budget_for_every_combination_of_switches(
    gated, batch, clean_pass, stride
):
    net, (x, y) = gated(stride), batch

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.fixed_dictionaries(CHOICES), st.sampled_from([0.0, 1 / 255, EPS, 0.5]))
    def check(switches, eps):
        options = Selective(**switches)
        found = clean_pass(net, x, y, options, xi1=0.5, step=fgsm_step(eps, options))
        assert found.K.shape == (3, 1, 8, 8)
        assert found.K.min() >= 0
        assert found.K.max() <= 1
        x_adv = selective_fgsm(x, found)
        assert (((x_adv - x).abs() - found.K * eps) <= 1e-15).all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        if eps == 0:
            assert torch.equal(x_adv, x)

    check()


@pytest.mark.parametrize("pooling", ["sum", "mean", "image"])
@pytest.mark.parametrize("gamma", ["elementwise", "row", "matrix", "exact_mask"])
def test_a_sample_does_not_depend_on_its_batch(gated, batch, clean_pass, gamma, pooling):
    net, (x, y) = gated(2), batch
    options = Selective(gamma=gamma, pooling=pooling, grad_norm="maxabs")

    def masks(index):
        found = clean_pass(net, x[index], y[index], options)
        return torch.stack([selective_fgsm(x[index], found), found.K.expand_as(x[index])])

    whole, order = masks([0, 1, 2]), [2, 0, 1]
    torch.testing.assert_close(masks(order), whole[:, order], rtol=1e-12, atol=1e-14)
    split = torch.cat([masks([0]), masks([1, 2])], 1)
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-14)


def test_one_forward_and_one_backward_pass_is_all_it_takes(gated, batch, clean_pass, passes):
    net, (x, y) = gated(), batch
    seen = passes(net)
    selective_fgsm(x, clean_pass(net, x, y))
    assert seen == {"forward": 1, "backward": 1}


def test_the_gradients_are_those_of_two_separate_backward_passes(gated, batch, clean_pass):
    net, (x, y) = gated(), batch
    found = clean_pass(net, x, y, Selective(xi2=0.0), xi1=0.3)
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
    torch.testing.assert_close(found.g, g)
    mask = found.M.clone().requires_grad_()
    with gate_of(net).pinned(mask):
        loss = F.cross_entropy(net(x), y, reduction="sum")
    (g_mask,) = torch.autograd.grad(loss, mask)
    torch.testing.assert_close(found.Ma, (found.M - 0.3 * g_mask).clamp(0, 1))
    torch.testing.assert_close(found.K, found.Ma**2)


def test_the_mask_is_detached_by_default(gated, batch, clean_pass):
    net, (x, y) = gated(), batch
    found = clean_pass(net, x, y)
    assert not any(value.requires_grad for value in found)
    assert not selective_fgsm(x, found).requires_grad


def test_the_clean_pass_frees_its_graph_by_default_and_keeps_it_for_the_switch(gated, batch):
    net, (x, y) = gated(), batch
    x = x.clone().requires_grad_()
    for detach in (False, True):
        with gate_of(net).reading() as reading:
            loss = F.cross_entropy(net(x), y, reduction="sum")
        associative_mask(loss, x, reading.M, Selective(detach_mask=detach), 0.1, EPS)
        if detach:
            with pytest.raises(RuntimeError, match="second time"):
                torch.autograd.grad(loss, x)
        else:
            torch.autograd.grad(loss, x)


@pytest.mark.parametrize("kernel", ["m", "m2", "one_minus_m2"])
def test_the_switch_lets_the_gradient_through_the_mask(gated, batch, clean_pass, kernel):
    """d sum(x') / d(bias of the gate's BN) in closed form: sum k'(M^a) M(1-M) sum_c delta_c."""
    net, (x, y) = gated(), batch
    gate = gate_of(net)
    found = clean_pass(net, x, y, Selective(detach_mask=False, kernel=kernel))
    (through,) = torch.autograd.grad(selective_fgsm(x, found).sum(), gate.bn.bias)
    M, Ma = found.M.detach(), found.Ma.detach()
    assert ((Ma > 0) & (Ma < 1)).all()
    closed = slope(Ma, kernel) * M * (1 - M) * found.delta.sum(1, keepdim=True)
    torch.testing.assert_close(through, closed.sum().view(1))
    assert through.abs() > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "m"},
        {"kernel": "one_minus_m2"},
        {"gamma": "row"},
        {"gamma": "row_T"},
        {"gamma": "matrix"},
        {"gamma": "exact_mask"},
        {"gamma": "none"},
        {"ratio": "abs_clip1"},
        {"ratio": "one"},
        {"ratio": "raw"},
        {"trigger": "rank_gt"},
        {"trigger": "minmax_gt"},
        {"trigger": "value_gt"},
        {"trigger": "all"},
        {"trigger": "signed"},
        {"zeta": 0.5},
        {"xi1": 0.7},
        {"xi2": 0.5},
        {"reduction": "mean"},
        {"pooling": "mean"},
        {"pooling": "image"},
        {"grad_norm": "maxabs"},
        {"clamp_mask": (0.45, 0.55)},
        {"sign": "descent"},
        {"control": "const_mask_matched_mean"},
        {"control": "shuffled_mask"},
        {"control": "random_mask"},
        {"control": "full_mask_eps_scaled"},
    ],
    ids=str,
)
def test_every_switch_changes_the_mask(gated, batch, clean_pass, change):
    net, (x, y) = gated(2), batch
    options = Selective(**change)
    plain = clean_pass(net, x, y, Selective())
    found = clean_pass(net, x, y, options, xi1=options.descent_step(0.1))
    assert (found.K - plain.K).abs().max() > 1e-5


def test_the_log_scalars_are_means_on_the_device_and_a7_shrinks_with_the_batch(
    gated, batch, clean_pass
):
    net, (x, y) = gated(), batch
    found = clean_pass(net, x, y)
    assert found.descended.shape == found.backtracked.shape == found.budget.shape == ()
    torch.testing.assert_close(found.budget, found.K.mean())
    averaged = clean_pass(net, x, y, Selective(reduction="mean"))
    torch.testing.assert_close(averaged.descended * 3, found.descended)
    assert clean_pass(net, x, y, Selective(xi2=0.0)).backtracked == 0
    assert found.backtracked > 0


def test_descent_helps_the_network_and_ascent_hurts_it(gated, batch, clean_pass):
    net, (x, y) = gated(), batch

    def loss(sign):
        found = clean_pass(net, x, y, Selective(sign=sign), step=1e-3)
        return F.cross_entropy(net(selective_fgsm(x, found)), y).item()

    assert loss("descent") < F.cross_entropy(net(x), y).item() < loss("ascent")


def test_a13_the_step_of_two_is_clipped_by_eps():
    two = Selective(fgsm_step="two")
    assert fgsm_step(EPS, Selective()) == EPS
    assert fgsm_step(EPS, two) == 2 / 255
    assert fgsm_step(1 / 255, two) == 1 / 255
    per_sample = torch.tensor([EPS, 1 / 255], dtype=torch.float64)
    assert fgsm_step(per_sample, two).tolist() == [2 / 255, 1 / 255]


@pytest.mark.parametrize("pooling", ["sum", "image"])
def test_a11_the_training_pass_sees_the_mask_that_was_asked_for(gated, batch, clean_pass, pooling):
    net, (x, y) = gated(2), batch
    gate, found = gate_of(net), clean_pass(net, x, y, Selective(pooling=pooling, xi2=1.0))

    def seen(second_att):
        with (
            second_attention(gate, found, Selective(second_att=second_att)),
            gate.reading() as reading,
        ):
            net(1 - x)
        return reading.M

    assert torch.equal(seen("inject_M"), found.M)
    small = found.Ma if pooling == "sum" else F.avg_pool2d(found.Ma, 2)
    torch.testing.assert_close(seen("inject_Ma"), small)
    with gate.reading() as plain:
        net(1 - x)
    assert torch.equal(seen("recompute"), plain.M)


def test_a_broken_gradient_surfaces_in_the_image(gated, batch):
    net, (x, y) = gated(), batch
    x = x.clone().requires_grad_()
    with gate_of(net).reading() as reading:
        loss = F.cross_entropy(net(x), y, reduction="sum")
    loss = loss + (x[0, 0, 0, 0] * torch.nan)
    found = associative_mask(loss, x, reading.M, Selective(), 0.1, EPS)
    x_adv = selective_fgsm(x, found)
    assert x_adv[0, 0, 0, 0].isnan()
    assert x_adv[1:].isfinite().all()


def test_a_half_precision_gate_still_moves_its_mask(gated, batch, clean_pass):
    """Eq. 12's step is below bfloat16's resolution: masks and gradients are lifted to float32."""
    net, (x, y) = gated().float(), (batch[0].float(), batch[1])
    with torch.autocast("cpu", torch.bfloat16):
        found = clean_pass(net, x, y, xi1=1e-3)
    assert {value.dtype for value in found} == {torch.float32}
    assert 0 < found.descended < 1e-3
