"""The audit of a detector: its checks compare losses, image by image."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench import registry
from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.adapters.detection_stage import DetectionBatch
from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.detection.examine import CHECKERS, examine_detector
from aal_bench.audit.detection.judge import compared
from aal_bench.audit.detection.subject import DetectionSubject, DetectorClaim
from aal_bench.audit.examine import one
from aal_bench.audit.table import BY_NUMBER, QUICK
from aal_bench.detection.objective import DetectionObjective, targets_of
from aal_bench.threat import Threat

N = 7
"""Images: the fewest of which a sign test at 1 % can decide anything."""
EPS = 8 / 255
TINY = QUICK._replace(
    detector_steps=10, detector_sweep=(32,), detector_sweep_steps=3, detector_points=2
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small():
    """The small network of the detection tests."""
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    path = Path(__file__).parents[1] / "detection" / "small.py"
    spec = importlib.util.spec_from_file_location("audited_small", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def subject(small):
    """Make a subject: ``subject(images=7, eps="8/255", **fields)``, with a network of its own."""

    def make(images: int = N, eps: Any = "8/255", **fields) -> DetectionSubject:
        net = small.detector()
        objects = {i: small.EXAMPLES[i % 2] for i in range(images)}
        inputs, samples = small.batch(net, [(small.FED, small.FED)] * images, objects)
        x = (DetectionObjective(net).space.pixels(inputs) * 255).round() / 255
        halves = [slice(0, 4), slice(4, images)]
        batches = tuple(
            DetectionBatch(x[half], targets_of(samples[half], inputs[half])) for half in halves
        )
        net.eval().requires_grad_(False)
        given = {"threat": Threat(eps=eps), "step": 2 / 255, **fields}
        return DetectionSubject(model=net, batches=batches, **given)

    return make


def check(subject, number, budget=TINY):
    return one(DetectorBank(subject, budget), BY_NUMBER[number], registry.load(CHECKERS[number]))


@pytest.fixture(scope="module")
def examined(subject):
    return examine_detector(subject(), TINY)


def test_an_honest_detector_is_not_unreliable(examined):
    failed = [finding for finding in examined.failed if finding.severity == "unreliable"]
    assert failed == []
    passed = {finding.number for finding in examined.checks if finding.verdict == "pass"}
    assert {1, 5, 7, 10, 11, 12, 13, 16, 17, 27} <= passed


def test_an_attack_that_was_cut_off_while_the_loss_rises_is_warned_of(examined):
    """An untrained detector's loss grows without end: ten steps do not get there."""
    (found,) = [finding for finding in examined.checks if finding.number == 2]
    assert (found.verdict, found.severity) == ("fail", "warning")
    assert found.value > 0.01


def test_checks_share_their_passes(examined):
    steps, sweep = TINY.detector_steps, TINY.detector_sweep_steps
    assert examined.cost.backwards == N * (1 + steps + 2 * sweep)  # x, PGD, PGD at 32 and at 255
    assert examined.cost.naive_backwards > 3 * examined.cost.backwards
    assert examined.images == N


def test_losses_and_gradients_are_those_of_each_image_alone(subject):
    given = subject(images=5)
    bank = DetectorBank(given, TINY)
    loss, gradient = bank.slopes()
    x, targets = given.batches[1]
    alone = x[:1].clone().requires_grad_()
    whole = given.model.loss(
        DetectionObjective(given.model).space.inputs(alone), targets.samples[:1]
    )
    expected = given.model.parse_losses(whole)[0]
    (g,) = torch.autograd.grad(expected, alone)
    torch.testing.assert_close(loss[4], expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient[1][:1], g, rtol=1e-2, atol=1e-4 * float(g.abs().max()))


def test_pgd_keeps_the_best_iterate_and_stays_in_the_ball(subject):
    given = subject(images=5)
    bank = DetectorBank(given, TINY)
    run = bank.pgd()
    torch.testing.assert_close(bank.losses(run.best), run.highest, rtol=1e-4, atol=0)
    torch.testing.assert_close(bank.losses(run.last), run.loss[-1], rtol=1e-4, atol=0)
    for best, x in zip(run.best, bank.x, strict=True):
        assert (best - x).abs().max() <= EPS + 1e-6
        assert best.min() >= 0
        assert best.max() <= 1
    again = DetectorBank(given, TINY).pgd()
    assert torch.equal(run.loss, again.loss)


def test_what_is_no_number_speaks_against_the_detector():
    nan = torch.full((7,), torch.nan)
    assert compared(nan, torch.ones(7), 0.005).judged == "fail"
    assert compared(torch.ones(7), torch.ones(7), 0.005).judged == "pass"
    assert compared(torch.zeros(6), torch.ones(6), 0.005).judged == "not decided"


class Backwards(torch.autograd.Function):
    """The input as it is; its gradient's sign is turned where `x` is no whole grey level."""

    @staticmethod
    def forward(ctx, x, whole):
        ctx.save_for_backward(whole)
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        (whole,) = ctx.saved_tensors
        return torch.where(whole[:, None, None, None], grads[0], -grads[0]), None


