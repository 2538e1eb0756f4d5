"""AAL around FGSM, PGD and TRADES: the specification's step, its switches and controls."""

import pytest
import torch
from torch.nn import functional as F

from aal_bench.aal.attention import gate_of, has_gate
from aal_bench.aal.options import Selective
from aal_bench.adapters.classification import cross_entropy
from aal_bench.errors import UserError
from aal_bench.methods.aal import AAL
from aal_bench.methods.base import Threat
from aal_bench.methods.pgd import PGD
from aal_bench.methods.trades import TRADES

EPS = 8 / 255
SWITCHES = [
    {"sign": "descent"},
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
    {"pgd_refresh": True},
    {"reduction": "mean"},
    {"pooling": "mean"},
    {"pooling": "image"},
    {"trigger": "rank_gt"},
    {"trigger": "minmax_gt"},
    {"trigger": "value_gt"},
    {"trigger": "all"},
    {"trigger": "signed"},
    {"zeta": 0.0},
    {"xi1": 0.1},
    {"xi2": 0.0},
    {"grad_norm": "maxabs"},
    {"detach_mask": False},
    {"detach_mask": False, "pgd_refresh": True},
    {"second_att": "inject_Ma"},
    {"second_att": "inject_M"},
    {"clamp_mask": (0.2, 0.9)},
    {"fgsm_step": "two"},
    {"start": "clean"},
    {"start": "uniform"},
    {"start": "uniform", "fgsm_step": "two"},
    {"start": "gaussian"},
    {"clean_weight": 0.5},
    {"craft_bn": "train"},
    {"gate": {"position": "post_conv1"}},
    {"gate": {"channel_gate": True}},
    {"gate": {"bn_weight_init": 1, "kernel_size": 3}},
    {"control": "const_mask_matched_mean"},
    {"control": "shuffled_mask"},
    {"control": "random_mask"},
    {"control": "full_mask_eps_scaled"},
    {"control": "gaussian_noise"},
    {"control": "no_gate"},
    {"control": "no_attack"},
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


IDLE = [
    ("aal-fgsm", {"pgd_refresh": True}),
    ("aal-fgsm", {"detach_mask": False, "pgd_refresh": True}),
    ("aal-pgd", {"fgsm_step": "two"}),
    ("aal-pgd", {"start": "uniform", "fgsm_step": "two"}),
]
"""Combinations that could not act: such a row would claim what it did not do."""


@pytest.mark.parametrize(("name", "options"), IDLE, ids=str)
def test_an_option_that_cannot_act_is_refused(make, name, options):
    with pytest.raises(UserError, match="method options without effect here"):
        make(name, **options)
    for control in ("no_gate", "no_attack"):
        with pytest.raises(UserError, match="without effect here: xi2"):
            make(name, control=control, xi2=0.0)
    for idle in ({"craft_bn": "train"}, {"clean_weight": 0.5}):
        with pytest.raises(UserError, match=f"without effect here: {next(iter(idle))}"):
            make(name, control="no_attack", **idle)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for name in ("aal-fgsm", "aal-pgd")
        for options in SWITCHES
        if (name, options) not in IDLE
    ],
    ids=str,
)
def test_every_switch_and_control_trains(toy, batch, make, update, train, name, options):
    method = make(name, Threat(EPS, EPS / 4, 3), **options)
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


