"""Few-shot methods: their episodes, their surgery, their losses, and that they learn."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from aal_bench.config import Normalisation, Train
from aal_bench.errors import UserError
from aal_bench.fewshot.heads.anil import ANILHead
from aal_bench.fewshot.heads.finetune import FineTune
from aal_bench.fewshot.heads.maml import MAMLHead
from aal_bench.fewshot.heads.relation import Relation
from aal_bench.fewshot.heads.svm import SVM
from aal_bench.fewshot.objective import EpisodeObjective
from aal_bench.methods.anil import ANIL
from aal_bench.methods.base import Batch, Episodic, Threat
from aal_bench.methods.baseline_finetune import BaselineFinetune
from aal_bench.methods.episodes import EpisodeTargets
from aal_bench.methods.maml import MAML
from aal_bench.methods.metaoptnet import MetaOptNet
from aal_bench.methods.relationnet import RelationNet
from aal_bench.models.build import build

THREAT = Threat(8 / 255, 2 / 255, 1)
KINDS = {
    "maml": (MAML, MAMLHead),
    "anil": (ANIL, ANILHead),
    "relationnet": (RelationNet, Relation),
    "metaoptnet": (MetaOptNet, SVM),
    "baseline-finetune": (BaselineFinetune, FineTune),
}
EPISODIC = [name for name in KINDS if name != "baseline-finetune"]
WAYS, SHOTS, QUERIES, COUNT = 3, 2, 3, 2
CLASSES = 8


def made(name, **options):
    """The method, a CNN4 of width 8 at 16 px that it built on, and the training objective."""
    kind, head = KINDS[name]
    method = kind(kind.Options(**options), THREAT)
    torch.manual_seed(0)
    outputs = {"ways": WAYS, "classes": CLASSES, "features": 2}[method.outputs]
    model = build("cnn4-8", outputs, 16, Normalisation())
    if method.outputs == "features":
        model.network.classifier = nn.Identity()
    model = method.build(model).train()
    return method, model, EpisodeObjective(model, head(method.options), nullcontext)


def images(labels, seed):
    """Images of a class have its colour and its own noise."""
    colours = torch.rand(CLASSES, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return 0.7 * colours[labels] + 0.3 * noise


def batch(name, seed=0, count=COUNT):
    """Two episodes of 3 ways, 2 shots and 3 queries of each class, or 30 labelled images."""
    generator = torch.Generator().manual_seed(seed)
    if name == "baseline-finetune":
        labels = torch.randint(0, CLASSES, (30,), generator=generator)
        return Batch(images(labels, seed), labels, torch.arange(30))
    parts = []
    for _ in range(count):
        chosen = torch.randperm(CLASSES, generator=generator)[:WAYS]
        parts += [chosen.repeat_interleave(SHOTS), chosen.repeat_interleave(QUERIES)]
    labels = torch.cat(parts)
    targets = EpisodeTargets(labels, count, WAYS, SHOTS, QUERIES)
    return Batch(images(labels, seed), targets, torch.arange(len(labels)))


@pytest.mark.parametrize(
    ("name", "head", "outputs", "precision"),
    [
        ("maml", "maml", "ways", "fp32"),
        ("anil", "anil", "ways", "fp32"),
        ("relationnet", "relation", "features", None),
        ("metaoptnet", "svm", "features", "fp32"),
        ("baseline-finetune", "finetune", "classes", None),
    ],
)
def test_what_a_method_asks_of_the_adapter(name, head, outputs, precision):
    method, _, _ = made(name)
    assert (method.head, method.training_head) == (head, head)
    assert (method.outputs, method.precision) == (outputs, precision)
    assert method.attack(nn.Identity(), one := batch(name), None) is one.x
    Train.model_validate({"epochs": 1, "lr": 0.1} | method.train_defaults)


def test_the_shape_of_training_episodes():
    assert made("maml")[0].episodes(5, 1) == Episodic(5, 1, 15, None)
    assert made("anil")[0].episodes(5, 5) == Episodic(5, 5, 15, None)
    assert made("relationnet", train_ways=10)[0].episodes(5, 1) == Episodic(10, 1, 15, None)
    assert made("metaoptnet")[0].episodes(5, 1) == Episodic(5, 15, 6, None)
    assert made("baseline-finetune")[0].episodes(5, 1) is None


@pytest.mark.parametrize("name", ["maml", "anil"])
def test_ways_that_the_networks_outputs_have_not_are_refused(name):
    method, _, _ = made(name, train_ways=20)
    with pytest.raises(UserError, match=r"train_ways=20: .* the task's 5 ways"):
        method.episodes(5, 1)
    assert made(name, train_ways=5)[0].episodes(5, 1).ways == 5


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_pure_and_its_gradient_is_that_of_finite_differences(name):
    method, model, objective = made(name)
    model.double()
    one = batch(name)
    one = one._replace(x=one.x.double())
    method.before_step(one)

    def loss():
        return method.loss(model, one, one.x, objective)

    first = loss()
    assert first.ndim == 0
    assert torch.equal(first, loss())
    weight = model.network.features[1].conv.weight
    (gradient,) = torch.autograd.grad(first, weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        weight += 1e-6 * direction
        above = loss()
        weight -= 2e-6 * direction
        below = loss()
    slope = (above - below) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", EPISODIC)
def test_the_loss_of_each_query_averages_to_the_loss(name):
    _, _, objective = made(name)
    one = batch(name)
    each = objective(one.x, one.targets, "none")
    assert each.shape == (COUNT * WAYS * QUERIES,)
    torch.testing.assert_close(each.mean(), objective(one.x, one.targets))
    torch.testing.assert_close(each.sum(), objective(one.x, one.targets, "sum"))


@pytest.mark.parametrize("name", KINDS)
def test_training_lowers_the_loss_of_classes_that_differ_in_colour(name):
    method, model, objective = made(name)
    if method.train_defaults.get("optimizer") == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(30):
        one = batch(name, seed=step)
        method.before_step(one)
        loss = method.loss(model, one, method.attack(model, one, objective), objective)
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("name", ["relationnet", "metaoptnet"])
def test_what_a_method_adds_to_the_network_is_saved_with_it(name):
    method, model, objective = made(name)
    added = {"relationnet": "relation.", "metaoptnet": "svm_scale"}[name]
    assert any(key.startswith(added) for key in model.state_dict())
    again = method.build(build("cnn4-8", 2, 16, Normalisation()))
    again.network.classifier = nn.Identity()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.01
    again.load_state_dict(model.state_dict())
    one = batch(name)
    second = EpisodeObjective(again.train(), objective.head, nullcontext)
    assert torch.equal(second(one.x, one.targets), objective(one.x, one.targets))


# ---- the baseline's mixup ------------------------------------------------------------------------


def test_mixup_is_cross_entropy_with_mixed_and_smoothed_targets():
    method, model, objective = made("baseline-finetune", label_smoothing=0.2)
    one = batch("baseline-finetune")
    method.before_step(one)
    weight, other = method.mixture
    model.eval()
    loss = method.loss(model, one, one.x, objective)

    y = torch.eye(CLASSES)[one.targets]
    w = weight[:, None]
    soft = 0.8 * (w * y + (1 - w) * y[other]) + 0.2 / CLASSES
    w = w[..., None, None]
    logits = model(w * one.x + (1 - w) * one.x[other])
    torch.testing.assert_close(loss, -(soft * logits.log_softmax(1)).sum(1).mean())


def test_each_step_draws_a_mixture_of_each_image():
    """fastai's: the larger of w and 1 - w, so that an image is mostly itself."""
    from scipy.stats import beta

    method, _, _ = made("baseline-finetune")
    big = Batch(torch.zeros(4000, 1, 1, 1), torch.zeros(4000), torch.arange(4000))
    method.before_step(big)
    weight, other = method.mixture
    assert ((weight >= 0.5) & (weight <= 1)).all()
    assert sorted(other.tolist()) == list(range(4000))
    # P(max(w, 1 - w) <= 0.9) = P(0.1 <= w <= 0.9)
    share = beta(0.25, 0.25).cdf(0.9) - beta(0.25, 0.25).cdf(0.1)
    assert (weight <= 0.9).double().mean().item() == pytest.approx(share, abs=0.04)
    method.before_step(big)
    assert not torch.equal(method.mixture[0], weight)
    assert not torch.equal(method.mixture[1], other)


def test_without_mixup_and_smoothing_the_loss_is_cross_entropy():
    method, model, objective = made("baseline-finetune", mixup=0.0, label_smoothing=0.0)
    one = batch("baseline-finetune")
    method.before_step(one)
    expected = objective(one.x, one.targets)
    torch.testing.assert_close(method.loss(model, one, one.x, objective), expected)
