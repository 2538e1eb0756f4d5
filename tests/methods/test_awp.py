"""AWP by its methods' names, and around every method whose step keeps no state of its own."""

import copy

import pytest
import torch

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.base import Threat

LR, GAMMA = 0.1, 0.02
METHODS = {
    "standard": {},
    "fgsm": {},
    "rs-fgsm": {},
    "pgd": {},
    "awp": {},
    "trades": {},
    "trades-awp": {},
    "mart": {},
    "fat": {"tau": 1},
    "ls0.8-pgd": {},
    "ls0.9-pgd": {},
    "aal-fgsm": {},
    "aal-pgd": {},
    "aal-trades": {},
    "aal-mart": {},
}


@pytest.mark.parametrize(("name", "base"), [("awp", "pgd"), ("trades-awp", "trades")])
def test_the_names_are_the_update_on_the_method_that_they_are_made_of(
    toy, batch, make, update, train, name, base
):
    named, of_base = make(name), make(base)
    assert (named.update, of_base.update) == ("awp", "plain")
    ends = []
    for method in (named, of_base):
        net = toy()
        losses = train(net, method, update("awp", **named.update_defaults["awp"]), batch, steps=3)
        ends.append((losses, net.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(ends[0][1][key], ends[1][1][key]) for key in ends[0][1])


def test_the_authors_gammas_and_warm_ups_are_the_defaults(make):
    assert make("awp").update_defaults == {"awp": {"gamma": 0.01, "warmup": 0.0}}
    for name in ("trades", "trades-awp", "aal-trades"):
        assert make(name).update_defaults == {"awp": {"gamma": 0.005, "warmup": 9 / 200}}


@pytest.mark.parametrize("name", METHODS)
def test_around_any_method_the_step_is_taken_where_its_own_loss_is_higher(
    toy, batch, make, update, name
):
    """One step of plain SGD, by hand: w - lr dL/dw at w + v; statistics move as without AWP."""
    method = make(name, Threat(8 / 255, 2 / 255, 3), **METHODS[name])
    net = method.build(toy())
    objective = cross_entropy(net)
    torch.manual_seed(0)
    x_adv = method.attack(net, batch, objective)
    untouched = copy.deepcopy(net)

    def loss_of(network):
        return method.loss(network, batch, x_adv, cross_entropy(network))

    weights = dict(net.named_parameters())
    perturbed, ascent = copy.deepcopy(untouched), copy.deepcopy(untouched)
    plain = loss_of(ascent)
    slopes = torch.autograd.grad(plain, list(ascent.parameters()), allow_unused=True)
    with torch.no_grad():
        for (key, weight), slope in zip(perturbed.named_parameters(), slopes, strict=True):
            if "weight" in key and weight.ndim > 1 and slope is not None and slope.any():
                weight += GAMMA * weight.norm() * slope / slope.norm()
    there = loss_of(perturbed)
    assert there > plain
    gradients = torch.autograd.grad(there, list(perturbed.parameters()))
    expected = dict(zip(weights, gradients, strict=True))

    def descend() -> None:
        with torch.no_grad():
            for weight in weights.values():
                weight -= LR * weight.grad
                weight.grad = None

    found = update("awp", gamma=GAMMA)(
        net, lambda: loss_of(net), lambda value: value.backward(), descend, 0.0
    )
    torch.testing.assert_close(found, there.detach(), rtol=1e-9, atol=0)
    for key, before in untouched.named_parameters():
        torch.testing.assert_close(
            weights[key].detach(), before.detach() - LR * expected[key], rtol=1e-7, atol=1e-10
        )
    for (key, ours), (_, theirs) in zip(
        net.named_buffers(), perturbed.named_buffers(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=key)


def test_around_free_each_replay_costs_one_more_pass_each_way(toy, batch, make, update):
    method, net = make("free", replays=3), toy()
    objective, optimizer = cross_entropy(net), torch.optim.SGD(net.parameters(), lr=LR)

    def descend() -> None:
        optimizer.step()
        optimizer.zero_grad()

    around = update("awp", gamma=GAMMA)
    x_adv = method.attack(net, batch, objective)
    moved = []
    for _ in range(method.replays):
        around(
            net,
            lambda: method.loss(net, batch, x_adv, objective),
            lambda value: value.backward(),
            descend,
            0.0,
        )
        method.after_replay(batch)
        moved.append(method.state_dict()["delta"])
    assert (net.counts["forward"], net.counts["to_weights"]) == (6, 6)
    assert all((delta.abs() <= 8 / 255).all() for delta in moved)
    assert not torch.equal(moved[0], moved[1])
