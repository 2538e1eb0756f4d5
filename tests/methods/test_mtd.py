"""MTD: one step along each of two losses, and of the two images the stronger by their sum."""

import pytest
import torch
from torch.nn import functional as F

from aal_bench.attacks.linf import input_gradient
from aal_bench.methods.base import Threat

EPS = 8 / 255


class TwoTasks:
    """A loss of two parts on the toy's logits: of the classes, and of a number to be met."""

    def __init__(self, net):
        self.net = net

    def __call__(self, x, targets, reduction="mean"):
        each = sum(self._each(x, targets))
        return {"mean": each.mean, "sum": each.sum, "none": lambda: each}[reduction]()

    def parts_of(self, x, targets):
        return tuple(part.sum() for part in self._each(x, targets))

    def _each(self, x, targets):
        logits = self.net(x)
        wanted = torch.linspace(-1, 1, len(x), dtype=x.dtype)
        return F.cross_entropy(logits, targets, reduction="none"), (logits[:, 0] - wanted) ** 2


def stronger_of_two(net, batch, start, per_image=True):
    """The attack written out, one pass at a time; also which loss guided each image."""
    net = net.eval()
    objective = TwoTasks(net)
    guided, values = [], []
    for part in range(2):
        g = input_gradient(lambda v, p=part: objective.parts_of(v, batch.targets)[p], start)
        step = (start + EPS * g.sign() - batch.x).clamp(-EPS, EPS)
        guided.append((batch.x + step).clamp(0, 1))
        values.append(objective(guided[-1], batch.targets, reduction="none").detach())
    loc = values[1] > values[0] if per_image else (values[1].sum() > values[0].sum()).expand(6)
    return torch.stack([guided[int(loc[i])][i] for i in range(6)]), loc


def attack(method, net, batch, seed=0):
    torch.manual_seed(seed)
    return method.attack(net, batch, TwoTasks(net))


@pytest.mark.parametrize("seed", range(3))
def test_every_image_keeps_the_stronger_of_its_two(toy, batch, make, seed):
    method, net = make("mtd"), toy(seed)
    found = attack(method, net, batch)
    expected, loc = stronger_of_two(net, batch, batch.x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert method.log["loc_stronger"] == loc.float().mean()
    assert 0 < loc.sum() < 6, "the choice is one: both losses win somewhere"


def test_the_whole_batch_may_decide_instead(toy, batch, make):
    method, net = make("mtd", choose="batch"), toy()
    found = attack(method, net, batch)
    expected, loc = stronger_of_two(net, batch, batch.x, per_image=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert method.log["loc_stronger"] == loc[0]
    each, _ = stronger_of_two(net, batch, batch.x)
    assert not torch.equal(each, expected)


def test_from_a_random_start_the_step_ends_in_the_ball_of_the_image(toy, batch, make):
    method, net = make("mtd", start="uniform"), toy()
    found = attack(method, net, batch)
    torch.manual_seed(0)
    noise = torch.empty_like(batch.x).uniform_(-1, 1)
    expected, _ = stronger_of_two(net, batch, (batch.x + EPS * noise).clamp(0, 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert (found - batch.x).abs().max() <= EPS + 1e-15
    assert not torch.equal(found, attack(make("mtd"), net, batch))


def test_the_two_gradients_of_one_pass_are_those_of_two(toy, batch, make):
    method, net = make("mtd"), toy()
    objective = TwoTasks(net.eval())
    for part, found in enumerate(method._gradients(batch.x, batch, objective)):
        alone = input_gradient(lambda v, p=part: objective.parts_of(v, batch.targets)[p], batch.x)
        torch.testing.assert_close(found, alone)


def test_the_attack_costs_three_forwards_and_two_backwards_to_the_input_only(toy, batch, make):
    method, net = make("mtd"), toy()
    attack(method, net, batch)
    assert net.counts == {"forward": 3, "to_input": 2, "to_weights": 0}
    assert net.training
    assert all(weight.grad is None for weight in net.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_mixes_clean_and_attacked(toy, batch, make, weight):
    method, net = make("mtd", clean_weight=weight), toy()
    objective = TwoTasks(net)
    x_adv = attack(method, net, batch)
    clean, attacked = objective(batch.x, batch.targets), objective(x_adv, batch.targets)
    loss = method.loss(net, batch, x_adv, objective)
    torch.testing.assert_close(loss, weight * clean + (1 - weight) * attacked)


def test_crafting_follows_craft_bn(toy, batch, make):
    for mode, moves in (("eval", False), ("train", True)):
        net = toy()
        before = net.norm.running_mean.clone()
        attack(make("mtd", Threat(EPS, EPS / 4, 10), craft_bn=mode), net, batch)
        assert torch.equal(net.norm.running_mean, before) != moves
