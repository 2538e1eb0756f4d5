"""Free training: weights and perturbation descend and ascend on one and the same backward pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aal_bench.adapters.classification import Classification, cross_entropy
from aal_bench.adapters.method import build_method, build_update
from aal_bench.methods.base import Batch
from aal_bench.resolve import Request, resolve
from aal_bench.training.loop import Loop
from aal_bench.training.step import Setting

EPS, LR = 8 / 255, 0.1


def batches(count, size=6):
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        x = torch.rand(size, 3, 8, 8, dtype=torch.float64, generator=generator)
        y = torch.randint(5, (size,), generator=generator)
        made.append(Batch(x=x, targets=y, idx=torch.arange(size)))
    return made


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()


def step(method, net, update, batch):
    """One training step: as many updates as the method replays."""
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    objective = cross_entropy(net)

    def descend():
        optimizer.step()
        optimizer.zero_grad()

    method.before_step(batch)
    x_adv = method.attack(net, batch, objective)
    losses = []
    for _ in range(method.replays):
        losses.append(
            update(
                net,
                lambda: method.loss(net, batch, x_adv, objective),
                lambda value: value.backward(),
                descend,
                0.0,
            ).item()
        )
        method.after_replay(batch)
    method.after_step(batch, x_adv)
    return losses


def written_out(weight, bias, x, y, delta, replays):
    """Algorithm 1 of Shafahi et al. on a linear classifier: gradients in closed form."""
    momentum, losses = [torch.zeros_like(weight), torch.zeros_like(bias)], []
    target = F.one_hot(y, 5).double()
    for _ in range(replays):
        v = (x + delta).clamp(0, 1).flatten(1)
        p = (v @ weight.T + bias).softmax(1)
        losses.append(-(p.gather(1, y[:, None]).log()).mean().item())
        error = (p - target) / len(x)
        gradients, to_x = [error.T @ v, error.sum(0)], error @ weight
        delta = (delta + EPS * to_x.view_as(x).sign()).clamp(-EPS, EPS)
        momentum = [0.9 * m + g for m, g in zip(momentum, gradients, strict=True)]
        weight, bias = weight - LR * momentum[0], bias - LR * momentum[1]
    return weight, bias, delta, losses


@pytest.mark.parametrize("replays", [1, 4, 8])
def test_weights_and_perturbation_are_those_of_the_algorithm(make, update, replays):
    """Over three batches: the perturbation of one is where the next begins."""
    method, net = make("free", replays=replays), linear()
    weight, bias = (value.detach().clone() for value in net[1].parameters())
    delta = torch.zeros(6, 3, 8, 8, dtype=torch.float64)
    for batch in batches(3):
        found = step(method, net, update("plain"), batch)
        weight, bias, delta, losses = written_out(
            weight, bias, batch.x, batch.targets, delta, replays
        )
        assert found == pytest.approx(losses, rel=1e-12)
        torch.testing.assert_close(net[1].weight, weight, rtol=0, atol=1e-13)
        torch.testing.assert_close(net[1].bias, bias, rtol=0, atol=1e-13)
        assert torch.equal(method.state_dict()["delta"], delta)
    assert delta.abs().max() == EPS


def test_m_updates_cost_m_passes_and_the_attack_none(toy, batch, make, update):
    method, net = make("free", replays=4), toy()
    assert method.replays == 4
    method.attack(net, batch, cross_entropy(net))
    assert net.counts == {"forward": 0, "to_input": 0, "to_weights": 0}
    step(method, net, update("plain"), batch)
    assert net.counts == {"forward": 4, "to_input": 4, "to_weights": 4}


def test_each_batch_is_replayed_eight_times_of_images_and_four_of_a_detectors(make):
    assert make("free").replays == 8
    for family, given in (("classification", {}), ("detection", {"replays": 4})):
        assert type(make("free")).family_defaults(family) == given


def test_a_last_batch_that_is_smaller_uses_and_keeps_the_first_of_the_perturbations(make, update):
    method, net = make("free", replays=4), linear()
    whole, rest = batches(1)[0], batches(2, size=4)[1]
    step(method, net, update("plain"), whole)
    before = method.state_dict()["delta"].clone()
    step(method, net, update("plain"), rest)
    after = method.state_dict()["delta"]
    assert after.shape == before.shape
    assert torch.equal(after[4:], before[4:])
    assert not torch.equal(after[:4], before[:4])


def test_a_larger_batch_or_another_size_begins_at_zero(make):
    method, net = make("free"), linear()
    for batch in (batches(1)[0], batches(1, size=8)[0]):
        assert torch.equal(method.attack(net, batch, cross_entropy(net)), batch.x)


def test_the_state_goes_on_in_another_process(make, update, tmp_path):
    method, net = make("free"), linear()
    first, second = batches(2)
    step(method, net, update("plain"), first)
    torch.save({"method": method.state_dict(), "net": net.state_dict()}, tmp_path / "state.pt")
    step(method, net, update("plain"), second)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, other = make("free"), linear(1)
    resumed.load_state_dict(state["method"])
    other.load_state_dict(state["net"])
    step(resumed, other, update("plain"), second)
    assert torch.equal(resumed.state_dict()["delta"], method.state_dict()["delta"])
    assert torch.equal(other[1].weight, net[1].weight)


def test_what_is_trained_on_stays_in_ball_and_box(toy, batch, make, update):
    method, net, seen = make("free", replays=3), toy(), []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    for _ in range(3):
        step(method, net, update("plain"), batch)
    assert len(seen) == 9
    assert torch.equal(seen[0], batch.x)
    for x_adv in seen[1:]:
        assert (x_adv - batch.x).abs().max() <= EPS + 1e-15
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


def test_the_loss_can_be_taken_twice(toy, batch, make, update):
    """AWP takes it at two weights; the perturbation follows the second."""
    method, net = make("free", replays=1), toy()
    step(method, net, update("awp"), batch)
    assert net.counts["forward"] == 2
    assert (method.state_dict()["delta"].abs() == EPS).all()


@pytest.mark.parametrize("replays", [1, 3])
def test_training_images_makes_m_updates_a_batch_and_keeps_the_perturbation(tmp_path, replays):
    """The real loop on the embedded digits: m updates and m + m passes for each of its batches."""
    loop = training(tmp_path, replays)
    stepper, optimiser = loop.stepper, loop.stepper.optimizer.optimizer
    updates, before, deltas = [], [], []
    optimiser.register_step_post_hook(lambda *_: updates.append(None))
    stepper.network.register_forward_pre_hook(lambda _, args: before.append(args[0].detach()))
    loop.model.train()
    eps = float(loop.run.training_attack[0])
    for number, batch in enumerate(loop._batches(), 1):
        loop.take_step(batch)
        assert len(updates) == len(before) == replays * number
        first, later = before[replays * (number - 1)], before[replays * (number - 1) + 1 :]
        kept = deltas[-1] if deltas else torch.zeros_like(batch.x)
        own = kept[: len(batch.x)]
        assert torch.equal(first, (batch.x + own).clamp(0, 1))
        assert all(((x - batch.x).abs() <= eps + 1e-6).all() for x in later)
        deltas.append(loop.stepper.method.state_dict()["delta"].clone())
        assert torch.equal(deltas[-1][len(batch.x) :], kept[len(batch.x) :])
        assert not torch.equal(deltas[-1][: len(batch.x)], own)
    assert len(deltas) == 3
    assert loop.passes == [replays, replays]


def training(folder, replays):
    """A loop of two whole batches and a smaller one."""
    run = resolve(
        Request(
            *("digits", "free"),
            model="cnn4-4",
            batch_size=16,
            limit_train=40,
            device="cpu",
            precision="fp32",
            settings=(f"replays={replays}", "train.validation=0"),
        )
    )
    adapter, method = Classification(run, None), build_method(run)
    model = method.build(adapter.build())
    data, _ = adapter.training_split()
    update = build_update(run)
    return Loop(Setting(run, model, method, update, adapter.objective, data, None, folder))


def test_a_broken_gradient_surfaces(make, update):
    method, net = make("free", replays=1), linear()
    with torch.no_grad():
        net[1].weight[0] = torch.nan
    step(method, net, update("plain"), batches(1)[0])
    assert method.state_dict()["delta"].isnan().any()