def test_one_step_is_the_specification_written_out(toy, batch, make):
    """Pseudo-code of the default reading, for a mask of the image's own resolution."""
    method = make("aal-fgsm", gate={"bn_weight_init": 1})
    net = varied(method, toy()).eval()
    x = batch.x.clone().requires_grad_()
    with gate_of(net).reading() as reading:
        G = F.cross_entropy(net(x), batch.targets, reduction="sum")
    g, g_M = torch.autograd.grad(G, [x, reading.M])
    M = reading.M.detach()
    Mhat = M - batch.lr * g_M  # xi1 follows the learning rate
    delta, dM = EPS * g.sign(), Mhat - M
    r = (delta / (dM + 1e-5 * torch.where(dM < 0, -1.0, 1.0))).clamp(-1, 1)
    gamma_M = (g * r).sum(1, keepdim=True)
    severity = g.abs().sum(1, keepdim=True).flatten(1)
    least = severity.sort(descending=True).values[:, round(0.1 * 64) - 1]
    trigger = severity.view_as(M) >= least.view(-1, 1, 1, 1)
    Ma = torch.where(trigger, Mhat - 0.1 * gamma_M, Mhat).clamp(0, 1)
    expected = (batch.x + Ma**2 * delta).clamp(0, 1)
    torch.testing.assert_close(attack(method, net, batch), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(method.log["mask_shift"], (Mhat - M).abs().mean())
    torch.testing.assert_close(method.log["backtrack_shift"], (Ma - Mhat).abs().mean())
    torch.testing.assert_close(method.log["mean_k"], (Ma**2).mean())


def test_one_long_step_of_aal_pgd_from_the_image_is_aal_fgsm(toy, batch, make):
    gate = {"bn_weight_init": 1}
    one = make("aal-fgsm", gate=gate)
    net = varied(one, toy())
    many = make("aal-pgd", Threat(EPS, EPS, 1), start="clean", gate=gate)
    expected = attack(one, net, batch)
    torch.testing.assert_close(attack(many, net, batch), expected, rtol=0, atol=1e-15)


def test_a_random_start_keeps_the_step_that_was_asked_for(toy, batch, make):
    """A13 with A14: a step of 2/255 from a start in the masked box, not a step of eps."""
    method = make("aal-fgsm", fgsm_step="two", start="uniform", control="full_mask_eps_scaled")
    net = method.build(toy())
    x_adv = attack(method, net, batch)
    K = method.association.K[0, 0, 0, 0].item()
    assert abs(K - 0.25) < 1e-3  # CBAM's gate is 0.5 at the start (A18)
    torch.manual_seed(0)
    start = batch.x + EPS * K * torch.empty_like(batch.x).uniform_(-1, 1)
    assert (x_adv - start.clamp(0, 1)).abs().max() <= K * 2 / 255 + 1e-15


@pytest.mark.parametrize("around", ["plain", "awp"])
@pytest.mark.parametrize(("name", "base"), [("aal-fgsm", "fgsm"), ("aal-pgd", "pgd")])
def test_the_no_gate_control_is_the_wrapped_method_bit_for_bit(
    toy, batch, make, update, train, name, base, around
):
    ends = []
    for method in (make(name, control="no_gate"), make(base)):
        net = method.build(toy())
        losses = train(net, method, update(around), batch, steps=3)
        ends.append((losses, net.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert ends[0][1].keys() == ends[1][1].keys()
    assert all(torch.equal(ends[0][1][key], ends[1][1][key]) for key in ends[0][1])


@pytest.mark.parametrize("name", ["aal-fgsm", "aal-pgd"])
def test_the_no_attack_control_is_clean_training_of_the_gated_network(
    toy, batch, make, update, train, name
):
    """The gate alone: is it the surgery, and not the attack, that helps on clean images?"""
    gate = {"bn_weight_init": 1}
    control, gated, clean = make(name, control="no_attack", gate=gate), make(name, gate=gate), None
    net = varied(control, toy())
    assert has_gate(net)
    assert attack(control, net, batch) is batch.x
    assert net.counts == {"forward": 0, "to_input": 0, "to_weights": 0}
    losses = train(net, control, update("plain"), batch, steps=3)
    clean, other = make("standard"), varied(gated, toy())
    assert train(other, clean, update("plain"), batch, steps=3) == losses
    ends = net.state_dict(), other.state_dict()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not torch.equal(gate_of(net).conv.weight, gate_of(varied(gated, toy())).conv.weight)


@pytest.mark.parametrize("name", ["aal-fgsm", "aal-pgd"])
def test_the_gaussian_control_has_the_selective_perturbations_norm(toy, batch, make, name):
    gate = {"bn_weight_init": 1}
    noisy, selective = make(name, control="gaussian_noise", gate=gate), make(name, gate=gate)
    net = varied(noisy, toy())
    middle = batch._replace(x=0.4 + 0.2 * batch.x)  # the box does not clip
    noise = attack(noisy, net, middle) - middle.x
    found = attack(selective, net, middle) - middle.x
    norms = noise.flatten(1).norm(dim=1), found.flatten(1).norm(dim=1)
    torch.testing.assert_close(*norms)
    assert not torch.equal(noise, found)
    assert noisy.log["mean_k"] == selective.log["mean_k"]
    assert not attack(
        make(name, control="gaussian_noise", detach_mask=False), net, middle
    ).requires_grad


@pytest.mark.parametrize("control", ["none", "no_gate"])
def test_the_clean_weight_mixes_two_losses_in_the_control_too(toy, batch, make, control):
    method = make("aal-fgsm", clean_weight=0.3, control=control)
    net = method.build(toy())
    objective = cross_entropy(net)
    x_adv = attack(method, net, batch)
    clean, attacked = objective(batch.x, batch.targets), objective(x_adv, batch.targets)
    loss = method.loss(net, batch, x_adv, objective)
    torch.testing.assert_close(loss, 0.3 * clean + 0.7 * attacked)
    assert attacked > clean


@pytest.mark.parametrize("name", ["aal-fgsm", "aal-pgd"])
def test_without_detaching_the_loss_reaches_the_gate_through_the_attack(toy, batch, make, name):
    """xi1 = xi2 = 0 makes M^a = M, so finite differences know the whole dependence."""
    options = {"gate": {"bn_weight_init": 1}, "xi1": 0.0, "xi2": 0.0}
    method = make(name, Threat(EPS, EPS / 4, 3), detach_mask=False, **options)
    net = varied(method, toy()).eval()
    weight = gate_of(net).conv.weight
    x_adv = attack(method, net, batch)
    inside = (batch.x > 2 * EPS) & (batch.x < 1 - 2 * EPS)  # the image's box does not bind
    where = torch.randn(x_adv.shape, generator=torch.Generator().manual_seed(2)).double() * inside
    (through,) = torch.autograd.grad((x_adv * where).sum(), weight)
    assert through.abs().max() > 1e-4
    direction = torch.randn_like(weight)
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            weight += step * direction
        ends.append((attack(method, net, batch) * where).sum())
    slope = (ends[0] - ends[1]).item() / 2e-6
    assert slope == pytest.approx((through * direction).sum().item(), rel=1e-5)
    detached = make(name, Threat(EPS, EPS / 4, 3), **options)
    assert not attack(detached, net, batch).requires_grad


def test_a_kept_graph_is_declared(make):
    assert make("aal-pgd", detach_mask=False).keeps_graph
    assert not make("aal-pgd").keeps_graph
    assert not make("pgd").keeps_graph


def test_an_injected_mask_leaves_the_gate_untrained(toy, batch, make):
    for second_att, trained in (("recompute", True), ("inject_Ma", False), ("inject_M", False)):
        method = make("aal-fgsm", second_att=second_att, gate={"bn_weight_init": 1})
        net = method.build(toy())
        x_adv = attack(method, net, batch)
        method.loss(net, batch, x_adv, cross_entropy(net)).backward()
        assert (gate_of(net).conv.weight.grad is not None) == trained
        assert net.conv.weight.grad is not None


def test_craft_bn_is_the_wrapped_methods_unless_said_otherwise(toy, batch, make):
    for option, moves in (("inherit", False), ("eval", False), ("train", True)):
        method = make("aal-pgd", craft_bn=option)
        net = method.build(toy())
        before = net.norm.running_mean.clone()
        attack(method, net, batch)
        assert torch.equal(net.norm.running_mean, before) != moves


def test_a_network_without_a_place_for_the_gate_is_refused(make):
    with pytest.raises(UserError, match="no place for an attention gate"):
        make("aal-pgd").build(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))


class AALTRADES(AAL):
    base = TRADES


@pytest.mark.parametrize("start", ["inherit", "clean"])
def test_it_wraps_trades_label_free_ascent_and_both_losses(toy, batch, make, start):
    """The mask comes from the labelled clean pass; the steps ascend TRADES' divergence."""
    options = Selective(start=start, control="full_mask_eps_scaled")
    method = AALTRADES(options, Threat(EPS, EPS / 4, 10))
    net = method.build(toy())
    x_adv = attack(method, net, batch)
    assert net.counts == {"forward": 12, "to_input": 11, "to_weights": 0}
    net.eval()
    with torch.no_grad():
        p = net(batch.x).softmax(1)

        def divergence(x):
            return (p * (p.log() - net(x).log_softmax(1))).sum().item()

        assert method.association is not None
        K = method.association.K
        noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(5)).double()
        assert divergence(x_adv) > 3 * divergence((batch.x + EPS * K * noise.sign()).clamp(0, 1))
    loss = method.loss(net, batch, x_adv, cross_entropy(net))
    clean, attacked = net(batch.x), net(x_adv)
    kl = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, F.cross_entropy(clean, batch.targets) + 6 * kl)


