"""Fine-tuning: its start by hand, its steps, and what stays as it was."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from aal_bench.config import Normalisation
from aal_bench.errors import UserError
from aal_bench.fewshot.heads.base import Support
from aal_bench.fewshot.heads.finetune import FineTune, OnLogits, entropy
from aal_bench.methods.baseline_finetune import BaselineFinetune
from aal_bench.models.build import build

WAYS = 3


@pytest.fixture
def model():
    """CNN4 of width 8 at 16 px with ten training classes, float64, in eval mode."""
    torch.manual_seed(0)
    made = build("cnn4-8", 10, 16, Normalisation()).double()
    with torch.no_grad():
        made.train()(torch.rand(32, 3, 16, 16, dtype=torch.float64))
    return made.eval()


@pytest.fixture
def support():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Support(images, images[:, None], torch.tensor([0, 1, 2, 2, 1, 0]), WAYS)


@pytest.fixture
def query():
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def head(**options):
    return FineTune(BaselineFinetune.Options(**options))


def test_the_start_is_the_paper_s_support_based_initialisation(model, support, query):
    """Cosine of the query's positive logits with the mean of each class's, by numpy."""
    with torch.no_grad():
        shown = np.maximum(model(support.images).numpy(), 0)
        asked = np.maximum(model(query).numpy(), 0)
    means = np.stack([shown[support.labels == k].mean(0) for k in range(WAYS)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = asked / np.linalg.norm(asked, axis=1, keepdims=True) @ means.T
    classifier = head(finetune_epochs=0).classifier(model, support)
    np.testing.assert_allclose(classifier(query).numpy(), expected, rtol=1e-10)


def test_the_first_step_of_adam_moves_every_weight_by_its_rate(model, support):
    """lr g / (|g| + 1e-8): against the gradient's sign, the network's weights included."""
    start = OnLogits(model, support)
    loss = functional.cross_entropy(start(support.images), support.labels)
    gradients = torch.autograd.grad(loss, list(start.parameters()))
    tuned = head(finetune_epochs=1, finetune_lr=1e-3).classifier(model, support)
    for before, after, g in zip(start.parameters(), tuned.parameters(), gradients, strict=True):
        expected = before.detach() - 1e-3 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("transductive", [False, True])
def test_the_given_network_stays_bit_by_bit(model, support, query, transductive):
    model.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        classifier = head(finetune_lr=1e-2, transductive=transductive).classifier(model, support)
        classifier(query)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())


def test_more_epochs_fit_the_support_set_better_and_batch_norm_stays(model, support):
    def fitted(epochs):
        net = head(finetune_epochs=epochs, finetune_lr=1e-3).classifier(model, support)
        loss = functional.cross_entropy(net(support.images), support.labels).item()
        return net, loss

    losses = [fitted(epochs)[1] for epochs in (0, 5, 25)]
    assert losses[0] > losses[1] > losses[2]
    net, _ = fitted(5)
    given = dict(model.named_buffers())
    assert all(torch.equal(value, given[key]) for key, value in net.model.named_buffers())
    assert all(weight.grad is None for weight in net.parameters())


def test_the_transductive_step_makes_the_queries_answers_more_certain(model, support, query):
    plain = head(finetune_lr=1e-3).classifier(model, support)
    with torch.no_grad():  # as the adapter calls it
        sure = head(finetune_lr=1e-3, transductive=True).classifier(model, support)(query)
        same = head(finetune_lr=1e-3, transductive=True, entropy_weight=0.0)
        assert entropy(sure) < entropy(plain(query))
        alone = head(finetune_lr=1e-3, transductive=True).classifier(model, support)(query[:1])
    assert not torch.allclose(alone, sure[:1])
    assert same.classifier(model, support)(query).shape == (8, WAYS)
    with pytest.raises(UserError, match="--set transductive=false"):
        same.attackable()


def test_entropy_is_that_of_scipy():
    from scipy.stats import entropy as shannon

    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = shannon(logits.softmax(1).numpy(), axis=1).mean()
    assert entropy(logits).item() == pytest.approx(expected)


def test_a_forward_that_a_wrapper_bound_is_left_behind(model, support, query):
    """Under bf16 accelerate gives the network a forward of its own; the copy runs in the test's."""
    expected = head().classifier(model, support)(query)
    model.forward = lambda x: torch.zeros(len(x), 10, dtype=torch.float64)
    torch.testing.assert_close(head().classifier(model, support)(query), expected)
