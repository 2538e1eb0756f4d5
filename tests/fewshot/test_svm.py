"""MetaOptNet's support vector machine against scikit-learn's."""

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench.fewshot.heads.svm import SVM
from aal_bench.methods.metaoptnet import MetaOptNet


@pytest.fixture
def model():
    made = nn.Module()
    made.svm_scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    return made


def points(ways, shots, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(ways).repeat_interleave(shots)
    centres = torch.randn(ways, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(ways * shots, 6, generator=generator, dtype=torch.float64)
    return centres[labels] + noise, labels, torch.randn(9, 6, generator=generator).double()


@pytest.mark.parametrize(("ways", "shots", "c"), [(5, 1, 0.1), (5, 4, 0.1), (3, 5, 1.0)])
def test_weights_are_those_of_crammer_and_singers_machine(model, ways, shots, c):
    """MetaOptNet adds 1 to the kernel's diagonal: one more feature of each image's own."""
    from sklearn.svm import LinearSVC

    features, labels, query = points(ways, shots)
    readout = SVM(MetaOptNet.Options(c=c)).fit(features, labels, ways, model)
    machine = LinearSVC(
        multi_class="crammer_singer", fit_intercept=False, C=c, tol=1e-10, max_iter=1_000_000
    )
    machine.fit(np.hstack([features, np.eye(len(features))]), labels)
    expected = query.numpy() @ machine.coef_[:, :6].T
    np.testing.assert_allclose(readout(query).detach().numpy(), expected, atol=1e-5)


def test_logits_are_linear_and_multiplied_by_the_learnt_scale(model):
    features, labels, query = points(4, 2)
    head = SVM(MetaOptNet.Options())
    plain = head.fit(features, labels, 4, model)(query)
    with torch.no_grad():
        model.svm_scale.fill_(7.0)
    scaled = head.fit(features, labels, 4, model)
    torch.testing.assert_close(scaled(query), 7 * plain)
    torch.testing.assert_close(scaled(2 * query[:1] - query[1:2]), 7 * (2 * plain[:1] - plain[1:2]))
    scaled(query)[0, 0].backward()
    torch.testing.assert_close(model.svm_scale.grad, plain[0, 0].detach())


def test_training_descends_through_the_optimum(model):
    """The gradient by a support feature, which only the quadratic program links to the logits."""
    features, labels, query = points(3, 2)
    head = SVM(MetaOptNet.Options())

    def loss(support):
        logits = head.fit(support, labels, 3, model)(query)
        return head.loss(logits, torch.arange(3).repeat(3))

    features.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(features), features)
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        slope = (loss(features + 1e-5 * direction) - loss(features - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)


def test_smoothed_targets_are_those_of_the_official_code():
    """1 - eps on the query's class and eps / (ways - 1) on each other."""
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([3, 0, 4, 4])
    target = torch.full((4, 5), 0.2 / 4, dtype=torch.float64)
    target[torch.arange(4), labels] = 0.8
    each = -(target * logits.log_softmax(1)).sum(1)
    head = SVM(MetaOptNet.Options(label_smoothing=0.2))
    torch.testing.assert_close(head.loss(logits, labels, "none"), each)
    torch.testing.assert_close(head.loss(logits, labels), each.mean())


def test_features_in_half_precision_are_fitted_in_single(model):
    features, labels, query = points(3, 2)
    head = SVM(MetaOptNet.Options())
    exact = head.fit(features.bfloat16().float(), labels, 3, model)(query.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        cast = head.fit(features.bfloat16(), labels, 3, model)(query.bfloat16())
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, exact)
