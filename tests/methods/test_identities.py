"""Where a method's parameter switches off what it adds, it is the method that it adds to."""

import pytest
import torch

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.mart import boosted_cross_entropy

STEPS = 10


def trained(toy, make, update, train, batch, name, around, options, gamma):
    """Losses of three steps, and the network after them."""
    net, method = toy(), make(name, **options)
    losses = train(net, method, update(around, **gamma), batch, steps=3)
    return losses, net.state_dict()


@pytest.mark.parametrize(
    ("name", "options", "gamma"),
    [
        ("awp", {}, {"gamma": 0.0}),
        ("fat", {"tau": STEPS, "omega": 0.0}, None),
        ("fat", {"tau": 10 * STEPS, "omega": 0.0, "craft_bn": "train"}, None),
        ("ls0.8-pgd", {"factor": 1.0}, None),
        ("ls0.9-pgd", {"factor": 1.0, "craft_bn": "train"}, None),
    ],
    ids=str,
)
def test_it_is_pgd_bit_for_bit(toy, batch, make, update, train, name, options, gamma):
    around = "plain" if gamma is None else "awp"
    found = trained(toy, make, update, train, batch, name, around, options, gamma or {})
    same = {"craft_bn": options.get("craft_bn", "eval")}
    expected = trained(toy, make, update, train, batch, "pgd", "plain", same, {})
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][key], expected[1][key]) for key in expected[1])


@pytest.mark.parametrize(
    ("name", "options", "gamma"),
    [
        ("awp", {}, {"gamma": 0.01}),
        ("fat", {"tau": 0, "omega": 0.0}, None),
        ("fat", {"tau": STEPS, "omega": 0.001}, None),
        ("ls0.9-pgd", {}, None),
    ],
    ids=str,
)
def test_otherwise_it_is_not(toy, batch, make, update, train, name, options, gamma):
    """Or the identities above would say nothing."""
    around = "plain" if gamma is None else "awp"
    found = trained(toy, make, update, train, batch, name, around, options, gamma or {})
    expected = trained(toy, make, update, train, batch, "pgd", "plain", {}, {})
    assert not torch.equal(found[1]["conv.weight"], expected[1]["conv.weight"])


@pytest.mark.parametrize("name", ["trades-awp", "trades"])
def test_trades_with_a_gamma_of_0_is_trades_bit_for_bit(toy, batch, make, update, train, name):
    found = trained(toy, make, update, train, batch, name, "awp", {}, {"gamma": 0.0})
    expected = trained(toy, make, update, train, batch, "trades", "plain", {}, {})
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][key], expected[1][key]) for key in expected[1])


def test_mart_without_lambda_is_boosted_cross_entropy_to_the_gradient(toy, batch, make):
    x_adv = (batch.x + 0.1).clamp(0, 1)
    net = toy()
    loss = make("mart", beta=0.0).loss(net, batch, x_adv, cross_entropy(net))
    alone = boosted_cross_entropy(net(x_adv), batch.targets).mean()
    assert torch.equal(loss, alone)
    weights = list(net.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(alone, weights), strict=True
    ):
        assert torch.equal(ours, theirs)
