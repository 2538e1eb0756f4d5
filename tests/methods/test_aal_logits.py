"""AAL around TRADES and MART: their objectives inside the mask, their losses unchanged."""

import pytest
import torch
from torch.nn import functional as F

from aal_bench.aal.attention import gate_of, has_gate
from aal_bench.aal.selective import Association, associative_mask
from aal_bench.adapters.classification import cross_entropy
from aal_bench.errors import UserError
from aal_bench.methods.base import Plan, Threat
from aal_bench.training.passes import counting_passes

EPS = 8 / 255
SHORT = Threat(EPS, EPS / 4, 3)
WRAPPED = [("aal-trades", "trades"), ("aal-mart", "mart")]
SWITCHES = [
    {"sign": "descent"},
    {"kernel": "m"},
    {"kernel": "one_minus_m2"},
    {"gamma": "row"},
    {"gamma": "exact_mask"},
    {"ratio": "raw"},
    {"pgd_refresh": True},
    {"reduction": "mean"},
    {"pooling": "image"},
    {"trigger": "all"},
    {"zeta": 0.0},
    {"xi1": 0.1},
    {"xi2": 0.0},
    {"grad_norm": "maxabs"},
    {"detach_mask": False},
    {"detach_mask": False, "pgd_refresh": True},
    {"second_att": "inject_Ma"},
    {"second_att": "inject_M"},
    {"clamp_mask": (0.2, 0.9)},
    {"start": "clean"},
    {"start": "uniform"},
    {"clean_weight": 0.5},
    {"craft_bn": "train"},
    {"gate": {"position": "post_conv1"}},
    {"gate": {"channel_gate": True}},
    {"control": "const_mask_matched_mean"},
    {"control": "shuffled_mask"},
    {"control": "random_mask"},
    {"control": "full_mask_eps_scaled"},
    {"control": "gaussian_noise"},
    {"control": "no_gate"},
    {"control": "no_attack"},
    {"beta": 1.0, "start_std": 0.01},
]


def attack(method, net, batch, seed=0):
    torch.manual_seed(seed)
    return method.attack(net, batch, cross_entropy(net))


def varied(method, net):
    """The method's gated network with a mask that varies from place to place."""
    net = method.build(net)
    with torch.no_grad():
        gate_of(net).conv.weight.mul_(5)
    return net


@pytest.mark.parametrize("options", SWITCHES, ids=str)
@pytest.mark.parametrize("name", ["aal-trades", "aal-mart"])
def test_every_switch_and_control_trains(toy, batch, make, update, train, name, options):
    method = make(name, SHORT, **options)
    net = method.build(toy())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x_adv = attack(method, net, batch)
    if options.get("control") != "gaussian_noise":  # of an equal norm, another: L2
        assert (x_adv - batch.x).abs().max() <= EPS + 1e-15
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    losses = train(net, method, update("plain"), batch, steps=3)
    assert torch.tensor(losses).isfinite().all()
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert "conv.weight" in moved
    assert any(key.endswith("running_mean") for key in moved)
    assert all(weight.grad is None for weight in net.parameters())


@pytest.mark.parametrize(("name", "base"), WRAPPED)
def test_the_attack_is_the_wrapped_methods_inside_the_masked_box(toy, batch, make, name, base):
    """Written out: start, step and budget times K; TRADES' divergence or MART's cross-entropy."""
    method = make(name, SHORT, gate={"bn_weight_init": 1})
    net = varied(method, toy()).eval()
    x_adv = attack(method, net, batch)
    K = method.association.K
    assert K.std() > 1e-3
    with torch.no_grad():
        p = net(batch.x).softmax(1)
    torch.manual_seed(0)
    start = (batch.x + 0.001 * torch.randn_like(batch.x)).clamp(0, 1)
    expected = batch.x + K * (start - batch.x)
    for _ in range(3):
        expected = expected.detach().requires_grad_()
        log_q = net(expected).log_softmax(1)
        ascended = {
            "trades": (p * (p.log() - log_q)).sum(),
            "mart": -log_q.gather(1, batch.targets[:, None]).sum(),
        }[base]
        (slope,) = torch.autograd.grad(ascended, expected)
        stepped = expected + K * EPS / 4 * slope.sign()
        inside = torch.min(torch.max(stepped, batch.x - EPS * K), batch.x + EPS * K)
        expected = inside.clamp(0, 1)
    torch.testing.assert_close(x_adv, expected.detach(), rtol=0, atol=1e-12)


