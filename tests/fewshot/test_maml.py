"""MAML's inner loop by hand, its meta-gradient by finite differences, and its batch norm."""

import copy
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from aal_bench.attacks.linf import attacking
from aal_bench.config import Normalisation
from aal_bench.errors import UserError
from aal_bench.fewshot.heads.anil import ANILHead
from aal_bench.fewshot.heads.base import Support
from aal_bench.fewshot.heads.maml import MAMLHead, SupportNorm, adapted
from aal_bench.methods.anil import ANIL
from aal_bench.methods.maml import MAML
from aal_bench.models.build import build

WAYS = 3


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def linear():
    """Softmax regression on four numbers, float64."""
    torch.manual_seed(0)
    return nn.Linear(4, WAYS).double()


@pytest.fixture
def episode():
    """Support (6, 4), its labels, queries (5, 4) and theirs."""
    return drawn(6, 4), torch.arange(WAYS).repeat(2), drawn(5, 4, seed=1), torch.arange(5) % WAYS


@pytest.fixture
def network():
    """CNN4 of width 8 at 16 px with three outputs, float64, in training mode."""
    torch.manual_seed(0)
    return build("cnn4-8", WAYS, 16, Normalisation()).double().train()


@pytest.fixture
def images():
    """Support (6, 3, 16, 16), labels, and four queries."""
    return drawn(6, 3, 16, 16), torch.arange(WAYS).repeat(2), drawn(4, 3, 16, 16, seed=1)


def maml(**options):
    return MAMLHead(MAML.Options(**options))


def support_of(x, labels):
    return Support(x, x[:, None], labels, WAYS)


def by_hand(weight, bias, x, labels, lr, steps):
    """Softmax regression: dCE/dW = (P - Y)' X / n, dCE/db its column means."""
    weight, bias, x = weight.numpy().copy(), bias.numpy().copy(), x.numpy()
    y = np.eye(WAYS)[labels]
    for _ in range(steps):
        p = np.exp(x @ weight.T + bias)
        p /= p.sum(1, keepdims=True)
        weight -= lr * (p - y).T @ x / len(x)
        bias -= lr * (p - y).mean(0)
    return weight, bias


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_adaptation_is_gradient_descent_by_hand(linear, episode, steps):
    x, labels, query, _ = episode
    start = linear.weight.detach().clone(), linear.bias.detach().clone()
    head = maml(inner_lr=0.7, train_steps=steps, test_steps=steps)
    weight, bias = by_hand(*start, x, labels, 0.7, steps)
    expected = query.numpy() @ weight.T + bias

    trained = head.train_logits(linear, x, labels, query, WAYS)
    np.testing.assert_allclose(trained.detach().numpy(), expected, rtol=1e-10)
    tested = head.classifier(linear.eval(), support_of(x, labels))(query)
    np.testing.assert_allclose(tested.numpy(), expected, rtol=1e-10)
    assert torch.equal(linear.weight, start[0])
    assert torch.equal(linear.bias, start[1])


def meta_loss(head, module, episode):
    x, labels, query, wanted = episode
    return head.loss(head.train_logits(module, x, labels, query, WAYS), wanted)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_that_of_finite_differences(linear, episode, steps):
    head = maml(inner_lr=0.7, train_steps=steps)
    meta_loss(head, linear, episode).backward()
    found = torch.cat([linear.weight.grad.flatten(), linear.bias.grad])

    def at(vector):
        nn.utils.vector_to_parameters(vector, linear.parameters())
        with torch.no_grad():
            return meta_loss(head, linear, episode)

    start = nn.utils.parameters_to_vector(linear.parameters()).detach()
    unit = 1e-6 * torch.eye(len(start), dtype=torch.float64)
    slopes = torch.stack([at(start + one) - at(start - one) for one in unit]) / 2e-6
    torch.testing.assert_close(found, slopes, rtol=1e-6, atol=1e-9)


