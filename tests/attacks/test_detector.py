"""A detector's stages: what their names say, and the one PGD on the part of the loss they name."""

from fractions import Fraction

import pytest
import torch

from aal_bench import registry
from aal_bench.attacks.detector import DetectorStage
from aal_bench.attacks.parameters import detector_attack
from aal_bench.attacks.stages import Setting
from aal_bench.errors import UserError
from aal_bench.threat import Threat

EPS, STEP = Fraction(8, 255), Fraction(2, 255)
DETECTION_PROTOCOLS = ("detection", "detection-fast", "detection-clean")


def stage(name):
    return DetectorStage(name, Setting(Threat(norm="Linf", eps=EPS), STEP, 20, 0))


@pytest.mark.parametrize("protocol", DETECTION_PROTOCOLS)
def test_every_stage_of_the_protocols_is_one(protocol):
    names = registry.protocol(protocol)
    assert names[0] == "clean"
    for name in names:
        made = stage(name)
        assert made.name == name
        assert made.eps == float(made.asked.eps)


def test_the_protocol_has_each_part_under_each_budget():
    names = set(registry.protocol("detection"))
    for attack in ("fgsm", "pgd-10", "pgd-20"):
        for part in ("", "-cls", "-loc"):
            assert {f"{attack}{part}", f"{attack}{part}-eps-2"} <= names, attack + part


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clean", {}),
        ("fgsm", {"eps": "8/255", "loss": "total", "steps": 1, "random_start": False}),
        ("fgsm-loc-eps-2", {"eps": "2/255", "loss": "loc", "steps": 1, "random_start": False}),
        (
            "pgd-10-cls",
            {"eps": "8/255", "loss": "cls", "alpha": "2/255", "steps": 10}
            | {"random_start": True, "restarts": 1},
        ),
        (
            "pgd-20-eps-2",
            {"eps": "2/255", "loss": "total", "alpha": "1/510", "steps": 20}
            | {"random_start": True, "restarts": 1},
        ),
    ],
)
def test_parameters_are_recorded_whole(name, expected):
    assert stage(name).params == expected


def test_the_step_shrinks_with_the_budget():
    """2/255 at 8/255 is a half of 1/255 at 2/255: else the first step would cross the ball."""
    for budget in (1, 2, 4, 8, 16):
        found = detector_attack(f"pgd-10-eps-{budget}", EPS, STEP)
        assert found is not None
        assert found.alpha == Fraction(budget, 4 * 255)
        assert found.alpha / found.eps == STEP / EPS
    fgsm = detector_attack("fgsm-eps-2", EPS, STEP)
    assert fgsm is not None
    assert fgsm.alpha == fgsm.eps == Fraction(2, 255)


@pytest.mark.parametrize(
    "name",
    [
        *("apgd-ce", "square", "cw-inf-30", "pgd", "pgd-0", "pgd-010", "pgd-10-total", "clean-cls"),
        *("fgsm-eps-0", "fgsm-eps-2-cls", "pgd-10-eps-2/255", "pgd-10-cls-loc", "PGD-10", "fgsm-"),
        "",
    ],
)
def test_what_attacks_no_detector_is_refused(name):
    assert detector_attack(name, EPS, STEP) is None
    with pytest.raises(UserError, match="attacks no detector: clean, or fgsm or pgd-N"):
        stage(name)


class Linear:
    """Each image's loss: of the classes a weighted sum of its pixels, of the boxes another."""

    def __init__(self, weights, part="total"):
        self.weights, self._part, self.calls = weights, part, []

    def part(self, name):
        chosen = Linear(self.weights, name)
        chosen.calls = self.calls
        return chosen

    def __call__(self, x, targets, reduction="mean"):
        self.calls.append((self._part, reduction))
        cls, loc = ((x * weight).flatten(1).sum(1) for weight in self.weights)
        each = {"cls": cls, "loc": loc, "total": cls + loc}[self._part]
        return {"sum": each.sum, "mean": each.mean}[reduction]()


@pytest.fixture
def linear():
    generator = torch.Generator().manual_seed(0)
    return Linear(torch.randn(2, 1, 3, 8, 8, generator=generator))


X = 0.2 + 0.6 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("part", ["total", "cls", "loc"])
@pytest.mark.parametrize(("suffix", "eps"), [("", 8 / 255), ("-eps-2", 2 / 255)])
def test_fgsm_is_one_step_of_its_budget_along_its_part(linear, part, suffix, eps):
    name = "fgsm" + ("" if part == "total" else f"-{part}") + suffix
    found = stage(name).attack(linear, X, None)
    cls, loc = linear.weights
    slope = {"cls": cls, "loc": loc, "total": cls + loc}[part]
    torch.testing.assert_close(found, X + eps * slope.sign(), rtol=0, atol=1e-6)
    assert linear.calls == [(part, "sum")]


def test_pgd_from_its_start_reaches_the_corner_in_time(linear):
    """On a linear loss the best point is a corner; nine half-quarter steps cannot all reach it."""
    torch.manual_seed(0)
    found = stage("pgd-10-cls").attack(linear, X, None)
    corner = X + float(EPS) * linear.weights[0].sign()
    torch.testing.assert_close(found, corner, rtol=0, atol=1e-6)
    assert linear.calls == [("cls", "sum")] * 10
    torch.manual_seed(0)
    one = stage("pgd-1").attack(linear, X, None)
    torch.manual_seed(0)
    start = (X + float(EPS) * torch.empty_like(X).uniform_(-1, 1)).clamp(0, 1)
    assert (one - start).abs().max() <= float(STEP) + 1e-6
    assert (one - X).abs().max() <= float(EPS) + 1e-6


def test_clean_asks_for_no_gradient_and_is_the_image(linear):
    assert stage("clean").attack(linear, X, None) is X
    assert linear.calls == []


def test_the_code_that_attacks_is_named(linear):
    made = stage("pgd-10")
    assert made.implementation["package"] == "aal-bench"
    assert made.package == "aal-bench"
