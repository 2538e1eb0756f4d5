"""The stage `adaptive`: what all others left, counted, recorded, and stated without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench.adapters.classification import make_stage
from aal_bench.attacks import parameters
from aal_bench.attacks.adaptive import stage as adaptive
from aal_bench.attacks.adaptive.budget import FULL, QUICK
from aal_bench.data.splits import InMemory
from aal_bench.errors import RunFailed, UserError
from aal_bench.evidence import Evidence
from aal_bench.registry import ADAPTIVE, AUTOATTACK, protocol
from aal_bench.resolve import Request, resolve, stages_run

LEVELS = torch.tensor([1, 3, 5, 6, 7, 10, 11, 12, 13, 14])
"""By how many of 255 an image's own band leads; at eps = 4/255 those above 8 stand."""


@pytest.fixture
def asked(task, lab):
    return task(lab.CLASSES, eps="4/255", batch_size=6)


@pytest.fixture
def split(lab):
    y = torch.arange(len(LEVELS)) % lab.CLASSES
    pixels = torch.full((len(LEVELS), 3, 8, 8), 120, dtype=torch.uint8)
    for image, (label, more) in enumerate(zip(y.tolist(), LEVELS.tolist(), strict=True)):
        pixels[image, :, 2 * label : 2 * label + 2] += more
    return InMemory(pixels, y)


@pytest.fixture
def hides(hiding):
    """The network that hides, as every evaluation has it: float32, no gradients of weights."""
    return hiding.float().requires_grad_(False)


@pytest.fixture
def brief(monkeypatch):
    """The stage at the budget of these tests: the code is the same at any."""
    monkeypatch.setattr(adaptive, "FULL", QUICK._replace(steps=10, apgd_steps=10, betas=(1.0,)))


def test_it_fells_what_autoattack_leaves_of_a_network_that_hides(
    hides, split, asked, evaluate, brief
):
    kept: dict[int, np.ndarray] = {}
    evidence = evaluate(
        *(asked, hides, split, ["clean", "fgsm", "apgd-ce", ADAPTIVE]),
        fooled=lambda rows, x: kept.update(zip(rows.tolist(), x, strict=True)),
    )
    left = evidence.robust(["fgsm", "apgd-ce"])
    assert left.sum() >= len(LEVELS) - 1  # gradients of the final logits are zero
    stands = (LEVELS > 8).numpy()
    np.testing.assert_array_equal(evidence.robust(), stands)
    fell = evidence.column(ADAPTIVE, "attacked") & ~evidence.column(ADAPTIVE, "ok")
    np.testing.assert_array_equal(fell, left & ~stands)
    x = torch.from_numpy(np.stack([kept[row] for row in np.flatnonzero(~stands)]))
    pred = hides(x).argmax(1).numpy()
    assert (pred != split.labels.numpy()[~stands]).all()


def test_it_attacks_what_every_stage_before_it_left(hides, split, asked, evaluate, brief):
    """Stages that do not see each other's verdicts: here two have felled an image each."""
    evidence = Evidence(np.arange(len(split)), split.labels.numpy())
    everyone = np.arange(len(split))
    evidence.record("clean", everyone, pred=split.labels.numpy())
    for stage, image in {"fgsm": 0, "square": 7}.items():
        pred = split.labels.numpy().copy()
        pred[image] = (pred[image] + 1) % 4
        evidence.record(stage, everyone, pred=pred)
    evidence = evaluate(asked, hides, split, [ADAPTIVE], evidence=evidence)
    attacked = evidence.column(ADAPTIVE, "attacked")
    assert np.flatnonzero(~attacked).tolist() == [0, 7]
    assert evidence.done(ADAPTIVE).all()


def test_a_stage_that_was_cut_short_goes_on_with_the_same_batches(
    hides, split, asked, evaluate, brief
):
    def stop(*_):
        raise KeyboardInterrupt

    stages = ["clean", "fgsm", ADAPTIVE]
    whole = evaluate(asked, hides, split, stages)
    evidence = evaluate(asked, hides, split, stages[:2])
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, hides, split, [ADAPTIVE], saved=stop, evidence=evidence)
    assert 0 < evidence.done(ADAPTIVE).sum() < len(split)
    evaluate(asked, hides, split, [ADAPTIVE], evidence=evidence)
    for column in ("pred", "ok", "norm", "forwards", "backwards"):
        np.testing.assert_array_equal(
            evidence.column(ADAPTIVE, column), whole.column(ADAPTIVE, column)
        )