def test_first_order_is_the_gradient_at_the_adapted_weights(linear, episode):
    """FOMAML: (P - Y)' X / n of the queries, at theta'."""
    x, labels, query, wanted = episode
    head = maml(inner_lr=0.7, train_steps=2, first_order=True)
    meta_loss(head, linear, episode).backward()
    weight, bias = by_hand(linear.weight.detach(), linear.bias.detach(), x, labels, 0.7, 2)
    p = functional.softmax(query @ torch.from_numpy(weight).T + torch.from_numpy(bias), 1)
    expected = (p - functional.one_hot(wanted, WAYS)).T @ query / len(query)
    torch.testing.assert_close(linear.weight.grad, expected)
    full = copy.deepcopy(linear)
    full.zero_grad()
    meta_loss(maml(inner_lr=0.7, train_steps=2), full, episode).backward()
    assert (full.weight.grad - linear.weight.grad).abs().max() > 1e-3


# ---- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("transductive", [False, True])
def test_the_meta_gradient_goes_through_the_statistics_of_batch_norm(network, images, transductive):
    """Statistics taken for constants would give another slope."""
    head = maml(inner_lr=0.1, transductive=transductive)
    x, labels, query = images
    episode = x, labels, query, torch.tensor([0, 1, 2, 0])
    weights = [network.network.features[0].conv.weight, network.network.features[3].conv.weight]
    gradients = torch.autograd.grad(meta_loss(head, network, episode), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = drawn(*weight.shape, seed=2) - 0.5
        with torch.no_grad():
            weight += 1e-6 * direction
            above = meta_loss(head, network, episode)
            weight -= 2e-6 * direction
            below = meta_loss(head, network, episode)
            weight += 1e-6 * direction
        slope = (above - below) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)


def test_support_norm_is_batch_norm_and_then_keeps_the_statistics():
    norm = nn.BatchNorm2d(3).double()
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    ours, seen, later = SupportNorm(norm), drawn(4, 3, 5, 5), drawn(2, 3, 5, 5, seed=1)
    torch.testing.assert_close(ours(seen), norm(seen))
    mean, var = seen.mean((0, 2, 3)), seen.var((0, 2, 3), correction=0)
    expected = functional.batch_norm(later, mean, var, norm.weight, norm.bias)
    torch.testing.assert_close(ours.eval()(later), expected)
    flat = nn.BatchNorm1d(3, affine=False).double()
    torch.testing.assert_close(SupportNorm(flat)(seen[..., 0, 0]), flat(seen[..., 0, 0]))


def test_queries_are_normalised_by_the_adapted_networks_support_statistics(network, images):
    """The support set itself is answered as batch norm in training mode answers it."""
    x, labels, _ = images
    classifier = maml(test_steps=2).classifier(network.eval(), support_of(x, labels))
    plain = copy.deepcopy(network).train()
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(classifier.parameters()), plain.parameters()
    )
    torch.testing.assert_close(classifier(x), plain(x).detach())


def test_transductive_is_what_learn2learns_example_does(network, images):
    from learn2learn.algorithms import MAML as Learner

    x, labels, query = images
    learner = Learner(copy.deepcopy(network), lr=0.5).clone()
    learner.adapt(functional.cross_entropy(learner(x), labels))
    expected = learner(query).detach()

    head = maml(transductive=True)
    found = head.train_logits(network, x, labels, query, WAYS)
    torch.testing.assert_close(found.detach(), expected)
    classifier = head.classifier(network.eval(), support_of(x, labels))
    torch.testing.assert_close(classifier(query), expected)
    assert not torch.allclose(classifier(query[:2]), expected[:2])
    with pytest.raises(UserError, match="--set transductive=false"):
        head.attackable()


@pytest.mark.parametrize("transductive", [False, True])
def test_training_moves_no_running_statistics(network, images, transductive):
    x, labels, query = images
    before = {key: value.clone() for key, value in network.named_buffers()}
    logits = maml(transductive=transductive).train_logits(network, x, labels, query, WAYS)
    logits.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())
    assert all(module.training for module in network.modules())
    assert all(bool(weight.grad.any()) for weight in network.network.classifier.parameters())


