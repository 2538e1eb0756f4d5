"""CAS against its formula, both gates and every loss written out in float64."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from aal_bench.adapters.classification import cross_entropy
from aal_bench.again.heads import all_logits
from aal_bench.config import Normalisation
from aal_bench.errors import UserError
from aal_bench.methods.base import Batch, Threat
from aal_bench.models.build import build

EPS, ALPHA = 8 / 255, 2 / 255


@pytest.fixture
def bare(toy):
    """bare(seed) -> the toy network, which says where class gates go."""

    def make_one(seed: int = 0):
        net = toy(seed)
        net.class_sites, net.classes = (("act", 4), ("body.2", 6)), 5
        return net

    return make_one


@pytest.fixture
def gated(bare, make):
    """gated(method, **options) -> the method, and the network that it built, in training mode."""

    def make_one(name: str = "cas", threat: Threat | None = None, **options):
        method = make(name, threat, **options)
        return method, method.build(bare())

    return make_one


def forward(net, x, y=None):
    """[final, first, second] logits; channels scaled by the weights of y, None: of the argmax."""
    net, logits = net.model, []

    def scaled(f, fc):
        logits.append(f.mean((2, 3)) @ fc.weight.T + fc.bias)
        return f * fc.weight[logits[-1].argmax(1) if y is None else y][:, :, None, None]

    f = F.silu(net.norm(net.conv(x * net.weight)))
    f = scaled(f, net.act.gate.fc)
    f = F.silu(net.body[1](net.body[0](f)))
    f = scaled(f, net.body[2].gate.fc)
    return [net.body[4](f.flatten(1)), *logits]


def nll(logits, labels):
    """Mean negative log-likelihood, by hand."""
    total = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total.append(math.log(math.fsum(math.exp(v - row[label]) for v in row)))
    return math.fsum(total) / len(total)


def test_the_loss_is_cross_entropy_plus_beta_times_the_heads_mean(gated, batch):
    x_adv = (batch.x + 0.05).clamp(0, 1)
    for beta in (0.0, 1.0, 2.0):
        method, net = gated(beta=beta)
        final, *auxiliary = [
            nll(each, batch.targets) for each in forward(net, x_adv, batch.targets)
        ]
        found = method.loss(net, batch, x_adv, cross_entropy(net)).item()
        assert math.isclose(found, final + beta * sum(auxiliary) / 2, rel_tol=1e-12)


def test_one_gate_on_the_last_map_only(gated, batch):
    method, net = gated(last_only=True)
    (gate,) = net.gates
    assert gate is net.model.body[2].gate
    plain = copy.deepcopy(net.model)
    f = F.silu(plain.norm(plain.conv(batch.x * plain.weight)))
    f = F.silu(plain.body[1](plain.body[0](f)))
    auxiliary = gate.fc(f.mean((2, 3)))
    final = plain.body[4]((f * gate.fc.weight[batch.targets][:, :, None, None]).flatten(1))
    found = method.loss(net, batch, batch.x, cross_entropy(net)).item()
    expected = nll(final, batch.targets) + 2 * nll(auxiliary, batch.targets)
    assert math.isclose(found, expected, rel_tol=1e-12)


def test_equal_auxiliary_weights_leave_the_network_s_answer(gated, bare, batch):
    """W = 1 everywhere scales nothing: labels and argmax have nothing to say."""
    (_, net), plain = gated(), bare()
    with torch.no_grad():
        for gate in net.gates:
            gate.fc.weight.fill_(1)
    with net.labelled(batch.targets):
        torch.testing.assert_close(net(batch.x), plain(batch.x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(net.eval()(batch.x), plain.eval()(batch.x), rtol=1e-12, atol=1e-13)


def numerically(net, method, batch, x_adv, weight, index, h=1e-6):
    """Central difference of the loss in one entry of a weight."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.view(-1)[index] += sign * h
            torch.manual_seed(5)
            values.append(method.loss(net, batch, x_adv, cross_entropy(net)).item())
            weight.view(-1)[index] -= sign * h
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cas", {}),
        ("again-pgd", {}),
        ("again-pgd", {"hff": {"partner": "clean", "gamma": "sample", "position": "each"}}),
        ("again-mart", {}),
        ("again-mart", {"mixing": "other", "hff": {"partner": "clean"}}),
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(gated, batch, name, options):
    method, net = gated(name, **options)
    x_adv = (batch.x + 0.05).clamp(0, 1)
    torch.manual_seed(5)
    loss = method.loss(net, batch, x_adv, cross_entropy(net))
    weights = dict(net.named_parameters())
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        index = int(gradient.abs().argmax())
        expected = numerically(net, method, batch, x_adv, weight, index)
        # A bias before a batch norm has no gradient beyond rounding.
        assert gradient.view(-1)[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-7), name


