"""Each stage is one call of a toolkit, with every parameter written down."""

from __future__ import annotations

import inspect
from fractions import Fraction

import pytest
import torch
import torchattacks
from torch import nn

from aal_bench.adapters.classification import make_stage
from aal_bench.attacks.counting import Counted
from aal_bench.attacks.stages import Setting, Stage
from aal_bench.errors import UserError
from aal_bench.registry import AUTOATTACK
from aal_bench.threat import Threat

EPS, STEP = 0.05, 0.0125


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def batch(net):
    torch.manual_seed(1)
    x = torch.rand(6, 3, 8, 8)
    return x, net(x).argmax(1)


def perturbed(stage, net, batch, seed=7):
    torch.manual_seed(seed)
    return stage.perturb(Counted(net), *batch)


def test_fgsm_is_that_of_torchattacks(task, net, batch):
    theirs = torchattacks.FGSM(net, eps=EPS)(*batch)
    assert torch.equal(perturbed(make_stage("fgsm", task()), net, batch), theirs)


@pytest.mark.parametrize("steps", [2, 10])
def test_pgd_is_that_of_torchattacks_with_the_same_seed(task, net, batch, steps):
    torch.manual_seed(7)
    theirs = torchattacks.PGD(net, eps=EPS, alpha=STEP, steps=steps, random_start=True)(*batch)
    stage = make_stage(f"pgd-{steps}", task())
    assert torch.equal(perturbed(stage, net, batch), theirs)
    assert not torch.equal(perturbed(stage, net, batch, seed=8), theirs)


def test_cw_inf_is_pgd_on_the_margin(task, net, batch):
    """A transcription of Carlini and Wagner's f_6 under Madry's PGD, in plain loops."""
    x, y = batch
    torch.manual_seed(7)
    adversarial = (x + EPS * torch.empty_like(x).uniform_(-1, 1)).clamp(0, 1)
    for _ in range(30):
        adversarial = adversarial.detach().requires_grad_()
        logits = net(adversarial)
        margins = []
        for row, label in zip(logits, y.tolist(), strict=True):
            others = torch.cat([row[:label], row[label + 1 :]])
            margins.append(others.max() - row[label])
        gradient = torch.autograd.grad(sum(margins), adversarial)[0]
        moved = adversarial.detach() + STEP * gradient.sign()
        adversarial = torch.min(torch.max(moved, x - EPS), x + EPS).clamp(0, 1)
    ours = perturbed(make_stage("cw-inf-30", task()), net, batch)
    torch.testing.assert_close(ours, adversarial.detach(), rtol=0, atol=1e-6)
    assert (net(ours).argmax(1) != y).any()


@pytest.mark.parametrize(
    ("name", "attack", "beside"),
    [
        ("fgsm", torchattacks.FGSM, {"loss": "ce", "steps": 1, "random_start": False}),
        ("pgd-20", torchattacks.PGD, {"loss": "ce", "restarts": 1}),
    ],
)
def test_every_parameter_of_the_toolkits_class_is_recorded(
    task, net, batch, name, attack, beside, monkeypatch
):
    """The names come from its signature, the values from the object that attacked."""
    made = []

    class Seen(attack):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    stage = make_stage(name, task())
    monkeypatch.setattr(torchattacks, attack.__name__, Seen)
    stage.perturb(Counted(net), *batch)
    names = set(inspect.signature(attack.__init__).parameters) - {"self", "model"}
    used = {key: getattr(made[0], key) for key in names}
    recorded = {key: stage.params[key] for key in names}
    recorded |= {k: float(Fraction(v)) for k, v in recorded.items() if isinstance(v, str)}
    assert recorded == used
    assert {key: value for key, value in stage.params.items() if key not in names} == beside


def test_budgets_are_recorded_as_exact_fractions(task):
    question = task(eps="8/255")
    assert make_stage("fgsm", question).params["eps"] == "8/255"
    assert make_stage("pgd-10", question).params["alpha"] == "0.0125"
    assert make_stage("cw-inf-30", question).params == {
        "eps": "8/255",
        "loss": "margin",
        "alpha": "0.0125",
        "steps": 30,
        "random_start": True,
        "restarts": 1,
    }


def test_who_attacks_is_recorded(task):
    packages = {
        name: make_stage(name, task()).implementation["package"]
        for name in ("clean", "fgsm", "pgd-3", "cw-inf-3", "apgd-ce")
    }
    assert packages == {
        "clean": "aal-bench",
        "fgsm": "torchattacks",
        "pgd-3": "torchattacks",
        "cw-inf-3": "aal-bench",
        "apgd-ce": "pyautoattack",
    }


@pytest.mark.parametrize("name", ["fgsm", "pgd-3", "cw-inf-3", *AUTOATTACK])
def test_without_a_budget_no_attack_moves_a_pixel(task, gauntlet, images, name):
    pictures = images([1], [4])
    found = make_stage(name, task(eps="0")).perturb(gauntlet(), pictures.x, pictures.labels)
    assert torch.equal(found, pictures.x)


@pytest.mark.parametrize("name", ["fgsm", "pgd-3", "cw-inf-3"])
def test_a_stage_measures_eps_in_pixels_whatever_the_model_normalises(task, batch, name):
    """torchattacks would undo and redo the normalisation that such a model names (its issue #191).

    eps would then be in other units, and the images that it expects others than [0, 1].
    """
    x, y = batch

    class RobModel(nn.Module):  # the class name that torchattacks looks for
        def __init__(self):
            super().__init__()
            self.mean, self.std = torch.full((3,), 0.4), torch.full((3,), 0.2)
            self.head = nn.Linear(192, 10)

        def forward(self, v):
            return self.head(((v - 0.4) / 0.2).flatten(1))

    model = RobModel().eval()
    trapped = torchattacks.FGSM(model, eps=EPS)(x, y)
    assert (trapped - x).abs().max() > 2 * EPS  # the trap is there
    ours = perturbed(make_stage(name, task()), model, batch)
    assert EPS / 2 < (ours - x).abs().max() <= EPS + 1e-6
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_linf_attacks_refuse_an_l2_task_and_autoattack_does_not(task):
    question = task(norm="L2", eps="0.5")
    for name in ("fgsm", "pgd-10", "cw-inf-30"):
        with pytest.raises(UserError, match=f"stage {name} is Linf"):
            make_stage(name, question)
    for name in ("clean", *AUTOATTACK):
        assert make_stage(name, question).name == name


def test_a_name_that_no_evidence_can_hold_is_refused_before_anything_runs():
    class MyAttack(Stage):
        pass

    setting = Setting(Threat(eps="8/255"), Fraction(2, 255), 10, 0)
    with pytest.raises(UserError, match="attack 'my_attack': a stage's name is"):
        MyAttack("my_attack", setting)
