"""Checks 24, 27 and 31: claims of known truth."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.claims import (
    budget,
    per_image_worst_case,
    plausibility,
    rounded,
)
from aal_bench.audit.subject import Claim, Claims
from aal_bench.audit.table import QUICK
from aal_bench.evidence import Evidence
from aal_bench.paths import data_folder

SMALL = QUICK._replace(steps=20, restarts=1)
N = 100


class TwoClasses(nn.Module):
    """Brighter than grey or not; robust up to the distance of the mean from 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        z = self.scale * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-z, z], 1)


def grey(distance=0.1):
    """Images whose means lie `distance` from 1/2, and their labels."""
    y = torch.arange(N) % 2
    return (0.5 + distance * (2 * y - 1)).float()[:, None, None, None].expand(N, 3, 4, 4).clone(), y


def bank(subject, eps="8/255", distance=0.1, budget=SMALL, **fields):
    return Bank(subject(TwoClasses(), *grey(distance), eps=eps, **fields), budget)


def of_ten(subject, **fields):
    """A claim about ten classes, of which guessing gets a tenth."""
    return bank(subject, dataset="cifar10", classes=10, **fields)


# ---- 24 ----


def published():
    """(clean, robust) of RobustBench's rows at 8/255, from the file itself."""
    path = data_folder("leaderboards") / "reported" / "robustbench-cifar10-Linf.json"
    return [
        (float(row["clean"]) / 100, float(row["external"] or row["robust"]) / 100)
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if row["eps"] == "8/255" and not row["additional_data"] and not row["unreliable"]
    ]


def without_generated_images():
    """(clean, robust) of those which did without generated images, by their papers."""
    names = ("Gowal2020Uncovering", "Cui2023Decoupled_WRN-34-10", "Addepalli2022", "Rice2020")
    path = data_folder("leaderboards") / "reported" / "robustbench-cifar10-Linf.json"
    return [
        (float(row["clean"]) / 100, float(row["external"] or row["robust"]) / 100)
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if row["entry"].startswith(names) and row["eps"] == "8/255" and not row["additional_data"]
    ]


@pytest.mark.parametrize(("clean", "robust"), [(0.80, 0.45), (0.85, 0.57), (0.887, 0.57)])
def test_what_published_networks_reach_is_plausible(subject, clean, robust):
    assert any(c >= clean and r >= robust for c, r in without_generated_images())
    made = of_ten(subject, claims=Claims(clean=clean, robust=robust))
    assert plausibility(made).verdict == "pass"


@pytest.mark.parametrize(("clean", "robust"), [(0.96, 0.2), (0.7, 0.8)])
def test_what_no_published_network_reaches_is_not(subject, clean, robust):
    assert not any(c >= clean and r >= robust for c, r in published())
    made = of_ten(subject, claims=Claims(clean=clean, robust=robust))
    assert plausibility(made).verdict == "fail"


def test_the_first_papers_headline_is_implausible_although_generated_data_reaches_it(subject):
    clean, robust = 0.9540, 0.4289
    assert any(c >= 0.93 and r >= robust for c, r in published())
    outcome = plausibility(of_ten(subject, claims=Claims(clean=0.93, robust=robust)))
    assert outcome.verdict == "fail"
    assert "89.9 %" in outcome.sentence
    made = of_ten(subject, claims=Claims(clean=clean, robust=robust))
    assert plausibility(made).verdict == "fail"


def test_what_only_networks_with_generated_images_reach_is_not_reached_without(subject):
    clean, robust = 0.885, 0.64
    assert any(c >= clean and r >= robust for c, r in published())
    outcome = plausibility(of_ten(subject, claims=Claims(clean=clean, robust=robust)))
    assert outcome.verdict == "fail"