def attacked(net, batch, beta, start, steps, y=None):
    """Ascend the joint sum from `start` with the network written out; y: labels for the gates."""
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        final, *auxiliary = [
            F.cross_entropy(each, batch.targets, reduction="sum") for each in forward(net, x_adv, y)
        ]
        (g,) = torch.autograd.grad(final + beta * sum(auxiliary) / len(auxiliary), x_adv)
        x_adv = x_adv + ALPHA * g.sign()
        x_adv = torch.min(torch.max(x_adv, batch.x - EPS), batch.x + EPS).clamp(0, 1)
    return x_adv.detach()


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_the_attack_ascends_the_same_sum_with_gates_that_know_no_label(gated, batch, beta):
    method, net = gated(beta=beta)
    torch.manual_seed(0)
    start = (batch.x + EPS * torch.empty_like(batch.x).uniform_(-1, 1)).clamp(0, 1)
    expected = attacked(copy.deepcopy(net).eval(), batch, beta, start, 10)
    torch.manual_seed(0)
    x_adv = method.attack(net, batch, cross_entropy(net))
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    assert net.training
    assert all(weight.grad is None for weight in net.parameters())


def test_crafting_in_training_mode_opens_the_gates_by_the_labels(gated, batch):
    threat = Threat(EPS, ALPHA, 3)
    method, net = gated("cas", threat, craft_bn="train")
    torch.manual_seed(0)
    start = (batch.x + EPS * torch.empty_like(batch.x).uniform_(-1, 1)).clamp(0, 1)
    expected = attacked(copy.deepcopy(net), batch, 2.0, start, 3, batch.targets)
    torch.manual_seed(0)
    x_adv = method.attack(net, batch, cross_entropy(net))
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "around", "options", "passes"),
    [
        ("cas", "plain", {}, (11, 10, 1)),
        ("cas", "awp", {}, (12, 10, 2)),
        ("again-pgd", "plain", {}, (11, 10, 1)),
        ("again-pgd", "plain", {"hff": {"partner": "clean"}}, (12, 10, 2)),
        ("again-pgd", "plain", {"hff": {"partner": "clean", "p": 0}}, (11, 10, 1)),
        ("again-mart", "plain", {}, (12, 10, 2)),
        ("again-mart", "plain", {"hff": {"partner": "clean"}}, (12, 10, 2)),
        ("again-awp", "awp", {}, (12, 10, 2)),
    ],
    ids=str,
)
def test_a_step_costs_what_is_said(gated, batch, update, train, name, around, options, passes):
    method, net = gated(name, **options)
    train(net, method, update(around), batch)
    counts = net.model.counts
    assert (counts["forward"], counts["to_input"], counts["to_weights"]) == passes


@pytest.mark.parametrize("name", ["cas", "again-pgd", "again-mart"])
def test_one_seed_one_training(gated, batch, update, train, name):
    ends = []
    for seed in (7, 7, 8):
        method, net = gated(name, Threat(EPS, ALPHA, 2))
        with torch.no_grad():
            torch.manual_seed(0)
            for weight in net.parameters():  # the gates' own were drawn
                weight.normal_(std=0.3)
        losses = train(net, method, update("plain"), batch, steps=4, seed=seed)
        ends.append((losses, net.state_dict()))
    assert ends[0][0] == ends[1][0] != ends[2][0]
    assert all(torch.equal(ends[0][1][key], ends[1][1][key]) for key in ends[0][1])