def test_a_loss_that_only_one_step_raises_fails_as_masked(subject):
    """As after catastrophic overfitting: the gradient is right at images alone."""
    given = subject()
    space = DetectionObjective(given.model).space

    def lie(_, inputs):
        grey = space.pixels(inputs[0].detach()) * 255
        whole = ((grey - grey.round()).abs() < 1e-2).flatten(1).all(1)
        return (Backwards.apply(inputs[0], whole),)

    given.model.backbone.register_forward_pre_hook(lie)
    assert check(given, 1).verdict == "fail"
    assert check(given, 12).verdict == "pass"  # at the images themselves nothing is wrong


def test_a_detector_that_does_not_look_survives_every_eps(subject):
    given = subject()
    given.model.backbone.register_forward_pre_hook(lambda _, inputs: (0 * inputs[0],))
    found = check(given, 7)
    assert (found.verdict, found.value) == ("fail", N)


def test_a_quantised_input_has_no_gradient(subject):
    given = subject()
    given.model.backbone.register_forward_pre_hook(lambda _, inputs: ((4 * inputs[0]).round() / 4,))
    found = check(given, 11)
    assert (found.verdict, found.measured["zero"]) == ("fail", N)


def test_a_gradient_that_is_another_functions_is_contradicted(subject):
    """The input as it is, and minus its gradient: every step goes downhill."""

    def turned(_, inputs):
        x = inputs[0].view_as(inputs[0])
        if x.requires_grad:
            x.register_hook(torch.neg)
        return (x,)

    given = subject()
    given.model.backbone.register_forward_pre_hook(turned)
    assert check(given, 11).verdict == "pass"
    found = check(given, 12)
    assert (found.verdict, found.value) == ("fail", 1.0)


def test_detached_features_leave_nothing_to_attack(subject):
    given = subject()
    given.model.neck.register_forward_pre_hook(
        lambda _, inputs: (tuple(level.detach() for level in inputs[0]),)
    )
    assert check(given, 11).verdict == "fail"
    assert check(given, 12).verdict == "fail"
    assert check(given, 1).verdict == "not decided"


def test_a_stochastic_detector_is_flagged(subject):
    given = subject()
    given.model.backbone.conv1.register_forward_hook(
        lambda _, __, out: out + 0.1 * torch.randn_like(out)
    )
    found = check(given, 13)
    assert found.verdict == "fail"
    assert "random" in found.sentence
    assert check(given, 17).verdict == "fail"  # a loss that is not found again


class Stubborn(nn.BatchNorm2d):
    """A batch norm that cannot be told to evaluate."""

    def train(self, mode: bool = True):
        return super().train(True)


def test_a_detector_that_stays_in_training_mode_is_flagged(subject):
    given = subject()
    norm = given.model.backbone.bn1
    given.model.backbone.bn1 = Stubborn(norm.num_features)
    found = check(given, 16)
    assert found.verdict == "fail"
    assert "backbone.bn1" in found.sentence
    alone = check(given, 13)
    assert alone.verdict == "fail"  # statistics of the batch


def test_a_closed_gate_is_flagged_and_an_open_one_is_not(subject):
    found = {}
    for opening in (-6.0, 8.0):
        given = subject()
        insert_gate(given.model, "backbone.layer1")
        gate = gate_of(given.model)
        with torch.no_grad():
            gate.conv.weight.zero_()
            gate.bn.bias.fill_(opening)
        gate.eval().requires_grad_(False)
        found[opening] = check(given, 25)
        assert found[opening].value == pytest.approx(1 / (1 + np.exp(-opening)), abs=1e-4)
    assert [each.verdict for each in found.values()] == ["fail", "pass"]
    assert "closed" in found[-6.0].sentence


def test_a_detector_without_a_gate_has_nothing_that_masks(subject):
    assert check(subject(images=5), 25).verdict == "not applicable"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"eps": "0.031"}, "a rounded 8/255"),
        ({"claims": (DetectorClaim("fgsm", EPS, np.array([0.0314, 0.04])),)}, "fgsm moved pixels"),
        ({"claims": (DetectorClaim("fgsm-eps-2", 2 / 255, np.array([EPS])),)}, "allowed are 2"),
    ],
    ids=["rounded", "beyond", "beyond-its-own"],
)
def test_another_budget_than_the_one_named_is_flagged(subject, fields, words):
    budget = TINY._replace(detector_steps=1)
    found = check(subject(images=5, **fields), 27, budget)
    assert found.verdict == "fail"
    assert words in found.sentence


def test_a_budget_that_was_kept_passes(subject):
    claims = (DetectorClaim("fgsm-eps-2", 2 / 255, np.array([2 / 255, 0.0])),)
    assert check(subject(images=5, claims=claims), 27, TINY._replace(detector_steps=1)).verdict == (
        "pass"
    )


def test_the_undefended_control_must_fall_to_the_same_attack(subject):
    assert check(subject(images=5), 28).verdict == "not applicable"
    undefended = subject(images=5).model
    assert check(subject(undefended=undefended), 28).verdict == "pass"
    undefended.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].round(),))
    assert check(subject(undefended=undefended), 28).verdict == "fail"


def test_no_worst_case_exists_for_a_mean_precision(examined):
    (found,) = [finding for finding in examined.checks if finding.number == 31]
    assert found.verdict == "not applicable"
    assert "mean average precision" in found.sentence