@pytest.mark.parametrize(("robust", "verdict"), [(0.0, "pass"), (0.119, "pass"), (0.13, "fail")])
def test_without_robustness_a_high_clean_accuracy_is_plausible(subject, robust, verdict):
    # No row has such a clean accuracy; guessing gets 10 %.
    assert not any(c >= 0.99 for c, _ in published())
    made = of_ten(subject, claims=Claims(clean=0.99, robust=robust))
    assert plausibility(made).verdict == verdict


def test_without_a_claim_the_audit_compares_what_it_measured_and_how_sure_that_is(subject):
    # All of 100 images stand: 100 % and 100 % are beyond every row, and so are their bounds.
    outcome = plausibility(of_ten(subject))
    assert outcome.verdict == "fail"
    assert outcome.measured["robust"] == 1.0
    table = Evidence(np.arange(12), np.zeros(12, int))
    few = Claims(clean=11 / 12, robust=5 / 12, evidence=table)
    assert plausibility(of_ten(subject, claims=few)).verdict == "not decided"


@pytest.mark.parametrize("fields", [{}, {"dataset": "cifar10", "eps": "7/255"}])
def test_without_rows_of_the_same_question_there_is_nothing_to_compare_with(subject, fields):
    assert plausibility(bank(subject, **fields)).verdict == "not applicable"


# ---- 27 ----


def test_no_grey_level_is_a_rounded_one_and_every_one_of_three_decimals_is():
    for grey_level in range(1, 256):
        exact = Fraction(grey_level, 255)
        three = Fraction(f"{float(exact):.3f}")
        assert rounded(exact) is None
        # 0.02, 0.2 and 0.125 are written so by who means them.
        meant = three * 100 % 1 == 0 or three * 8 % 1 == 0
        assert rounded(three) == (None if meant else grey_level)


@pytest.mark.parametrize("eps", ["0.1", "0.02", "0.3", "0.18", "1/8", "1/64", "1/510", "0.032"])
def test_an_eps_that_is_no_rounding_is_kept(eps):
    assert rounded(Fraction(eps)) is None


@pytest.mark.parametrize(
    ("eps", "grey_level"),
    [("0.031", 8), ("0.0314", 8), ("0.031373", 8), ("0.063", 16), ("0.0157", 4)],
)
def test_an_eps_written_with_the_digits_of_a_grey_level_is_that_one_rounded(eps, grey_level):
    assert rounded(Fraction(eps)) == grey_level


def test_eps_of_0_031_is_refused_and_8_255_is_kept(subject):
    outcome = budget(bank(subject, eps="0.031"))
    assert outcome.verdict == "fail"
    assert "8/255" in outcome.sentence
    kept = budget(bank(subject))
    assert kept.verdict == "pass"
    assert 0 <= kept.value <= 1e-6


def stored(folder, index, x):
    path = folder / "adversarials.npz"
    np.savez(path, index=index, stage=np.full(len(index), "fgsm"), x=x.numpy())
    return Claims(adversarials=path)


def test_stored_adversarials_within_ball_and_box_pass(subject, tmp_path):
    x, _ = grey()
    claims = stored(tmp_path, np.arange(N), x + 8 / 255)
    assert budget(bank(subject, claims=claims)).verdict == "pass"


def test_a_stored_adversarial_outside_the_ball_fails_with_its_excess(subject, tmp_path):
    x, _ = grey()
    x_adv = x.clone()
    x_adv[7, 1, 2, 3] -= 9 / 255
    outcome = budget(bank(subject, claims=stored(tmp_path, np.arange(N), x_adv)))
    assert outcome.verdict == "fail"
    assert outcome.value == pytest.approx(1 / 255, abs=1e-6)


@pytest.mark.parametrize("wrong", [-0.01, 1.01, float("nan")])
def test_a_stored_adversarial_outside_the_box_fails_even_of_an_image_not_audited(
    subject, tmp_path, wrong
):
    x, _ = grey()
    x_adv = x[:3].clone()
    x_adv[2, 0, 0, 0] = wrong
    outcome = budget(bank(subject, claims=stored(tmp_path, np.array([500, 501, 502]), x_adv)))
    assert outcome.verdict == "fail"
    assert "range of pixels" in outcome.sentence


