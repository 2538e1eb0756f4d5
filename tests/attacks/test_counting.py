"""Per-sample counts against the plainest count there is: attack each image alone."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import nn
from torch.nn import functional as F

from aal_bench.attacks.counting import Counted
from aal_bench.errors import UserError

STEPS, STEP = 12, 0.02


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture
def batch(net):
    torch.manual_seed(1)
    x = torch.rand(24, 3, 6, 6)
    return x, net(x).argmax(1)


def dropping(model, x, y):
    """Signed gradient steps; an image leaves as soon as it is fooled. No randomness."""
    adversarial, standing = x.clone(), torch.arange(len(x))
    for _ in range(STEPS):
        part = adversarial[standing].requires_grad_()
        logits = model(part)
        standing_now = logits.argmax(1) == y[standing]
        gradient = torch.autograd.grad(F.cross_entropy(logits, y[standing]), part)[0]
        adversarial[standing] = part.detach() + STEP * gradient.sign()
        standing = standing[standing_now]
        if not len(standing):
            break
    return adversarial


def alone(net, x, y):
    """Passes of each image when attacked alone, counted by hooks on the network."""
    spent = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        seen = [0, 0]

        def forward(_module, _inputs, logits, seen=seen):
            seen[0] += 1
            logits.register_hook(lambda _: seen.__setitem__(1, seen[1] + 1))

        handle = net.register_forward_hook(forward)
        dropping(net, image, label)
        handle.remove()
        spent.append(seen)
    return torch.tensor(spent)


def counted(net, x, y):
    model = Counted(net)
    model.watch(x)
    dropping(model, x, y)
    return torch.stack(model.counts(), 1)


def test_counts_are_those_of_each_image_attacked_alone(net, batch):
    x, y = batch
    expected = alone(net, x, y)
    assert len(expected.unique(dim=0)) > 4  # many leave, at different times
    assert torch.equal(counted(net, x, y), expected)


def test_they_are_with_twins_in_the_batch(net, batch):
    x, y = (torch.cat([part, part[3:12], part[:5]]) for part in batch)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    x, y = x[order], y[order]
    assert torch.equal(counted(net, x, y), alone(net, x, y))


def test_the_order_of_the_batch_does_not_matter(net, batch):
    x, y = batch
    assert torch.equal(counted(net, x.flip(0), y.flip(0)), counted(net, x, y).flip(0))


def test_a_new_batch_counts_from_zero(net, batch):
    x, y = batch
    model = Counted(net)
    for part in (slice(0, 9), slice(9, 24)):
        model.watch(x[part])
        dropping(model, x[part], y[part])
        assert torch.equal(torch.stack(model.counts(), 1), alone(net, x[part], y[part]))


def test_twins_with_random_starts_share_the_right_sum(net, batch):
    """Which of two equal images left first cannot be seen; what both cost together can."""
    x = batch[0][:1].expand(6, -1, -1, -1).clone()
    model = Counted(net)
    model.watch(x)
    for left in ([0, 1, 2, 3, 4, 5], [1, 3, 4], [4]):
        model(x[left] + 0.01 * torch.rand(len(left), 3, 6, 6))
    forwards, _ = model.counts()
    assert sorted(forwards.tolist()) == [1, 1, 1, 2, 2, 3]


def test_copies_of_the_batch_count_for_their_images(net, batch):
    """Expectation over transformations sends each image several times in one forward."""
    x, _ = batch
    model = Counted(net)
    model.watch(x)
    model(x.repeat(3, 1, 1, 1) + 0.01)
    forwards, backwards = model.counts()
    assert set(forwards.tolist()) == {3}
    assert set(backwards.tolist()) == {0}


def test_a_backward_counts_when_it_happens(net, batch):
    x = batch[0].clone().requires_grad_()
    model = Counted(net)
    model.watch(x)
    logits = model(x)
    logits.sum().backward(retain_graph=True)
    logits.amax().backward()
    model(x)  # forward only
    with torch.no_grad():
        model(x)
    forwards, backwards = model.counts()
    assert (set(forwards.tolist()), set(backwards.tolist())) == ({3}, {2})


def test_the_logits_are_those_of_the_model_and_nothing_counts_before_a_batch_is_watched(net, batch):
    x, _ = batch
    assert torch.equal(Counted(net)(x), net(x))


@pytest.mark.parametrize("training", [False, True])
def test_an_attack_of_torchattacks_leaves_the_model_in_its_own_mode(net, batch, training):
    """torchattacks calls train() on a model that says it was training, as new modules do."""
    x, y = batch
    model = Counted(net.train(training))
    model.watch(x)
    torchattacks.FGSM(model, eps=0.1)(x, y)
    assert {module.training for module in net.modules()} == {training}


def test_a_model_that_returns_no_tensor_is_named(batch):
    class Pair(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x

    with pytest.raises(UserError, match="returns tuple, not a tensor of logits"):
        Counted(Pair())(batch[0])


def test_a_backward_from_beside_the_logits_counts_where_it_arrives(batch):
    """An attack on an auxiliary head never touches the final logits' gradient."""

    class Beside(nn.Module):
        def forward(self, x):
            self.head = x.mean((2, 3))
            return self.head.detach() * 2

    x, beside = batch[0].clone().requires_grad_(), Beside()
    model = Counted(beside)
    model.watch(x)
    model(x)
    torch.autograd.grad(beside.head.sum(), x)
    forwards, backwards = model.counts()
    assert (set(forwards.tolist()), set(backwards.tolist())) == ({1}, {1})
