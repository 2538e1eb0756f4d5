"""Relations of queries with class sums; pairs, scores and the squared error by hand."""

import pytest
import torch
from torch import nn

from aal_bench.fewshot.heads.relation import Relation, Relations
from aal_bench.methods.relationnet import RelationModule


class Weigh(nn.Module):
    """A relation that can be computed by hand: <class map, a> + 10 <query map, a>."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, pairs):
        classes, queries = pairs.chunk(2, dim=1)
        return ((classes + 10 * queries) * self.a).sum((1, 2, 3))


def test_a_query_meets_the_sum_of_each_class_and_the_class_comes_first():
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 3)
    a, support, query = (torch.randn(n, *shape, generator=generator).double() for n in (1, 6, 4))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    model = nn.Module()
    model.relation, model.feature_shape = Weigh(a), shape

    scores = Relation(None).fit(support.flatten(1), labels, 3, model)(query.flatten(1))

    assert scores.shape == (4, 3)
    for q in range(4):
        for k in range(3):
            total = support[labels == k].sum(0)  # over the shots, not their mean
            expected = (total * a[0]).sum() + 10 * (query[q] * a[0]).sum()
            torch.testing.assert_close(scores[q, k], expected)


def test_the_loss_is_the_mean_squared_error_of_the_sigmoid():
    scores = torch.tensor([[0.0, 2.0, -1.0], [1.0, -3.0, 0.5]], dtype=torch.float64)
    labels = torch.tensor([1, 0])
    relation = 1 / (1 + torch.exp(-scores))
    wanted = torch.tensor([[0, 1, 0], [1, 0, 0]]).double()
    each = ((relation - wanted) ** 2).mean(1)
    head = Relation(None)
    torch.testing.assert_close(head.loss(scores, labels, "none"), each)
    torch.testing.assert_close(head.loss(scores, labels), nn.functional.mse_loss(relation, wanted))
    torch.testing.assert_close(head.loss(scores, labels, "sum"), each.sum())


def test_scores_keep_a_gradient_where_their_sigmoid_has_none():
    scores = torch.tensor([[200.0, -200.0]], requires_grad=True)
    label = torch.tensor([0])
    (saturated,) = torch.autograd.grad(Relation(None).loss(scores, label), scores)
    assert not saturated.any()
    margin = scores[0, 0] - scores[0, 1]
    assert torch.autograd.grad(margin, scores)[0].tolist() == [[1, -1]]


@pytest.mark.parametrize(
    ("shape", "pooled"), [((64, 1, 1), 0), ((8, 2, 2), 1), ((8, 5, 5), 2), ((4, 19, 19), 2)]
)
def test_maps_are_pooled_where_they_are_large_enough(shape, pooled):
    module = RelationModule(*shape).eval()
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in module.blocks) == pooled
    pairs = torch.randn(6, 2 * shape[0], *shape[1:])
    assert module(pairs).shape == (6,)
    side = shape[1] // 2**pooled
    assert module.compare[1].in_features == 64 * side**2


def test_the_readout_does_not_stop_the_training_of_the_relation():
    """In training the relation stays in training mode; its batch norm is then the batch's."""
    module = RelationModule(4, 1, 1).train()
    readout = Relations(module, torch.randn(3, 4), (4, 1, 1))
    readout(torch.randn(5, 4)).sum().backward()
    assert module.training
    assert all(weight.grad is not None for weight in module.parameters())