def test_the_positions_of_stored_adversarials_are_those_of_the_evidence(subject, tmp_path):
    x, y = grey()
    table = Evidence(np.arange(N)[::-1] + 1000, y.numpy())
    path = stored(tmp_path, np.array([1000]), x[99:] + 8 / 255).adversarials
    assert budget(bank(subject, claims=Claims(adversarials=path, evidence=table))).verdict == "pass"
    # The first image is of the other class, 0.2 darker.
    path = stored(tmp_path, np.array([1000]), x[:1] + 8 / 255).adversarials
    outcome = budget(bank(subject, claims=Claims(adversarials=path, evidence=table)))
    assert outcome.value == pytest.approx(0.2 - 2 * 8 / 255, abs=1e-6)
    assert outcome.verdict == "fail"


@pytest.mark.parametrize(("norm", "verdict"), [(8 / 255, "pass"), (0.0315, "fail")])
def test_distances_that_the_evidence_states_are_held_to_eps(subject, norm, verdict):
    _, y = grey()
    table = Evidence(np.arange(N), y.numpy())
    table.record("clean", np.arange(N), pred=y.numpy())
    table.record("fgsm", np.arange(N), pred=1 - y.numpy(), norm=norm)
    assert budget(bank(subject, claims=Claims(evidence=table))).verdict == verdict


# ---- 31 ----


def halves():
    """Two attacks, each of which leaves one half of 100 images: 50 % each, 0 % together."""
    table = Evidence(np.arange(N), np.zeros(N, int))
    table.record("clean", np.arange(N), pred=np.zeros(N, int))
    table.record("fgsm", np.arange(N), pred=(np.arange(N) < 50).astype(int))
    table.record("pgd-10", np.arange(N), pred=(np.arange(N) >= 50).astype(int))
    return table


def test_the_least_of_the_averages_is_not_the_worst_case(subject):
    told = Claims(robust=0.5, per_stage={"fgsm": 0.5, "pgd-10": 0.5}, evidence=halves())
    outcome = per_image_worst_case(bank(subject, claims=told))
    assert outcome.verdict == "fail"
    assert outcome.value == pytest.approx(0.5)
    assert "least of the attacks" in outcome.sentence


def test_the_share_that_survives_everything_is(subject):
    told = Claims(robust=0.0, per_stage={"fgsm": 0.5, "pgd-10": 0.5}, evidence=halves())
    assert per_image_worst_case(bank(subject, claims=told)).verdict == "pass"


@pytest.mark.parametrize(("robust", "verdict"), [(0.62, "pass"), (0.85, "fail")])
def test_without_the_whole_table_the_audited_images_are_a_sample_of_it(subject, robust, verdict):
    ok = np.arange(N) < 60
    told = Claims(stages=(Claim("pgd-10", ok, np.ones(N, bool)),), robust=robust)
    assert per_image_worst_case(bank(subject, claims=told)).verdict == verdict


@pytest.mark.parametrize(("broken", "verdict"), [(0, "fail"), (98, "pass"), (100, "pass")])
def test_claimed_attacks_are_held_against_the_audits_own(subject, broken, verdict):
    # Every image lies within half of eps of the boundary: the audit's attacks leave none.
    ok = np.arange(N) >= broken
    told = Claims(stages=(Claim("square", ok, np.ones(N, bool)),), robust=float(ok.mean()))
    outcome = per_image_worst_case(bank(subject, distance=4 / 255, claims=told))
    assert outcome.verdict == verdict
    assert outcome.measured["own attacks"] == 0
    assert outcome.measured["claimed attacks"] == pytest.approx(1 - broken / N)


def test_without_a_claim_no_number_is_too_high(subject):
    assert per_image_worst_case(bank(subject)).verdict == "not applicable"