@pytest.mark.parametrize("name", ["cas", "again-pgd", "again-mart", "again-awp"])
def test_it_trains_in_half_precision_with_losses_in_full(gated, batch, name):
    method, net = gated(name, Threat(EPS, ALPHA, 2))
    net.float()
    batch = batch._replace(x=batch.x.float())
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = method.attack(net, batch, cross_entropy(net))
        loss = method.loss(net, batch, x_adv, cross_entropy(net))
    assert x_adv.dtype == loss.dtype == torch.float32
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("name", ["cas", "again-pgd", "again-mart", "again-awp"])
def test_what_it_learns_is_answered_without_labels(gated, make, update, train, name):
    """The gates that the labels opened in training are found by the argmax later.

    The classes are colours, the very statistics that HFF exchanges: nothing is fused here.
    """
    torch.manual_seed(0)
    y = torch.arange(5).repeat(8)
    colours = torch.tensor([[9, 1, 1], [1, 9, 1], [1, 1, 9], [9, 9, 1], [1, 9, 9]]).double() / 10
    x = colours[y][:, :, None, None] + 0.02 * torch.randn(40, 3, 8, 8).double()
    coloured = Batch(x=x.clamp(0, 1), targets=y, idx=torch.arange(40), lr=0.1)
    options = {} if name == "cas" else {"hff": {"p": 0}}
    method, net = gated(name, Threat(0.02, 0.01, 2), **options)
    train(net, method, update(make(name).update), coloured, steps=80)
    net.eval()
    for logits in (net.logits(x), *net.auxiliary_logits(x)[-1:]):
        assert (logits.argmax(1) == y).double().mean() > 0.9


def test_a_network_without_places_for_gates_is_refused_and_others_named(make, toy):
    with pytest.raises(UserError, match=r"choose one of resnet18, .* wrn28"):
        make("cas").build(toy())


@pytest.mark.parametrize(
    ("name", "size"), [("wrn-10-1", 32), ("wrn-16-1", 32), ("cnn4-8", 16), ("resnet18", 32)]
)
def test_it_takes_a_step_on_networks_of_the_registry_and_loads_them_again(
    make, train, update, name, size
):
    """Built again from the registry, the state gives the same logits."""
    torch.manual_seed(0)
    method = make("again-mart", Threat(EPS, ALPHA, 1), mixing="other", hff={"position": "each"})
    net = method.build(build(name, 3, size, Normalisation())).train()
    x, y = torch.rand(2, 3, size, size), torch.tensor([0, 2])
    images = torch.arange(2)
    losses = train(net, method, update("awp"), Batch(x=x, targets=y, idx=images, lr=0.1), steps=2)
    assert all(map(math.isfinite, losses))
    torch.manual_seed(1)
    again = method.build(build(name, 3, size, Normalisation()))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x), net.eval()(x))
    assert len(again.auxiliary_logits(x)) == 2


def test_validation_attacks_the_joint_loss_too(gated, batch):
    """Its value at x is that of the plan's objective: the sum over every head."""
    method, net = gated("cas")
    net.eval()
    (weakness,) = method.weaknesses(net, batch.targets)
    plan = method.plan(net, batch, cross_entropy(net))
    x = batch.x + 0.01
    assert torch.equal(weakness(x), plan.objective(x))
    final, *auxiliary = (
        F.cross_entropy(logits, batch.targets, reduction="sum") for logits in all_logits(net, x)
    )
    torch.testing.assert_close(weakness(x), final + 2 * sum(auxiliary) / len(auxiliary))


def test_awp_perturbs_the_gates_weights_as_well(gated, batch, update):
    """As the official code of AGAIN does: they are weights of two dimensions."""
    method, net = gated("cas")
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    moved = {}

    def look():
        for name, weight in net.named_parameters():
            moved[name] = (weight - before[name]).norm() / before[name].norm()

    objective = cross_entropy(net)
    update("awp", gamma=0.02)(
        net,
        lambda: method.loss(net, batch, batch.x, objective),
        lambda value: value.backward(),
        look,
        0.5,
    )
    gates = [name for name in moved if name.endswith("gate.fc.weight")]
    assert len(gates) == 2
    for name in gates:
        assert moved[name].item() == pytest.approx(0.02, rel=1e-9)
