"""IAAT on linear classifiers, where an image's margin says what PGD can do to it."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.base import Batch, Threat
from aal_bench.methods.iaat import IAATOptions

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
GAMMA, SMOOTHING = 1.9 / 255, 0.1


@pytest.fixture
def linear():
    """Two classes, whose border goes through grey, the mean of the images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    with torch.no_grad():
        net[1].bias.copy_(-0.5 * net[1].weight.sum(1))
    return net.requires_grad_(False)


def images(count, seed=1):
    """Far from the box, so that PGD is free to take the whole of eps."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 + 0.4 * torch.rand(count, 3, 4, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(2, (count,), generator=generator)


def reach(net, x, y):
    """Per image, the smallest eps that flips it: margin / |w|_1; negative: wrong as it is."""
    w = net[1].weight[1] - net[1].weight[0]
    b = net[1].bias[1] - net[1].bias[0]
    margins = [
        (v.flatten() @ w + b).item() * (1 if label else -1) for v, label in zip(x, y, strict=True)
    ]
    return [margin / w.abs().sum().item() for margin in margins]


def take(method, net, batch):
    """One step but for the update."""
    method.before_step(batch)
    x_adv = method.attack(net, batch, cross_entropy(net))
    method.after_step(batch, x_adv)
    return x_adv


def written_out(eps, radius, warm):
    """The rule for one image in floats: `radius` is the smallest eps that flips it."""
    if warm:
        return EPS if radius > 0 else 0.0
    if radius > eps + GAMMA:
        new = eps + GAMMA
    elif radius > eps:
        new = eps
    else:
        new = eps - GAMMA
    new = max(new, 0.0) if radius > 0 else 0.0
    return SMOOTHING * new + (1 - SMOOTHING) * eps


def test_every_eps_follows_the_rule_over_many_epochs(linear, make):
    """The net stays as it is: the images of small margin shrink, the others grow without bound."""
    x, y = images(30)
    towards = (linear[1].weight[1] - linear[1].weight[0]).sign().view(3, 4, 4)
    x = x + 0.03 * (2 * y[:, None, None, None] - 1) * towards  # most are right, and some safe
    radii = reach(linear, x, y)
    method = make("iaat", warmup=0.1)
    method.remember(30)
    expected = [0.0] * 30
    torch.manual_seed(0)
    for epoch in range(30):
        for part in torch.arange(30).split(8):
            batch = Batch(x[part], y[part], part, epoch=epoch, progress=epoch / 30)
            take(method, linear, batch)
        expected = [written_out(e, r, epoch < 3) for e, r in zip(expected, radii, strict=True)]
        found = method.state_dict()["eps"]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-7)
    assert sum(radius < 0 for radius in radii) > 2
    assert sum(0 < radius < EPS for radius in radii) > 3
    assert found.max() > 1.3 * EPS
    assert found.min() == 0
    assert ((found > 0.2 * EPS) & (found < 0.9 * EPS)).any()


def test_a_cap_holds_every_eps(linear, make):
    x, y = images(30)
    method = make("iaat", warmup=0.0, cap=1.0, smoothing=1.0)
    method.remember(30)
    for _ in range(12):
        take(method, linear, Batch(x, y, torch.arange(30)))
    found = method.state_dict()["eps"]
    assert found.max() == torch.tensor(EPS)
    capped = make("iaat", warmup=1.0, cap=0.5)
    capped.remember(30)
    take(capped, linear, Batch(x, y, torch.arange(30)))
    assert capped.state_dict()["eps"].max() == torch.tensor(EPS / 2)


def test_each_image_is_trained_on_within_its_own_eps_and_reaches_it(linear, make):
    x, y = images(30)
    method = make("iaat", warmup=0.5)
    method.remember(30)
    for progress in (0.0, 0.6, 0.7):
        x_adv = take(method, linear, Batch(x, y, torch.arange(30), progress=progress))
        length = (x_adv - x).abs().flatten(1).amax(1)
        torch.testing.assert_close(length.float(), method.state_dict()["eps"], atol=1e-7, rtol=0)
        assert (length == 0).any()


def test_a_large_eps_is_reached_by_larger_steps(linear, make):
    """alpha_i = max(step, eps_i / (steps / 2)): with 4 steps of 1/255 alone, 8/255 is too far."""
    x, y = images(6)
    method = make("iaat", Threat(EPS, 1 / 255, 4), warmup=1.0)
    method.remember(6)
    x_adv = take(method, linear, Batch(x, y, torch.arange(6)))
    right = linear(x).argmax(1) == y
    assert right.any()
    assert ((x_adv - x).abs()[right] > EPS - 1e-8).all()


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, (12, 10, 1)), (0.05, (12, 10, 1)), (0.5, (34, 30, 1))]
)
def test_a_step_costs_the_lean_number_of_passes(
    toy, batch, make, update, train, progress, expected
):
    method, net = make("iaat"), toy()
    method.remember(6)
    train(net, method, update("plain"), batch._replace(progress=progress))
    assert tuple(net.counts.values()) == expected


def test_warm_up_ends_with_the_tenth_of_110_epochs(linear, make):
    x, y = images(8)
    method = make("iaat")
    method.remember(8)
    seen = []
    linear.register_forward_hook(lambda *_: seen.append(1))
    for step in (100 * 10 - 1, 100 * 10):
        take(method, linear, Batch(x, y, torch.arange(8), progress=step / (100 * 110)))
        seen.append(0)
    assert "".join(map(str, seen)).split("0")[:2] == ["1" * 11, "1" * 33]


def test_only_the_eps_of_the_batch_changes_and_only_in_a_step(linear, make):
    x, y = images(30)
    method = make("iaat")
    method.remember(30)
    part = torch.tensor([4, 20, 7])
    batch = Batch(x[part], y[part], part)
    method.before_step(batch)
    x_adv = method.attack(linear, batch, cross_entropy(linear))
    # Nothing yet: an image that warm-up has not seen has the task's eps, as if it were right.
    assert torch.equal(method.state_dict()["eps"], torch.full((30,), method.threat.eps))
    method.after_step(batch, x_adv)
    changed = (method.state_dict()["eps"] != method.threat.eps).nonzero()[:, 0].tolist()
    wrong = {i for i in part.tolist() if linear(x[i : i + 1]).argmax() != y[i]}
    assert set(changed) == wrong
    assert wrong
    assert not method.state_dict()["eps"][changed].any()


def test_outside_training_it_is_pgd_and_leaves_the_memory_alone(linear, make):
    """A figure's or an evaluation's images have positions of their own, and may be more."""
    x, y = images(4)
    method = make("iaat")
    method.remember(4)
    take(method, linear, Batch(x, y, torch.arange(4)))
    before = method.state_dict()["eps"].clone()
    others, labels = images(9, seed=2)
    found = []
    for one in (method, make("pgd")):
        torch.manual_seed(0)
        batch = Batch(others, labels, torch.arange(9), progress=1.0)
        found.append(one.attack(linear, batch, cross_entropy(linear)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-8)
    assert torch.equal(method.state_dict()["eps"], before)


def test_the_crafting_mode_is_that_of_every_pass_of_the_search(toy, batch, make):
    for craft_bn, moves in (("eval", 0), ("train", 33)):
        method, net = make("iaat", craft_bn=craft_bn), toy()
        method.remember(6)
        before = net.norm.num_batches_tracked.item()
        take(method, net, batch._replace(progress=0.5))
        assert net.norm.num_batches_tracked.item() - before == moves


def test_the_mean_eps_is_logged(linear, make):
    x, y = images(30)
    method = make("iaat")
    method.remember(30)
    take(method, linear, Batch(x, y, torch.arange(30)))
    assert method.log["mean_eps"] == method.state_dict()["eps"].mean()


def test_the_memory_goes_on_in_another_process(linear, make, tmp_path):
    x, y = images(8)
    methods = [make("iaat", warmup=0.5), make("iaat", warmup=0.5)]
    for method in methods:
        method.remember(8)
    first, second = (Batch(x, y, torch.arange(8), progress=p) for p in (0.0, 0.9))
    take(methods[0], linear, first)
    torch.save(methods[0].state_dict(), tmp_path / "state.pt")
    methods[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    ends = []
    for method in methods:
        torch.manual_seed(3)
        ends.append(take(method, linear, second))
    assert torch.equal(*ends)
    assert torch.equal(*(method.state_dict()["eps"] for method in methods))


def test_a_step_before_the_memory_says_so(linear, make):
    x, y = images(2)
    with pytest.raises(RuntimeError, match="remember"):
        make("iaat").before_step(Batch(x, y, torch.arange(2)))


@pytest.mark.parametrize("options", [{"gamma": 0}, {"smoothing": 1.1}, {"warmup": 2}, {"cap": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        IAATOptions(**options)
