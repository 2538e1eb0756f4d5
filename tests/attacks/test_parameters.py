"""The parameters that a record states, and the passes that they cost, counted on a network."""

import json
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from aal_bench import registry
from aal_bench.adapters.classification import make_stage
from aal_bench.attacks.parameters import KINDS, budget, package, parameters, sequential
from aal_bench.errors import UserError
from aal_bench.registry import AUTOATTACK

DIGITS = ("Linf", Fraction(24, 255), Fraction(6, 255), 10)
RECORDED = {
    "clean": "{}",
    "fgsm": '{"eps": "24/255", "loss": "ce", "steps": 1, "random_start": false}',
    "pgd-10": '{"eps": "24/255", "loss": "ce", "alpha": "6/255", "steps": 10,'
    ' "random_start": true, "restarts": 1}',
    "cw-inf-30": '{"eps": "24/255", "loss": "margin", "alpha": "6/255", "steps": 30,'
    ' "random_start": true, "restarts": 1}',
    "apgd-ce": '{"eps": "24/255", "norm": "Linf", "version": "standard", "loss": "ce",'
    ' "steps": 100, "restarts": 1, "rho": "0.75", "eot_iter": 1}',
    "apgd-t": '{"eps": "24/255", "norm": "Linf", "version": "standard", "loss": "dlr-targeted",'
    ' "steps": 100, "restarts": 1, "targets": 9, "rho": "0.75", "eot_iter": 1}',
    "fab-t": '{"eps": "24/255", "norm": "Linf", "version": "standard", "steps": 100,'
    ' "restarts": 1, "targets": 9, "alpha_max": "0.1", "eta": "1.05", "beta": "0.9"}',
    "square": '{"eps": "24/255", "norm": "Linf", "version": "standard", "loss": "margin",'
    ' "queries": 5000, "restarts": 1, "p_init": "0.8", "resc_schedule": false}',
}
"""What the first records of task digits hold, byte by byte."""


@pytest.mark.parametrize("stage", RECORDED)
def test_hashes_of_records_do_not_change(stage):
    assert json.dumps(parameters(stage, *DIGITS)) == RECORDED[stage]


class TestTheStagesTakeTheirs:
    @pytest.mark.parametrize("norm", ["Linf", "L2"])
    @pytest.mark.parametrize("classes", [3, 10])
    @pytest.mark.parametrize("stage", RECORDED)
    def test_parameters(self, task, stage, norm, classes):
        question = task(classes, norm=norm)
        eps, step = question.threat.eps, question.attack.step
        expected = parameters(stage, norm, eps, step, classes)
        if expected is None:  # no such stage under L2, or no DLR loss with three classes
            with pytest.raises(UserError):
                make_stage(stage, question)
        else:
            assert json.dumps(make_stage(stage, question).params) == json.dumps(expected)

    @pytest.mark.parametrize("stage", RECORDED)
    def test_package_and_partition(self, task, stage):
        made = make_stage(stage, task())
        assert made.implementation["package"] == package(stage)
        assert made.sequential == sequential(stage) == (stage in AUTOATTACK)


def test_every_attack_of_the_registry_has_a_row_and_every_row_an_attack():
    of_images = {n: r for n, r in registry.ATTACKS.items() if r.families != registry.DETECTION}
    assert KINDS.keys() == of_images.keys()
    for name, row in of_images.items():
        assert registry.load(row.target).kind == name


@given(
    st.one_of(
        st.from_regex(r"\A(pgd|cw-inf|fgsm|square|clean|x)(-[0-9N]{0,6})?\Z"),
        st.from_regex(r"\A(challenge|reattack)-[0-9]\Z"),
        st.text(max_size=8),
    )
)
@example("pgd-N")
@example("pgd-010")
@example("pgd-10\n")
@example("pgd-" + "9" * 6)
@example("pgd-\N{ARABIC-INDIC DIGIT ONE}")
def test_a_name_is_ours_exactly_when_it_is_the_registrys(name):
    ours = False
    with suppress(UserError):
        found = registry.find("attack", name)
        ours = found.row.families != registry.DETECTION
    assert (parameters(name, *DIGITS) is not None) == (package(name) is not None) == ours


class Counts(nn.Module):
    """A linear network whose class 0 leads by 1, of which no image in the box takes 0.2.

    Each call with one image is one forward; a gradient that reaches its logits, one backward.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(5e-4 * torch.randn(classes, 3 * 8 * 8).clamp(-1, 1))
        self.forwards = self.backwards = 0

    def _back(self, _gradient: torch.Tensor) -> None:
        self.backwards += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) == 1
        self.forwards += 1
        logits = x.flatten(1) @ self.weight.T - torch.arange(len(self.weight))
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits


@pytest.mark.parametrize(
    ("norm", "classes", "stage"),
    [
        *(
            ("Linf", classes, stage)
            for classes in (5, 10)
            for stage in ("clean", "fgsm", "pgd-1", "pgd-7", "cw-inf-3", *AUTOATTACK[:3])
        ),
        *(("L2", classes, stage) for classes in (5, 10) for stage in ("clean", *AUTOATTACK[:3])),
        ("Linf", 2, "fab-t"),
        ("Linf", 4, "apgd-t"),
        ("L2", 12, "apgd-t"),
        ("Linf", 10, "square"),
        ("L2", 5, "square"),
    ],
)
def test_an_image_that_stands_costs_the_budget(task, norm, classes, stage):
    model = Counts(classes).eval()
    attack = make_stage(stage, task(classes, norm=norm))
    x, label = torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)
    x_adv = attack.perturb(model, x, label)
    verdict = model(x_adv).argmax(1)
    assert verdict == label, "this image was to stand"
    assert budget(stage, attack.params) == (model.forwards, model.backwards)


def test_an_image_that_falls_never_costs_more(images, gauntlet, task, evaluate):
    pictures = images([0, 1, 2, 3, 0, 1, 2, 3], range(8))
    stages = ("fgsm", "pgd-3", *AUTOATTACK[:3])
    evidence = evaluate(task(), gauntlet(), pictures.split(), ("clean", *stages))
    for stage in stages:
        allowed = budget(stage, make_stage(stage, task()).params)
        assert allowed is not None
        fell = evidence.column(stage, "attacked") & ~evidence.column(stage, "ok")
        assert fell.any()
        for name, most in allowed._asdict().items():
            assert evidence.column(stage, name)[fell].max() <= most
            assert set(evidence.column(stage, name)[evidence.column(stage, "ok")]) == {most}


@pytest.mark.parametrize(
    ("stage", "params"),
    [
        ("challenge-1", {"steps": 1}),
        ("pgd-10", {}),
        ("pgd-10", {"steps": "10"}),
        ("pgd-10", {"steps": True}),
        ("pgd-10", {"steps": 10.0}),
        ("apgd-t", {"steps": 100, "targets": 0}),
        ("square", {"queries": -5}),
    ],
)
def test_a_record_that_states_no_counts_has_no_budget(stage, params):
    assert budget(stage, params) is None


def test_parameters_need_no_torch():
    code = "import sys, aal_bench.attacks.parameters; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
