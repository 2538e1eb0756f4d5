"""Selective PGD against the specification's loop over delta, written out here."""

import pytest
import torch
from torch.nn import functional as F

from aal_bench.aal.attention import gate_of
from aal_bench.aal.iterated import selective_pgd, selective_pgd_refreshed, through_mask
from aal_bench.aal.options import Selective
from aal_bench.aal.selective import selective_fgsm
from aal_bench.attacks.linf import linf_pgd, uniform_start

EPS, ALPHA = 8 / 255, 2 / 255


@pytest.fixture
def task(gated, batch, clean_pass):
    """(net, x, objective, association)"""
    net, (x, y) = gated(), batch

    def objective(x_adv):
        return F.cross_entropy(net(x_adv), y, reduction="sum")

    return net, x, objective, clean_pass(net, x, y)


def test_masked_fgsm_is_one_step_of_masked_pgd(task):
    _, x, objective, found = task
    one = selective_pgd(linf_pgd, objective, x, found, EPS, EPS, 1, Selective())
    torch.testing.assert_close(one, selective_fgsm(x, found), rtol=0, atol=1e-15)


@pytest.mark.parametrize("sign", ["ascent", "descent"])
def test_masked_pgd_is_pgd_on_delta_under_a_fixed_mask(task, sign):
    """delta <- clip(delta + a sign(grad CE(x + K delta))), x' = x + K delta: 1.2's last lines."""
    _, x, objective, found = task
    delta, way = torch.zeros_like(x), 1 if sign == "ascent" else -1
    for _ in range(6):
        delta.requires_grad_()
        (g,) = torch.autograd.grad(objective(x + found.K * delta), delta)
        delta = (delta.detach() + way * ALPHA * g.sign()).clamp(-EPS, EPS)
    options = Selective(sign=sign)
    x_adv = selective_pgd(linf_pgd, objective, x, found, EPS, ALPHA, 6, options)
    torch.testing.assert_close(x_adv, x + found.K * delta, rtol=0, atol=1e-14)


@pytest.mark.parametrize("refresh", [False, True])
def test_the_budget_holds_from_a_random_start_at_the_boxs_edge(gated, batch, clean_pass, refresh):
    net, (x, y) = gated(2), batch
    x = (x * 5 - 2).clamp(0, 1)
    found = clean_pass(net, x, y)
    start = uniform_start(x, EPS * found.K)

    def objective(x_adv):
        return F.cross_entropy(net(x_adv), y, reduction="sum")

    def run(eps, steps, start):
        rest = (x, found, eps, ALPHA, steps, Selective())
        if refresh:
            return selective_pgd_refreshed(objective, gate_of(net), *rest, 0.1, start)
        return selective_pgd(linf_pgd, objective, *rest, start)

    x_adv = run(EPS, 4, start)
    limit = EPS if refresh else EPS * found.K
    assert (((x_adv - x).abs() - limit) <= 1e-15).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(run(0.0, 2, x), x)
    torch.testing.assert_close(run(EPS, 0, start), start, rtol=0, atol=1e-15)


@pytest.mark.parametrize("sign", ["ascent", "descent"])
def test_the_known_gradient_saves_the_first_pass(task, passes, sign):
    net, x, objective, found = task
    rest = (x, found, EPS, ALPHA, 3, Selective(sign=sign))
    plain = selective_pgd(linf_pgd, objective, *rest)
    seen = passes(net)
    told = selective_pgd(linf_pgd, objective, *rest, gradient=found.g)
    assert seen == {"forward": 2, "backward": 2}
    assert torch.equal(told, plain)


def test_ten_steps_cost_ten_passes_with_and_without_refresh(task, passes):
    net, x, objective, found = task
    start = uniform_start(x, EPS * found.K)
    rest = (x, found, EPS, ALPHA, 10, Selective())
    seen = passes(net)
    selective_pgd(linf_pgd, objective, *rest, start)
    assert seen == {"forward": 10, "backward": 10}
    selective_pgd_refreshed(objective, gate_of(net), *rest, 0.1, start)
    assert seen == {"forward": 20, "backward": 20}


