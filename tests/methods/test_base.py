"""The contract that every method keeps: its price, its budget, and what it leaves untouched."""

import pytest
import torch

from aal_bench.adapters.classification import cross_entropy

EPS = 8 / 255
# name -> forwards, backwards to the input only, backwards with weight gradients, of one step
PASSES = {
    "standard": (1, 0, 1),
    "fgsm": (2, 1, 1),
    "rs-fgsm": (2, 1, 1),
    "pgd": (11, 10, 1),
    "trades": (13, 10, 2),
    "mart": (12, 10, 2),
    "ls0.8-pgd": (11, 10, 1),
    "ls0.9-pgd": (11, 10, 1),
    "aal-fgsm": (2, 1, 1),
    "aal-pgd": (12, 11, 1),
    "aal-trades": (14, 11, 2),
    "aal-mart": (13, 11, 2),
}
PASSES_AWP = {
    "standard": (2, 0, 2),
    "fgsm": (3, 1, 2),
    "rs-fgsm": (3, 1, 2),
    "pgd": (12, 10, 2),
    "awp": (12, 10, 2),
    "trades": (15, 10, 4),
    "trades-awp": (15, 10, 4),
    "mart": (14, 10, 4),
    "ls0.8-pgd": (12, 10, 2),
    "ls0.9-pgd": (12, 10, 2),
    "aal-fgsm": (3, 1, 2),
    "aal-pgd": (13, 11, 2),
    "aal-trades": (16, 11, 4),
    "aal-mart": (15, 11, 4),
}
METHODS = [*PASSES, "fat"]
"""``fat`` costs what its images need: `test_fat`."""
OPTIONS = {"fat": {"tau": 2, "omega": 0.0}}
"""Its noise is drawn for the images that still move, so that it depends on the batch."""


@pytest.mark.parametrize(
    ("name", "around", "expected"),
    [
        *((name, "plain", expected) for name, expected in PASSES.items()),
        *((name, "awp", expected) for name, expected in PASSES_AWP.items()),
    ],
)
def test_a_step_costs_the_lean_number_of_passes(
    toy, batch, make, update, train, name, around, expected
):
    method = make(name)
    net = method.build(toy())
    train(net, method, update(around), batch)
    assert tuple(net.counts.values()) == expected


@pytest.mark.parametrize("craft_bn", ["eval", "train"])
@pytest.mark.parametrize("name", METHODS)
def test_attacking_leaves_the_network_as_it_was(toy, batch, make, name, craft_bn):
    method = make(name, craft_bn=craft_bn, **OPTIONS.get(name, {}))
    net = method.build(toy())
    net.norm.eval()  # frozen inside a training network
    net.conv.bias.requires_grad_(False)
    for weight in net.parameters():
        weight.grad = torch.full_like(weight, 0.5) if weight.requires_grad else None
    modes = {key: module.training for key, module in net.named_modules()}
    needs = {key: weight.requires_grad for key, weight in net.named_parameters()}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = batch.x.clone()

    with torch.no_grad():  # whatever the caller disabled
        x_adv = method.attack(net, batch, cross_entropy(net))

    assert not x_adv.requires_grad
    assert torch.equal(batch.x, x)
    assert {key: module.training for key, module in net.named_modules()} == modes
    assert {key: weight.requires_grad for key, weight in net.named_parameters()} == needs
    assert all((w.grad == 0.5).all() for w in net.parameters() if w.requires_grad)
    assert net.conv.bias.grad is None
    changed = {
        key for key, value in net.state_dict().items() if not torch.equal(value, before[key])
    }
    if craft_bn == "eval" or name == "standard":
        assert not changed
    else:  # batch statistics are what "train" means, and nothing but statistics may move
        assert changed
        assert all("running" in key or "tracked" in key for key in changed)


@pytest.mark.parametrize("name", METHODS)
def test_the_adversarial_stays_in_the_ball_and_the_box_and_hurts(toy, batch, make, name):
    method = make(name, **OPTIONS.get(name, {}))
    net = method.build(toy())
    objective = cross_entropy(net)
    torch.manual_seed(0)
    x_adv = method.attack(net, batch, objective)
    assert (x_adv - batch.x).abs().max() <= EPS + 1e-15
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if name == "standard":
        assert x_adv is batch.x
        return
    assert (batch.x < EPS).any()
    assert (batch.x > 1 - EPS).any()  # or the box was never tried
    net.eval()
    assert objective(x_adv, batch.targets) > objective(batch.x, batch.targets)


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_is_attacked_the_same_way_in_any_batch(toy, batch, make, name):
    """At one seed the random starts of the first three images are the same in both batches."""
    method = make(name, **OPTIONS.get(name, {}))
    net = method.build(toy())
    half = batch._replace(x=batch.x[:3], targets=batch.targets[:3], idx=batch.idx[:3])

    def attack(some):
        torch.manual_seed(0)
        return method.attack(net, some, cross_entropy(net))

    torch.testing.assert_close(attack(batch)[:3], attack(half), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_pure_and_its_gradient_is_that_of_finite_differences(toy, batch, make, name):
    method = make(name, **OPTIONS.get(name, {}))
    net = method.build(toy())
    objective = cross_entropy(net)
    x_adv = method.attack(net, batch, objective)

    def loss() -> torch.Tensor:
        return method.loss(net, batch, x_adv, objective)

    first = loss()
    assert first.ndim == 0
    assert torch.equal(first, loss())
    weight = net.body[-1].weight if isinstance(net.body[-1], torch.nn.Linear) else net.conv.weight
    (gradient,) = torch.autograd.grad(first, weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        weight += 1e-6 * direction
        above = loss()
        weight -= 2e-6 * direction
        below = loss()
    slope = (above - below) / 2e-6
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-6, atol=1e-9)
