"""The audit of few-shot runs: an episode's own classifier is what is attacked and looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench import registry
from aal_bench.adapters.fewshot import FewShot
from aal_bench.adapters.method import build_method
from aal_bench.audit.bank import Bank
from aal_bench.audit.episode_control import EpisodeControl
from aal_bench.audit.examine import CHECKERS, examine, one
from aal_bench.audit.of_episodes import audited, subject_of
from aal_bench.audit.of_run import Beside, Told
from aal_bench.audit.reasons import NOT_FOR
from aal_bench.audit.table import BY_NUMBER, CHECKS, QUICK
from aal_bench.errors import UserError
from aal_bench.resolve import Request, resolve

SMALL = QUICK._replace(
    images=30, steps=20, restarts=1, sweep_steps=10, large_steps=20, random_points=4
)
HEADS = ("rfs", "protonet", "maml", "metaoptnet")
"""Logistic regression, prototypes, an adapted network and a support vector machine."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(method: str, *settings: str) -> FewShot:
    """Six episodes of three queries a class, on glyphs."""
    request = Request(
        "glyphs",
        method,
        model="cnn4-8",
        episodes=6,
        protocol="clean,fgsm",
        settings=("episodes.queries=3", *settings),
    )
    return FewShot(resolve(request), None)


def network_of(adapter: FewShot) -> nn.Module:
    model = build_method(adapter.run).build(adapter.build())
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def adapter() -> FewShot:
    return make("protonet")


@pytest.fixture
def model(adapter):
    return network_of(adapter)


def check(subject, number, budget=SMALL):
    return one(Bank(subject, budget), BY_NUMBER[number], registry.load(CHECKERS[number]))


@pytest.mark.parametrize("method", HEADS)
def test_an_honest_head_passes_every_check_that_carries_over(method):
    adapter = make(method)
    examined, _ = examine(subject_of(adapter, network_of(adapter), SMALL), SMALL)
    assert [finding.sentence for finding in examined.failed] == []
    ran = {finding.number for finding in examined.checks if finding.verdict == "pass"}
    assert {1, 2, 5, 7, 11, 12, 13, 16, 17, 27} <= ran


def test_whole_episodes_are_audited_and_one_at_least(adapter):
    queries = adapter.queries
    rows = audited(adapter, QUICK._replace(images=2 * queries + 1))
    assert len(rows) == 2 * queries
    assert (np.bincount(rows // queries)[np.unique(rows // queries)] == queries).all()
    assert len(audited(adapter, QUICK._replace(images=1))) == queries
    assert len(audited(adapter, QUICK._replace(images=None))) == 6 * queries


@pytest.mark.parametrize("method", ["rfs", "maml"])
def test_parts_answer_as_the_clean_stage_records(method):
    adapter = make(method)
    model, evidence = network_of(adapter), adapter.new_evidence()
    adapter.run_stage("clean", model, evidence, lambda *_: None, lambda *_: None)
    subject = subject_of(adapter, model, SMALL)
    predicted = Bank(subject, SMALL).clean().argmax(1).numpy()
    rows = np.concatenate([part.rows for part in subject.parts])
    np.testing.assert_array_equal(predicted == evidence.label[rows], evidence.clean_correct()[rows])
    assert len({id(part.model) for part in subject.parts}) == len(subject.parts) == 2


def test_claims_are_of_the_audited_queries(adapter, model):
    evidence = adapter.new_evidence()
    for stage in ("clean", "fgsm"):
        adapter.run_stage(stage, model, evidence, lambda *_: None, lambda *_: None)
    subject = subject_of(adapter, model, SMALL, Told(evidence=evidence))
    (claim,) = subject.claims.stages
    bank = Bank(subject, SMALL)
    assert claim.stage == "fgsm"
    # torchattacks' FGSM and the audit's are one attack on the same classifiers.
    fallen = bank.correct() & ~bank.fgsm_correct()
    np.testing.assert_array_equal(claim.attacked & ~claim.ok, fallen.numpy())
    assert check(subject, 25).verdict == "pass"


class Detached(nn.Module):
    """An episode's classifier whose features hide their graph."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.model, self.readout = classifier.model, classifier.readout

    def forward(self, x):
        return self.readout(self.model.features(x).detach())


def test_a_head_on_detached_features_is_flagged(adapter, model):
    honest = subject_of(adapter, model, SMALL)
    parts = tuple(part._replace(model=Detached(part.model).eval()) for part in honest.parts)
    subject = replace(honest, parts=parts)
    assert check(subject, 11).verdict == "fail"
    assert check(subject, 12).verdict == "fail"
    assert check(subject, 1).verdict == "not decided"  # no attack, no finding


class Loud(nn.Module):
    """The network with features so long that distances saturate the softmax."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def features(self, x):
        return 1e5 * self.network.features(x)


def test_prototypes_so_far_apart_that_the_loss_is_flat_are_reported(adapter, model):
    subject = subject_of(adapter, Loud(model).eval(), SMALL)
    found = check(subject, 11)
    assert found.verdict == "fail"
    assert found.measured["ce zero"] > 0


def test_an_answer_that_depends_on_the_other_queries_is_refused():
    adapter = make("maml", "transductive=true")
    with pytest.raises(UserError, match="transductive=false"):
        subject_of(adapter, network_of(adapter), SMALL)


def test_networks_that_no_check_of_episodes_looks_at_are_refused(adapter, model):
    with pytest.raises(UserError, match="omit --baseline"):
        subject_of(adapter, model, SMALL, beside=Beside(baseline=model))


def test_the_undefended_control_is_fitted_to_each_episodes_own_support_set(adapter, model):
    other = network_of(adapter)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    alone = subject_of(adapter, other, SMALL)
    subject = subject_of(adapter, model, SMALL, beside=Beside(undefended=other))
    assert isinstance(subject.undefended, EpisodeControl)
    for mine, theirs in zip(subject.parts, alone.parts, strict=True):
        control = subject.undefended.of(mine.model)
        torch.testing.assert_close(control(mine.x), theirs.model(mine.x))
    found = check(subject, 28)
    right = Bank(alone, SMALL).correct().double().mean()
    assert found.measured["clean"] == pytest.approx(float(right), abs=1e-6)


def test_every_check_that_does_not_carry_over_says_why():
    missing = {
        (family, one_.number)
        for one_ in CHECKS
        for family in ("fewshot", "detection")
        if family not in one_.families
    }
    assert set(NOT_FOR) == missing
    assert len(set(NOT_FOR.values())) == len(NOT_FOR)
    assert all(reason[0].isupper() and reason.endswith(".") for reason in NOT_FOR.values())