def test_every_pass_is_counted_those_to_a_head_beside_the_logits_too(
    hides, split, asked, evaluate, brief
):
    passes = {"forwards": 0, "backwards": 0}

    def forward(_module, inputs, _logits):
        passes["forwards"] += len(inputs[0])
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda g: passes.update(backwards=passes["backwards"] + len(g)))

    evidence = evaluate(asked, hides, split, ["clean"])
    handle = hides.register_forward_hook(forward)
    evaluate(asked, hides, split, [ADAPTIVE], evidence=evidence)
    handle.remove()
    for way, total in passes.items():
        assert int(evidence.column(ADAPTIVE, way).sum()) == total
    standing = LEVELS.numpy() > 8
    assert (evidence.column(ADAPTIVE, "backwards")[standing] > 100).all()
    assert len(set(evidence.column(ADAPTIVE, "forwards")[standing])) == 1


def test_a_network_that_leaves_eval_mode_on_the_way_is_an_error(split, asked, evaluate, hides):
    class Slipping(nn.Sequential):
        calls = 0

        def forward(self, x):
            self.calls += 1
            out = super().forward(x)
            self.train(self.calls == 9)
            return out

    with pytest.raises(RunFailed, match="in training mode"):
        evaluate(asked, Slipping(hides).eval(), split, ["clean", ADAPTIVE])


class TestParams:
    def test_are_every_number_and_every_name_as_json(self, asked):
        params = make_stage(ADAPTIVE, asked).params
        eps, step = asked.threat.eps, asked.attack.step
        assert params == parameters.parameters(ADAPTIVE, "Linf", eps, step, 4)
        assert json.loads(json.dumps(params)) == params
        assert params["eps"] == "4/255"
        assert (params["gate"]["budget"], params["heads"]["budget"]) == ("quick", "full")
        assert params["heads"]["betas"] == ["0.1", "0.5", "1", "2", "5", "10", "100"]
        assert params["heads"]["targets"] == 3
        assert params["gate"]["alpha"] == params["heads"]["alpha"] == "0.0125"
        assert "U4-class-pinned" in params["heads"]["attacks"]
        assert "T3-toward-1" in params["gate"]["attacks"]

    def test_are_known_without_torch(self):
        code = (
            "import sys; from fractions import Fraction as F;"
            " from aal_bench.attacks.parameters import parameters, package, closing;"
            " assert parameters('adaptive', 'Linf', F(8, 255), F(2, 255), 10);"
            " assert closing('adaptive') and package('adaptive') == 'aal-bench';"
            " assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_a_step_below_a_tenth_of_eps_is_raised_to_it(self):
        found = parameters.parameters(ADAPTIVE, "Linf", Fraction(32, 255), Fraction(2, 255), 10)
        assert found is not None
        assert found["gate"]["alpha"] == "16/1275"

    def test_what_a_surviving_image_costs_is_not_known_beforehand(self, asked):
        assert parameters.budget(ADAPTIVE, make_stage(ADAPTIVE, asked).params) is None

    def test_the_budget_is_full_where_there_are_heads(self, hiding, gated):
        assert adaptive.WorstCase.budget(hiding) is FULL
        assert adaptive.WorstCase.budget(gated) is QUICK


class TestItFollows:
    def stages(self, model, **more):
        return stages_run(resolve(Request(task="digits", method="again-pgd", **more)), model)

    @pytest.mark.parametrize("name", ["full", "again", "standard"])
    def test_a_protocol_with_autoattack_on_a_network_that_declares(self, hiding, gated, name):
        for model in (hiding, gated):
            assert self.stages(model, protocol=name) == (*protocol(name), ADAPTIVE)
        assert set(AUTOATTACK) <= set(protocol(name))

    def test_nothing_else(self, hiding):
        assert ADAPTIVE not in self.stages(nn.Linear(2, 2), protocol="full")
        for other in ({"protocol": "fast"}, {"protocol": "paper"}, {"smoke": True}):
            assert ADAPTIVE not in self.stages(hiding, **other)
        l2 = self.stages(hiding, protocol="standard", settings=("threat.norm=L2",))
        assert ADAPTIVE not in l2

    def test_and_is_refused_as_a_part_of_a_protocol(self):
        with pytest.raises(UserError, match="no part of a protocol"):
            protocol("clean,pgd-10,adaptive")