def test_a_buffer_that_a_forward_writes_to_stays(linear, episode):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, x):
            self.passes += 1
            return self.linear(x)

    x, labels, _, _ = episode
    module = Counting()
    assert adapted(module, x, labels, 0.1, 3).passes == 3
    assert module.passes == 0


def test_learn2learns_own_clone_moves_them(network, images):
    """Why `adapted` clones buffers itself; when this fails it no longer needs to."""
    from learn2learn.utils import clone_module

    before = network.network.features[0].normalize.running_mean.clone()
    clone_module(network)(images[0])
    assert not torch.equal(network.network.features[0].normalize.running_mean, before)


# ---- where it runs -------------------------------------------------------------------------------


def test_a_network_whose_weights_require_no_gradient_adapts_too(network, images):
    """While an attack crafts, and in the evaluation, none does; the queries' gradient is wanted."""
    x, labels, query = images
    head = maml(train_steps=2)
    with attacking(network):
        query = query.requires_grad_()
        logits = head.train_logits(network, x, labels, query, WAYS)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), query)
    assert gradient.any()
    network.eval()
    expected = head.train_logits(network, x, labels, query.detach(), WAYS)
    torch.testing.assert_close(logits, expected)


def test_a_forward_bound_by_a_wrapper_is_not_the_originals(network, images):
    """Accelerate binds its autocast to the network; a shallow copy of that runs the original."""
    x, labels, query = images
    head = maml()
    expected = head.train_logits(network, x, labels, query, WAYS)
    network.forward = MethodType(lambda self, x: type(self).forward(self, x), network)
    torch.testing.assert_close(head.train_logits(network, x, labels, query, WAYS), expected)
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(head.train_logits(compiled, x, labels, query, WAYS), expected)


def test_without_gradients_the_adapted_copy_requires_none(linear, episode):
    x, labels, _, _ = episode
    with torch.no_grad():
        module = adapted(linear, x, labels, 0.1, 2)
    assert not any(weight.requires_grad for weight in module.parameters())
    assert all(weight.requires_grad for weight in linear.parameters())


# ---- ANIL ----------------------------------------------------------------------------------------


class Frozen(nn.Module):
    """A network whose features have no weights: the last layer is all that there is to adapt."""

    def __init__(self):
        super().__init__()
        self.network = nn.Module()
        self.network.features = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Tanh())
        self.network.classifier = nn.Linear(12, WAYS).double()

    def features(self, x):
        return self.network.features(x)

    def forward(self, x):
        return self.network.classifier(self.features(x))


def test_anil_is_maml_on_features_that_do_not_change(images):
    x, labels, query = images
    torch.manual_seed(0)
    model = Frozen()
    options = {"inner_lr": 0.3, "train_steps": 3, "test_steps": 4}
    anil, whole = ANILHead(ANIL.Options(**options)), maml(**options)

    ours = anil.fit(model.features(x), labels, WAYS, model)(model.features(query))
    theirs = whole.train_logits(model, x, labels, query, WAYS)
    torch.testing.assert_close(ours, theirs)
    last = model.network.classifier.weight
    gradients = [torch.autograd.grad(some.square().sum(), last)[0] for some in (ours, theirs)]
    torch.testing.assert_close(*gradients)

    tested = [head.classifier(model.eval(), support_of(x, labels)) for head in (anil, whole)]
    torch.testing.assert_close(tested[0](query), tested[1](query))
    assert not torch.allclose(tested[0](query), ours)  # four steps, not three


def test_anils_features_learn_through_the_inner_loop(network, images):
    """By finite differences; the running statistics move, as in any training."""
    x, labels, query = images
    head = ANILHead(ANIL.Options())
    weight = network.network.features[3].conv.weight

    def loss():
        features = network.features(torch.cat([x, query]))
        logits = head.fit(features[:6], labels, WAYS, network)(features[6:])
        return head.loss(logits, torch.tensor([0, 1, 2, 0]))

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = drawn(*weight.shape, seed=2) - 0.5
    with torch.no_grad():
        weight += 1e-6 * direction
    above = loss().detach()
    with torch.no_grad():
        weight -= 2e-6 * direction
    slope = (above - loss().detach()) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)