def test_the_undetached_mask_gets_the_perturbation_as_its_gradient(gated, batch, clean_pass):
    net, (x, y) = gated(), batch

    def objective(x_adv):
        return F.cross_entropy(net(x_adv), y, reduction="sum")

    options = Selective(detach_mask=False)
    found = clean_pass(net, x, y, options)
    x_adv = selective_pgd(linf_pgd, objective, x, found, EPS, ALPHA, 4, options)
    (through,) = torch.autograd.grad(x_adv.sum(), found.K, retain_graph=True)
    delta = (x_adv - x).detach() / found.K.detach()
    torch.testing.assert_close(through, delta.sum(1, keepdim=True))
    (bias,) = torch.autograd.grad(x_adv.sum(), gate_of(net).bn.bias)
    assert bias.abs() > 1e-3
    fixed = selective_pgd(linf_pgd, objective, x, found, EPS, ALPHA, 4, Selective())
    assert torch.equal(x_adv, fixed)


def test_where_the_box_binds_the_mask_gets_no_gradient():
    x, K = torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.5], requires_grad=True)
    x_adv = through_mask(x, torch.tensor([0.0, 0.6]), K)
    (through,) = torch.autograd.grad(x_adv.sum(), K)
    torch.testing.assert_close(through, torch.tensor([0.0, 0.2]))


def test_refresh_with_an_unmoving_mask_is_the_fixed_mask_attack(task):
    """M pinned and no step in Eqs. 12-13: nothing is left to refresh."""
    net, x, objective, found = task
    still = Selective(gamma="none")
    with gate_of(net).pinned(found.M.requires_grad_()):
        constant = found._replace(K=found.M.detach() ** 2)
        rest = (x, constant, EPS, ALPHA, 4, still)
        renewed = selective_pgd_refreshed(objective, gate_of(net), *rest, 0.0)
        fixed = selective_pgd(linf_pgd, objective, *rest)
    torch.testing.assert_close(renewed, fixed, rtol=0, atol=1e-14)


def test_refresh_is_the_alternative_of_a5_written_out(gated, batch, clean_pass):
    """delta_t - delta_{t-1} over M_t - M_{t-1}, M_t read at x'_t, which K_{t-1} masks."""
    net, (x, y) = gated(), batch
    gate, options = gate_of(net), Selective(trigger="all", xi2=0.05)
    found = clean_pass(net, x, y, options)
    delta, M_before, K = torch.zeros_like(x), found.M, found.K
    for _ in range(3):
        M = gate.mask(net.act(net.conv(x + K * delta))).detach()
        z, pin = (x + K * delta).requires_grad_(), M.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)
        with gate.pinned(pin):
            loss = F.cross_entropy(net(z.detach()), y, reduction="sum")
        (g_mask,) = torch.autograd.grad(loss, pin)
        moved = (delta + ALPHA * g.sign()).clamp(-EPS, EPS)
        step = M - M_before
        r = ((moved - delta) / (step + torch.where(step < 0, -1e-5, 1e-5))).clamp(-1, 1)
        K = (M - 0.1 * g_mask - 0.05 * (g * r).sum(1, keepdim=True)).clamp(0, 1) ** 2
        delta, M_before = moved, M
    rest = (x, found, EPS, ALPHA, 3, options)
    renewed = selective_pgd_refreshed(
        lambda x_adv: F.cross_entropy(net(x_adv), y, reduction="sum"), gate, *rest, 0.1
    )
    torch.testing.assert_close(renewed, x + K * delta, rtol=0, atol=1e-9)


def test_refresh_moves_the_mask_with_the_image_and_can_carry_its_gradient(gated, batch, clean_pass):
    net, (x, y) = gated(), batch

    def objective(x_adv):
        return F.cross_entropy(net(x_adv), y, reduction="sum")

    def run(options):
        found = clean_pass(net, x, y, options)
        return selective_pgd_refreshed(
            objective, gate_of(net), x, found, EPS, ALPHA, 4, options, 0.1
        )

    renewed = run(Selective())
    found = clean_pass(net, x, y)
    fixed = selective_pgd(linf_pgd, objective, x, found, EPS, ALPHA, 4, Selective())
    assert (renewed - fixed).abs().max() > 1e-4
    assert not renewed.requires_grad
    carrying = run(Selective(detach_mask=False))
    torch.testing.assert_close(carrying, renewed)
    (bias,) = torch.autograd.grad(carrying.sum(), gate_of(net).bn.bias)
    assert bias.abs() > 1e-3