class Remembering(PGD):
    """A wrapped method with per-sample state, an extra network and work around the step."""

    def __init__(self, options, threat):
        super().__init__(options, threat)
        self.seen, self.teacher = torch.zeros(6), torch.nn.Linear(2, 1)

    def extra_modules(self) -> dict[str, torch.nn.Module]:
        return {"teacher": self.teacher}

    def before_step(self, batch):
        self.seen[batch.idx] += 1

    def after_step(self, batch, x_adv):
        self.seen[batch.idx] *= 10

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class AALRemembering(AAL):
    base = Remembering


def test_what_the_wrapped_method_keeps_and_trains_survives_the_wrapping(toy, batch, update, train):
    def build() -> AALRemembering:
        return AALRemembering(Selective(), Threat(EPS, EPS / 4, 2))

    method, net = build(), toy()
    net = method.build(net)
    trained = list(method.param_groups(net))
    teacher = method.extra_modules()["teacher"]
    assert {id(p) for p in teacher.parameters()} <= {id(p) for p in trained}
    train(net, method, update("plain"), batch._replace(idx=torch.arange(6)), steps=2)
    assert method.state_dict()["seen"].tolist() == [110.0] * 6
    resumed = build()
    resumed.load_state_dict(method.state_dict())
    assert resumed.state_dict()["seen"].tolist() == [110.0] * 6


def test_only_a_gated_network_is_attacked_selectively(toy, make):
    assert has_gate(make("aal-pgd").build(toy()))
    assert not has_gate(make("aal-pgd", control="no_gate").build(toy()))
