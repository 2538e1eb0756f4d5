"""Smoothed labels against the definition: `factor` on the true class, the rest shared equally."""

import math

import pytest
import torch

from aal_bench.adapters.classification import cross_entropy
from aal_bench.errors import UserError
from aal_bench.methods.label_smoothing import torchs_smoothing

CLASSES = 5


def smoothed(labels, factor):
    """The target distributions, row by row."""
    rest = (1 - factor) / (CLASSES - 1)
    return [[factor if k == label else rest for k in range(CLASSES)] for label in labels]


@pytest.mark.parametrize(
    ("name", "options", "factor"),
    [
        ("ls0.8-pgd", {}, 0.8),
        ("ls0.9-pgd", {}, 0.9),
        ("ls0.9-pgd", {"factor": 0.55}, 0.55),
        ("ls0.8-pgd", {"factor": 0.2}, 1 / CLASSES),  # every class alike
        ("ls0.8-pgd", {"factor": 1.0}, 1.0),
    ],
    ids=str,
)
def test_the_loss_is_cross_entropy_against_the_smoothed_labels(
    toy, batch, make, name, options, factor
):
    net, method = toy(), make(name, **options)
    x_adv = method.attack(net, batch, cross_entropy(net))
    logits, targets = net(x_adv), smoothed(batch.targets.tolist(), factor)
    terms = []
    for row, target in zip(logits.tolist(), targets, strict=True):
        log_total = math.log(math.fsum(map(math.exp, row)))
        terms += [q * (log_total - value) for q, value in zip(target, row, strict=True)]
    loss = method.loss(net, batch, x_adv, cross_entropy(net))
    assert math.isclose(loss.item(), math.fsum(terms) / len(targets), rel_tol=1e-12)
    # and d loss / d logits = (p - q) / B, summed over the batch in the bias of the last layer
    (found,) = torch.autograd.grad(loss, net.body[-1].bias)
    expected = (logits.softmax(1) - torch.tensor(targets, dtype=torch.float64)).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("factor", "printed"), [(0.9, 0.1111), (0.8, 0.2222), (0.7, 0.3333)])
def test_ten_classes_give_the_known_smoothing_of_torch(factor, printed):
    assert torchs_smoothing(factor, 10) == pytest.approx(printed, abs=5e-5)


def test_the_attack_keeps_the_hard_label(toy, batch, make):
    found = []
    for name in ("pgd", "ls0.8-pgd", "ls0.9-pgd"):
        net = toy()
        torch.manual_seed(0)
        found.append(make(name).attack(net, batch, cross_entropy(net)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_true_class_less_probable_than_the_others_is_refused_and_the_mend_named(toy, batch, make):
    net, method = toy(), make("ls0.8-pgd", factor=0.1)
    with pytest.raises(UserError, match=r"with 5 classes .*--set method\.factor= 0\.2 or more"):
        method.loss(net, batch, batch.x, cross_entropy(net))
