"""What every head keeps, and the two that fit nothing but features: prototypes and logistic."""

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench.config import Normalisation
from aal_bench.fewshot.answer import answers, support_of
from aal_bench.fewshot.heads.anil import ANILHead
from aal_bench.fewshot.heads.base import EpisodeClassifier
from aal_bench.fewshot.heads.finetune import FineTune
from aal_bench.fewshot.heads.logistic import Logistic
from aal_bench.fewshot.heads.maml import MAMLHead
from aal_bench.fewshot.heads.prototype import Prototype
from aal_bench.fewshot.heads.relation import Relation
from aal_bench.fewshot.heads.svm import SVM
from aal_bench.fewshot.sampling import Sampler
from aal_bench.methods.anil import ANIL
from aal_bench.methods.base import Threat
from aal_bench.methods.baseline_finetune import BaselineFinetune
from aal_bench.methods.maml import MAML
from aal_bench.methods.metaoptnet import MetaOptNet
from aal_bench.methods.protonet import ProtoNet
from aal_bench.methods.relationnet import RelationNet
from aal_bench.methods.rfs import RFS
from aal_bench.models.build import build

CPU = torch.device("cpu")
THREAT = Threat(8 / 255, 2 / 255, 1)
HEADS = {
    "prototype": (ProtoNet, Prototype, {}),
    "logistic": (RFS, Logistic, {}),
    "maml": (MAML, MAMLHead, {"test_steps": 3}),
    "anil": (ANIL, ANILHead, {}),
    "relation": (RelationNet, Relation, {}),
    "svm": (MetaOptNet, SVM, {}),
    "finetune": (BaselineFinetune, FineTune, {"finetune_epochs": 3, "finetune_lr": 1e-2}),
}
READING = [name for name, (_, head, _) in HEADS.items() if not head.adapts]


class Made:
    """A head, its network (CNN4 of width 8 at 16 px, in float64) and one 3-way 2-shot episode."""

    def __init__(self, name, split, config):
        kind, head, options = HEADS[name]
        method = kind(kind.Options(**options), THREAT)
        torch.manual_seed(0)
        outputs = {"ways": config.ways, "classes": 6, "features": 2}[method.outputs]
        network = build("cnn4-8", outputs, 16, Normalisation())
        self.model = method.build(network).double()
        self.model.train()
        with torch.no_grad():  # running statistics other than 0 and 1
            features = self.model.features(split.pixels(torch.arange(60)).double() / 255)
            if name == "relation":
                self.model.relation(torch.cat([features, features.flip(0)], 1)[:, :, None, None])
        self.model.eval().requires_grad_(False)
        self.head = head(method.options)
        self.listed = Sampler(split.labels, config.ways, config.shots, config.queries).draw(3, 0)
        support = support_of(split, self.listed.support[0], config, copies=False, device=CPU)
        self.support = support._replace(
            images=support.images.double(), copies=support.copies.double()
        )
        self.query = split.pixels(self.listed.query[0].flatten()).double() / 255
        self.labels = torch.arange(config.ways).repeat_interleave(config.queries)


@pytest.fixture
def make(split, config):
    return lambda name: Made(name, split, config)


@pytest.mark.parametrize("name", HEADS)
def test_a_query_is_answered_alone(make, name):
    made = make(name)
    classifier = made.head.classifier(made.model, made.support)
    with torch.no_grad():
        together = classifier(made.query)
        alone = torch.cat([classifier(one[None]) for one in made.query])
        turned = classifier(made.query.flip(0)).flip(0)
    assert together.shape == (12, 3)
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned, together, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_the_classifier_leaves_the_network_and_every_gradient_alone(make, name):
    made = make(name)
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    with torch.no_grad():  # whatever the caller disabled
        classifier = made.head.classifier(made.model, made.support)
    assert isinstance(classifier, nn.Module)
    assert not any(module.training for module in classifier.modules())
    x = made.query.clone().requires_grad_()
    nn.functional.cross_entropy(classifier(x), made.labels).backward()
    assert bool((x.grad != 0).any())
    for weight in (*made.model.parameters(), *classifier.parameters()):
        assert weight.grad is None
    assert not any(weight.requires_grad for weight in made.model.parameters())
    assert not any(module.training for module in made.model.modules())
    after = made.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", HEADS)
def test_input_gradients_are_those_of_finite_differences(make, name):
    made = make(name)
    classifier = made.head.classifier(made.model, made.support)

    def loss(x):
        return nn.functional.cross_entropy(classifier(x), made.labels)

    x = made.query.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        slope = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", READING)
def test_kept_features_and_pixels_give_the_same_logits(make, name):
    made = make(name)
    classifier = made.head.classifier(made.model, made.support)
    with torch.no_grad():
        features = made.model.features(made.support.images)
        readout = made.head.fit(features, made.support.labels, 3, made.model)
        kept = readout(made.model.features(made.query))
        torch.testing.assert_close(kept, classifier(made.query), rtol=1e-9, atol=1e-9)
    assert isinstance(classifier, EpisodeClassifier)
    assert not any(module.training for module in readout.modules() if module is not readout)


@pytest.mark.parametrize("name", HEADS)
def test_all_test_episodes_are_answered_as_one_by_one(make, split, config, name):
    made = make(name)
    made.model.float()
    found = list(answers(made.model, made.head, split, made.listed, config, CPU))
    assert len(found) == 3
    for episode, logits in enumerate(found):
        support = support_of(split, made.listed.support[episode], config, made.head.copies, CPU)
        query = split.pixels(made.listed.query[episode].flatten()).float() / 255
        with torch.no_grad():
            expected = made.head.classifier(made.model, support)(query)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_may_be_attacked_by_default(make, name):
    make(name).head.attackable()


# ---- prototypes and logistic regression ----------------------------------------------------------


@pytest.fixture
def points():
    """Features of four classes with three each, float64 (12, 5), labels, and 7 queries."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(3)
    centres = 2 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    features = centres[labels] + torch.randn(12, 5, generator=generator, dtype=torch.float64)
    return features, labels, torch.randn(7, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_prototype_logits_are_minus_the_distance_to_the_class_means(points, distance):
    features, labels, query = points
    head = Prototype(ProtoNet.Options(distance=distance))
    logits = head.fit(features, labels, 4, nn.Identity())(query).numpy()
    means = np.stack([features[labels == k].numpy().mean(0) for k in range(4)])
    if distance == "euclidean":
        expected = -((query.numpy()[:, None] - means) ** 2).sum(2)
    else:
        lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(means, axis=1)
        expected = query.numpy() @ means.T / lengths
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_logistic_logits_are_scikit_learns(points, ways):
    """Probabilities and their order; with two ways scikit-learn keeps one row of weights."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    features, labels, query = points
    features, labels = features[labels < ways], labels[labels < ways]
    readout = Logistic(None).fit(features, labels, ways, nn.Identity())
    logits = readout(query)
    assert logits.shape == (7, ways)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(normalize(features), labels)
    expected = fitted.predict_proba(normalize(query))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, rtol=1e-6)
    assert logits.argmax(1).tolist() == fitted.predict(normalize(query)).tolist()


@pytest.mark.parametrize("ways", [2, 4])
def test_logistic_is_a_linear_map_of_unit_features(points, ways):
    features, labels, query = points
    few = labels < ways
    readout = Logistic(None).fit(features[few], labels[few], ways, nn.Identity())
    unit = query / query.norm(dim=1, keepdim=True)
    torch.testing.assert_close(readout(query), unit @ readout.weight.T + readout.bias)
    torch.testing.assert_close(readout(3 * query), readout(query))
    assert readout.weight.shape == (ways, 5)