def test_the_mask_of_trades_comes_from_cross_entropy_on_the_labels(toy, batch, make):
    """Its own divergence has no gradient at the clean images, from which the mask is taken."""
    method = make("aal-trades", SHORT, gate={"bn_weight_init": 1})
    net = varied(method, toy()).eval()
    x = batch.x.clone().requires_grad_()
    with gate_of(net).reading() as reading:
        logits = net(x)
    constant = logits.detach().softmax(1)
    divergence = F.kl_div(logits.log_softmax(1), constant, reduction="sum")
    (none,) = torch.autograd.grad(divergence, x, retain_graph=True)
    assert none.abs().max() < 1e-14
    loss = F.cross_entropy(logits, batch.targets, reduction="sum")
    expected = associative_mask(loss, x, reading.M, method.options, batch.lr, EPS / 4)
    attack(method, net, batch)
    torch.testing.assert_close(method.association.K, expected.K, rtol=0, atol=1e-14)
    attack(method, net, batch._replace(targets=batch.targets.flip(0)))
    assert not torch.equal(method.association.K, expected.K)


@pytest.mark.parametrize(("name", "base"), WRAPPED)
@pytest.mark.parametrize("beta", [0.5, 6.0])
def test_the_loss_and_its_weight_are_the_wrapped_methods(toy, batch, make, name, base, beta):
    method = make(name, SHORT, beta=beta)
    net = method.build(toy())
    x_adv = attack(method, net, batch)
    found, expected = (
        which.loss(net, batch, x_adv, cross_entropy(net))
        for which in (method, make(base, beta=beta))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("name", "base"), WRAPPED)
@pytest.mark.parametrize("around", ["plain", "awp"])
def test_the_no_gate_control_is_the_wrapped_method_bit_for_bit(
    toy, batch, make, update, train, name, base, around
):
    ends = []
    options = {"beta": 2.0, "start_std": 0.01}  # they act without a gate, too
    for method in (make(name, SHORT, control="no_gate", **options), make(base, SHORT, **options)):
        net = method.build(toy())
        losses = train(net, method, update(around), batch, steps=3)
        ends.append((losses, net.state_dict()))
    assert not has_gate(net)
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(ends[0][1][key], ends[1][1][key]) for key in ends[1][1])


@pytest.mark.parametrize("second_att", ["inject_Ma", "inject_M"])
@pytest.mark.parametrize(("name", "beta"), [("aal-trades", 6.0), ("aal-mart", 5.0)])
def test_an_injected_mask_is_in_both_passes_so_that_equal_images_do_not_diverge(
    toy, batch, make, name, beta, second_att
):
    losses = []
    for weight in (0.0, beta):
        method = make(name, SHORT, second_att=second_att, beta=weight, gate={"bn_weight_init": 1})
        net = varied(method, toy()).eval()
        attack(method, net, batch)
        losses.append(method.loss(net, batch, batch.x, cross_entropy(net)))
        plain = make(name.removeprefix("aal-"), beta=weight)
        recomputed = plain.loss(net, batch, batch.x, cross_entropy(net))
        assert second_att == "inject_M" or not torch.equal(losses[-1], recomputed)
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["aal-trades", "aal-mart"])
def test_without_detaching_the_loss_reaches_the_gate_through_the_attack(toy, batch, make, name):
    method = make(name, SHORT, detach_mask=False, gate={"bn_weight_init": 1})
    assert method.keeps_graph
    net = varied(method, toy()).eval()
    x_adv = attack(method, net, batch)
    weight = gate_of(net).conv.weight
    through = [
        torch.autograd.grad(
            method.loss(net, batch, given, cross_entropy(net)), weight, retain_graph=True
        )[0]
        for given in (x_adv, x_adv.detach())
    ]
    assert (through[0] - through[1]).abs().max() > 1e-8


@pytest.mark.parametrize("name", ["aal-trades", "aal-mart"])
def test_an_option_that_cannot_act_is_refused(make, name):
    for idle in ({"fgsm_step": "two"}, {"control": "no_gate", "xi2": 0.0}):
        with pytest.raises(UserError, match="method options without effect here"):
            make(name, **idle)


@pytest.mark.parametrize("name", ["aal-trades", "aal-mart"])
def test_a_refreshed_mask_costs_no_further_pass(toy, batch, make, name):
    counts = []
    for refresh in (False, True):
        method = make(name, SHORT, pgd_refresh=refresh)
        net = method.build(toy())
        with counting_passes(net) as counted:
            attack(method, net, batch)
        counts.append(dict(counted))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("std", [0.001, 0.05])
def test_a_gaussian_start_is_as_wide_as_the_wrapped_methods(make, std):
    """Without a mask that confines it: K = 1 everywhere, x away from the box's edges."""
    method = make("aal-mart", start="gaussian", start_std=std)
    x = torch.full((64, 3, 8, 8), 0.5, dtype=torch.float64)
    plan = Plan(torch.sum, start=x, eps=1.0, alpha=1.0, steps=1)
    torch.manual_seed(0)
    open_mask = Association(*[x.new_ones(64, 1, 8, 8)] * len(Association._fields))
    start = method._start(x, plan, open_mask)
    assert (start - x).std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("start", ["clean", "uniform"])
def test_the_width_of_a_start_that_is_not_made_is_refused(make, start):
    with pytest.raises(UserError, match="without effect here: start_std"):
        make("aal-trades", start=start, start_std=0.05)
