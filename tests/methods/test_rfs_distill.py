"""RFS-distill against the closed forms of its loss and of its gradient to the logits."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.base import Threat
from aal_bench.methods.rfs import RFS
from aal_bench.methods.rfs_distill import RFSDistill

THREAT = Threat(8 / 255, 2 / 255, 10)


def taught(teacher, **options):
    """The method as the adapter has it: its teacher is in eval mode, its weights frozen."""
    method = RFSDistill(RFSDistill.Options(**options), THREAT)
    method.learn_from(teacher.eval().requires_grad_(False))
    return method


def softmax(logits, T=1.0):
    total = math.fsum(math.exp(value / T) for value in logits)
    return [math.exp(value / T) / total for value in logits]


def by_hand(student, teacher, labels, gamma, alpha, T):
    """The loss of rows of logits in floats; the teacher's distribution comes first in the KL."""
    losses = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        kl = math.fsum(
            p * math.log(p / q) for p, q in zip(softmax(t, T), softmax(s, T), strict=True)
        )
        losses.append(-gamma * math.log(softmax(s)[label]) + alpha * T * T * kl)
    return math.fsum(losses) / len(losses)


def test_it_is_half_cross_entropy_and_half_divergence_at_temperature_four():
    options = RFSDistill.Options()
    assert (options.gamma, options.alpha, options.temperature) == (0.5, 0.5, 4.0)
    assert RFSDistill.teacher == "rfs"
    assert not RFSDistill.attacks


@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.0, "alpha": 1.0}, {"gamma": 0.3, "alpha": 2.0, "temperature": 1.0}],
    ids=str,
)
def test_the_loss_is_its_formula(toy, batch, options):
    student, teacher = toy(0), toy(1)
    method = taught(teacher, **options)
    found = method.loss(student, batch, batch.x, cross_entropy(student))
    logits = student(batch.x).tolist(), teacher(batch.x).tolist(), batch.targets.tolist()
    o = method.options
    expected = by_hand(*logits, o.gamma, o.alpha, o.temperature)
    assert math.isclose(found.item(), expected, rel_tol=1e-12)


def test_a_student_that_equals_its_teacher_diverges_by_nothing(toy, batch):
    student = toy().eval()
    method = taught(toy())
    loss = method.loss(student, batch, batch.x, cross_entropy(student))
    half = 0.5 * F.cross_entropy(student(batch.x), batch.targets)
    torch.testing.assert_close(loss, half, rtol=0, atol=1e-14)


def test_without_a_teachers_weight_it_is_rfs_to_the_gradient(toy, batch):
    def gradients(method):
        net = toy()
        loss = method.loss(net, batch, batch.x, cross_entropy(net))
        return [loss, *torch.autograd.grad(loss, list(net.parameters()))]

    plain = gradients(RFS(RFS.Options(), THREAT))
    for ours, theirs in zip(gradients(taught(toy(1), gamma=1, alpha=0)), plain, strict=True):
        assert torch.equal(ours, theirs)


def test_the_gradient_to_the_logits_is_the_closed_form(toy, batch):
    """d/ds = (gamma (softmax(s) - y) + alpha T (softmax(s/T) - softmax(t/T))) / B."""
    student, teacher = toy(0), toy(1)
    method = taught(teacher, gamma=0.3, alpha=0.8, temperature=2.5)
    loss = method.loss(student, batch, batch.x, cross_entropy(student))
    (found,) = torch.autograd.grad(loss, student.body[-1].bias)
    s, t = student(batch.x), teacher(batch.x)
    hard = s.softmax(1) - F.one_hot(batch.targets, 5)
    soft = (s / 2.5).softmax(1) - (t / 2.5).softmax(1)
    torch.testing.assert_close(found, (0.3 * hard + 0.8 * 2.5 * soft).mean(0))


def test_the_teacher_stays_as_it_was_given(toy, batch, update, train):
    teacher = toy(1)
    method = taught(teacher)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = method.build(toy(0))
    train(student, method, update("awp"), batch, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert all(weight.grad is None for weight in teacher.parameters())
    own = {id(weight) for weight in student.parameters()}
    assert {id(weight) for weight in method.param_groups(student)} == own
    assert method.extra_modules() == method.state_dict() == {}
    assert teacher.counts["to_input"] == teacher.counts["to_weights"] == 0


def test_the_teacher_answers_in_the_objectives_precision_and_the_loss_is_float32(toy, batch):
    student, teacher = toy(0).float(), toy(1).float()
    batch = batch._replace(x=batch.x.float())
    objective, seen = cross_entropy(student), []

    @contextmanager
    def autocast():
        with torch.autocast("cpu", torch.bfloat16):
            yield
            seen.append(teacher(batch.x).dtype)

    objective = Answering(objective, autocast)
    loss = taught(teacher).loss(student, batch, batch.x, objective)
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32


class Answering:
    """An objective that says its precision, as few-shot's does."""

    def __init__(self, objective, autocast):
        self.objective, self.autocast = objective, autocast

    def __call__(self, *args, **kwargs):
        return self.objective(*args, **kwargs)


def test_without_a_teacher_there_is_no_loss(toy, batch):
    net, method = toy(), RFSDistill(RFSDistill.Options(), THREAT)
    with pytest.raises(RuntimeError, match="no teacher"):
        method.loss(net, batch, batch.x, cross_entropy(net))
