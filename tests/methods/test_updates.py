"""Adversarial weight perturbation against its published procedure: a proxy, one ascent step, v."""

import copy

import pytest
import torch
from torch import nn

from aal_bench.adapters.classification import cross_entropy
from aal_bench.errors import UserError
from aal_bench.methods.updates import frozen_statistics


def proxy_training(net, method, batch, gamma, steps, seed=7):
    """`steps` steps of the official procedure: weights of a copy step uphill, and lend their v."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    proxy = copy.deepcopy(net)
    ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
    torch.manual_seed(seed)
    for _ in range(steps):
        x_adv = method.attack(net, batch, cross_entropy(net))
        proxy.load_state_dict(net.state_dict())
        proxy.train()
        ascent.zero_grad()
        (-method.loss(proxy, batch, x_adv, cross_entropy(proxy))).backward()
        ascent.step()
        v = {}
        for name, old in net.state_dict().items():
            if old.ndim >= 2 and "weight" in name:
                moved = proxy.state_dict()[name] - old
                v[name] = gamma * old.norm() / (moved.norm() + 1e-20) * moved
        weights = dict(net.named_parameters())
        with torch.no_grad():
            for name in v:
                weights[name].add_(v[name])
        optimizer.zero_grad()
        method.loss(net, batch, x_adv, cross_entropy(net)).backward()
        optimizer.step()
        with torch.no_grad():
            for name in v:
                weights[name].sub_(v[name])
    return net.state_dict()


@pytest.mark.parametrize(
    ("name", "gamma"), [("pgd", 0.01), ("trades", 0.005), ("aal-pgd", 0.01), ("standard", 0.05)]
)
def test_awp_is_the_official_proxy_procedure(toy, batch, make, update, train, name, gamma):
    method = make(name)
    net = method.build(toy())
    expected = proxy_training(copy.deepcopy(net), method, batch, gamma, steps=5)
    train(net, method, update("awp", gamma=gamma), batch, steps=5)
    found = net.state_dict()
    assert found.keys() == expected.keys()
    for key in expected:  # running statistics included: the ascent must not have touched them
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-10, msg=key)
    plain = method.build(toy()) if name != "aal-pgd" else None
    if plain is not None:
        train(plain, method, update("plain"), batch, steps=5)
        assert (plain.conv.weight - found["conv.weight"]).abs().max() > 1e-5


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"warmup": 1.0}], ids=str)
def test_without_gamma_or_during_warm_up_awp_is_plain_bit_for_bit(
    toy, batch, make, update, train, options
):
    ends = []
    for around in (update("awp", **options), update("plain")):
        net, method = toy(), make("pgd")
        ends.append((train(net, method, around, batch, steps=3), net.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(ends[0][1][key], ends[1][1][key]) for key in ends[0][1])


def test_the_perturbation_has_length_gamma_per_layer_and_is_taken_back(toy, batch, make, update):
    net, method = toy(), make("standard")
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    seen = {}

    def look() -> None:
        for name, weight in net.named_parameters():
            seen[name] = (weight - before[name]).norm().item()

    def loss() -> torch.Tensor:
        return method.loss(net, batch, batch.x, cross_entropy(net))

    clean = loss().item()
    perturbed = update("awp", gamma=0.02)(net, loss, lambda value: value.backward(), look, 0.0)
    assert perturbed > clean  # the weights were moved uphill
    for name, weight in net.named_parameters():
        whole_layer = weight.ndim >= 2 and "weight" in name
        length = 0.02 * before[name].norm().item() if whole_layer else 0.0
        assert seen[name] == pytest.approx(length, rel=1e-9)
        torch.testing.assert_close(weight.data, before[name], rtol=1e-14, atol=1e-16)


def test_an_interrupted_step_leaves_the_weights_unperturbed(toy, batch, make, update):
    net, method = toy(), make("standard")
    before = net.conv.weight.detach().clone()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update("awp")(
            net,
            lambda: method.loss(net, batch, batch.x, cross_entropy(net)),
            lambda value: value.backward(),
            interrupted,
            0.0,
        )
    torch.testing.assert_close(net.conv.weight.data, before, rtol=1e-14, atol=1e-16)


def test_a_weight_that_the_loss_does_not_reach_is_left_alone(toy, batch, make, update, train):
    method = make("aal-fgsm", second_att="inject_Ma", gate={"bn_weight_init": 1})
    net = method.build(toy())
    gate_weight = next(p for n, p in net.named_parameters() if "conv.weight" in n and len(p) == 1)
    before = gate_weight.detach().clone()
    train(net, method, update("awp"), batch)
    assert torch.equal(gate_weight, before)  # neither perturbed nor trained
    frozen = toy()
    frozen.conv.weight.requires_grad_(False)
    before = frozen.conv.weight.clone()
    train(frozen, make("pgd"), update("awp"), batch)
    assert torch.equal(frozen.conv.weight, before)


def test_an_attack_that_keeps_its_graph_is_refused_and_the_mend_named(make, update):
    hiding = make("aal-pgd", detach_mask=False)
    with pytest.raises(UserError, match=r"method\.detach_mask=true, or use --update plain"):
        update("awp").check(hiding)
    for around, method in (
        (update("plain"), hiding),
        (update("awp", gamma=0.0), hiding),
        (update("awp"), make("aal-pgd")),
    ):
        around.check(method)


def test_frozen_statistics_normalise_with_the_batch_and_come_back_after_an_error():
    usual, cumulative = nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None)
    flat, stateless = nn.BatchNorm1d(3), nn.BatchNorm2d(3, track_running_stats=False)
    norms = nn.ModuleList([usual, cumulative, flat, stateless])
    x = torch.rand(4, 3, 2, 2) * 5
    expected = nn.functional.batch_norm(x, None, None, training=True)
    before = copy.deepcopy(norms.state_dict())

    def use_and_fail() -> None:
        with frozen_statistics(norms):
            for norm in (usual, cumulative, stateless):
                torch.testing.assert_close(norm(x), expected)
            flat(x[..., 0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    after = norms.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [norm.momentum for norm in norms] == [0.1, None, 0.1, 0.1]
    for norm in (usual, cumulative):
        norm(x)
        assert norm.num_batches_tracked == 1
