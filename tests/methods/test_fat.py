"""FAT against its algorithm, written out image by image, and what it costs counted in images."""

import math

import pytest
import torch

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.base import Threat
from aal_bench.training.passes import counting_passes

EPS, STEP, STEPS = 0.2, 0.03, 6
THREAT = Threat(EPS, STEP, STEPS)


@pytest.fixture
def mixed(toy, batch):
    """An eval network and 24 images: 18 that it gets right at first, 6 that it does not."""
    net = toy().eval()
    x = torch.rand(24, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5
    return net, batch._replace(x=x, targets=y, idx=torch.arange(24))


class Walk:
    """One image on its way: the algorithm's own variables."""

    def __init__(self, x, y, start, tau):
        self.x, self.y, self.at, self.tau = x, y, start, tau
        self.moves = self.passes = 0
        self.stopped = False
        self.wrong: list[bool] = []


def written_out(net, x, y, tau, omega):
    """Algorithm 1 of the paper for each image alone; the noise is drawn for all that move."""
    torch.manual_seed(0)
    start = (x + EPS * torch.empty_like(x).uniform_(-1, 1)).clamp(0, 1)
    walks = [Walk(*image, tau) for image in zip(x, y.tolist(), start, strict=True)]
    for _ in range(STEPS):
        slopes = []
        for walk in walks:
            if walk.stopped:
                continue
            walk.passes += 1
            at = walk.at.clone().requires_grad_()
            logits = net(at[None])[0]
            walk.wrong.append(logits.argmax().item() != walk.y)
            (slope,) = torch.autograd.grad(logits.logsumexp(0) - logits[walk.y], at)
            if walk.wrong[-1] and walk.tau == 0:
                walk.stopped = True
                continue
            walk.tau -= walk.wrong[-1]
            slopes.append((walk, slope))
        noise = torch.randn(len(slopes), *x.shape[1:], dtype=x.dtype) if omega else None
        for number, (walk, slope) in enumerate(slopes):
            moved = walk.at + STEP * slope.sign()
            if noise is not None:
                moved = moved + omega * noise[number]
            low, high = walk.x - EPS, walk.x + EPS
            walk.at = torch.min(torch.max(moved, low), high).clamp(0, 1)
            walk.moves += 1
    return walks


@pytest.mark.parametrize("omega", [0.0, 0.001, 0.15])
@pytest.mark.parametrize("tau", [0, 1, 2, STEPS - 1])
def test_each_image_stops_where_the_algorithm_says_and_no_pass_is_made_for_it_again(
    mixed, make, tau, omega
):
    net, batch = mixed
    walks = written_out(net, batch.x, batch.targets, tau, omega)
    assert len({walk.moves for walk in walks}) > 1  # or nothing was stopped early
    method = make("fat", THREAT, tau=tau, omega=omega)
    torch.manual_seed(0)
    with counting_passes(net) as counted:
        x_adv = method.attack(net, batch, cross_entropy(net))
    expected = torch.stack([walk.at for walk in walks])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    passes = sum(walk.passes for walk in walks)
    assert counted == {"forward": passes, "backward": passes}
    assert passes == sum(min(walk.moves + 1, STEPS) for walk in walks)
    moves = math.fsum(walk.moves for walk in walks)
    assert method.log["mean_steps"].item() == pytest.approx(moves / 24, rel=1e-6)


def test_an_image_that_is_right_again_spends_nothing_of_its_tau(mixed, make):
    """The algorithm counts misclassified iterates, not the steps since the first of them."""
    net, batch = mixed
    walks = written_out(net, batch.x, batch.targets, tau=2, omega=0.15)
    first = [walk.wrong.index(True) if any(walk.wrong) else STEPS for walk in walks]
    late = [at for at, walk in enumerate(walks) if walk.moves > first[at] + 2]
    assert late
    torch.manual_seed(0)
    x_adv = make("fat", THREAT, tau=2, omega=0.15).attack(net, batch, cross_entropy(net))
    torch.testing.assert_close(x_adv[late], torch.stack([walks[at].at for at in late]))


def test_a_step_is_those_passes_and_one_to_the_weights(mixed, make, update, train):
    net, batch = mixed
    for tau in (0, 2):
        walks = written_out(net, batch.x, batch.targets, tau, 0.0)
        method = make("fat", THREAT, tau=tau, omega=0.0)
        passes = sum(walk.passes for walk in walks)
        steps = max(walk.passes for walk in walks)
        for around, trained in (("plain", 1), ("awp", 2)):
            before = {key: value.clone() for key, value in net.state_dict().items()}
            net.counts.update(forward=0, to_input=0, to_weights=0)
            with counting_passes(net) as counted:
                train(net, method, update(around), batch, seed=0)
            net.load_state_dict(before)
            assert counted == {"forward": passes + trained * 24, "backward": passes + trained * 24}
            assert net.counts == {
                "forward": steps + trained,
                "to_input": steps,
                "to_weights": trained,
            }


def test_images_that_are_all_wrong_at_the_start_cost_one_pass_and_stay_there(mixed, make):
    net, batch = mixed
    with torch.no_grad():
        worst = net(batch.x).argmin(1)
    method = make("fat", Threat(0.01, STEP, STEPS), tau=0)
    torch.manual_seed(0)
    with counting_passes(net) as counted:
        x_adv = method.attack(net, batch._replace(targets=worst), cross_entropy(net))
    torch.manual_seed(0)
    start = (batch.x + 0.01 * torch.empty_like(batch.x).uniform_(-1, 1)).clamp(0, 1)
    assert torch.equal(x_adv, start)
    assert counted == {"forward": 24, "backward": 24}
    assert method.log["mean_steps"] == 0


def test_tau_follows_the_official_epochs_of_120_unless_it_is_a_number(make):
    steps = 7  # of an epoch
    for epoch in range(1, 121):
        official = 0 if epoch <= 50 else 1 if epoch <= 90 else 2
        for step in (0, steps - 1):
            progress = ((epoch - 1) * steps + step) / (120 * steps)
            assert make("fat").tau(progress) == official
            assert make("fat", tau=4).tau(progress) == 4


def test_the_schedule_reaches_the_attack(mixed, make):
    net, batch = mixed
    for progress, tau in ((0.0, 0), (0.5, 1), (0.99, 2)):
        ends = []
        for options in ({}, {"tau": tau}):
            torch.manual_seed(0)
            method = make("fat", THREAT, **options)
            ends.append(method.attack(net, batch._replace(progress=progress), cross_entropy(net)))
        assert torch.equal(*ends)


def test_the_layout_in_memory_is_that_of_the_images(mixed, make):
    net, batch = mixed
    batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
    seen = []
    net.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x_adv = make("fat", THREAT).attack(net, batch, cross_entropy(net))
    assert len({len(x) for x in seen}) > 1
    for x in (x_adv, *seen):
        assert x.is_contiguous(memory_format=torch.channels_last)
