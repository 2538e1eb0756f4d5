"""LBGAT against its formula, summed by hand in float64, and the teacher beside the student."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.lbgat import LBGATOptions


@pytest.fixture
def joined(toy, make):
    """joined(beta=6.0) -> the method with a teacher, the student, and the teacher."""

    def build(**options):
        method, student, teacher = make("lbgat", **options), toy(0), toy(1)
        method.join({"teacher": teacher})
        return method, student, teacher

    return build


def softmax(logits: list[float]) -> list[float]:
    total = math.fsum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def step(method, net, update, batch) -> None:
    """One step as the runner takes it: the update is told of the networks beside the model."""
    optimizer = torch.optim.SGD(method.param_groups(net), lr=0.1, momentum=0.9)
    objective = cross_entropy(net)

    def descend() -> None:
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(7)
    x_adv = method.attack(net, batch, objective)
    update(
        net,
        lambda: method.loss(net, batch, x_adv, objective),
        lambda value: value.backward(),
        descend,
        0.0,
        list(method.extra_modules().values()),
    )


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_the_loss_is_the_squared_distance_of_logits_the_teachers_nll_and_beta_kl(
    joined, batch, beta
):
    method, student, teacher = joined(beta=beta)
    x_adv = (batch.x + 0.1 * torch.randn_like(batch.x)).clamp(0, 1)
    clean, adversarial, taught = (
        logits.tolist() for logits in (student(batch.x), student(x_adv), teacher(batch.x))
    )
    pairs = [
        pair for s, t in zip(adversarial, taught, strict=True) for pair in zip(s, t, strict=True)
    ]
    mse = math.fsum((s - t) ** 2 for s, t in pairs) / len(pairs)
    assert len(pairs) == 6 * 5  # the mean is over images and classes
    nll = [
        -math.log(softmax(row)[label])
        for row, label in zip(taught, batch.targets.tolist(), strict=True)
    ]
    kl = math.fsum(
        p * math.log(p / q)
        for row, other in zip(clean, adversarial, strict=True)
        for p, q in zip(softmax(row), softmax(other), strict=True)
    )
    assert min(mse, kl) > 1e-3
    loss = method.loss(student, batch, x_adv, cross_entropy(student))
    expected = mse + math.fsum(nll) / 6 + beta * kl / 6
    assert math.isclose(loss.item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 6.0])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_its_gradients_are_those_of_finite_differences(joined, batch, beta, whose):
    method, student, teacher = joined(beta=beta)
    x_adv = (batch.x + 0.1).clamp(0, 1)
    weight = (student if whose == "student" else teacher).conv.weight

    def loss():
        return method.loss(student, batch, x_adv, cross_entropy(student))

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        weight += 1e-6 * direction
        above = loss()
        weight -= 2e-6 * direction
        below = loss()
    slope = (above - below) / 2e-6
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


def test_the_squared_distance_pulls_the_teacher_as_hard_as_the_student(joined, batch):
    """d mse / d bias is equal and opposite on the two sides; CE comes on top of the teacher's."""
    method, student, teacher = joined()
    x_adv = (batch.x + 0.1).clamp(0, 1)
    loss = method.loss(student, batch, x_adv, cross_entropy(student))
    mine, theirs = torch.autograd.grad(loss, [student.body[-1].bias, teacher.body[-1].bias])
    taught = teacher(batch.x)
    ce = torch.nn.functional.cross_entropy(taught, batch.targets)
    (alone,) = torch.autograd.grad(ce, teacher.body[-1].bias)
    expected = 2 / 5 * (student(x_adv) - taught).mean(0)
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(theirs - alone, -expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("beta", "around", "student", "teacher"),
    [
        (0.0, "plain", (12, 10, 1), (1, 0, 1)),
        (6.0, "plain", (13, 10, 2), (1, 0, 1)),
        (0.0, "awp", (13, 10, 2), (2, 0, 1)),
        (6.0, "awp", (15, 10, 4), (2, 0, 1)),
    ],
)
def test_a_step_costs_the_lean_number_of_passes_of_both_networks(
    joined, batch, update, beta, around, student, teacher
):
    """AWP's ascent needs the student's gradient alone, so it goes back through no teacher."""
    method, net, taught_by = joined(beta=beta)
    step(method, net, update(around), batch)
    assert tuple(net.counts.values()) == student
    assert tuple(taught_by.counts.values()) == teacher


def test_student_and_teacher_descend_by_one_optimiser(joined, batch, update):
    method, student, teacher = joined()
    assert method.extra_modules() == {"teacher": teacher}
    before = [net.conv.weight.detach().clone() for net in (student, teacher)]
    step(method, student, update("plain"), batch)
    for net, old in zip((student, teacher), before, strict=True):
        assert (net.conv.weight - old).abs().max() > 1e-6


def test_the_teacher_sees_clean_images_only(joined, batch, update):
    method, student, teacher = joined(beta=6.0)
    seen = []
    teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    step(method, student, update("awp"), batch)
    assert len(seen) == 2
    assert all(x is batch.x for x in seen)


def test_under_awp_the_teachers_statistics_move_once(joined, batch, update):
    method, student, teacher = joined()
    expected = copy.deepcopy(teacher)
    with torch.no_grad():
        expected(batch.x)
    step(method, student, update("awp"), batch)
    for found, once in zip(teacher.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(found, once, rtol=0, atol=1e-14)


def test_the_attack_is_that_of_trades_on_the_student(joined, batch, make):
    method, student, teacher = joined()
    found = []
    for one in (method, make("trades")):
        torch.manual_seed(0)
        found.append(one.attack(student, batch, cross_entropy(student)))
    assert torch.equal(*found)
    assert teacher.counts["forward"] == 0


def test_the_teacher_is_the_runs_own_architecture_unless_one_is_named(make):
    assert make("lbgat").companions()["teacher"] == (None, None)
    named = make("lbgat", teacher="resnet18").companions()["teacher"]
    assert named == ("resnet18", None)


def test_without_a_teacher_the_loss_says_so(make, toy, batch):
    method, net = make("lbgat"), toy()
    assert method.extra_modules() == {}
    with pytest.raises(RuntimeError, match="no teacher: join"):
        method.loss(net, batch, batch.x, cross_entropy(net))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        LBGATOptions(beta=-1)
