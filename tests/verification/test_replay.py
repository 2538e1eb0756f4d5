"""Level 2: the part of a claim that is not robust, replayed; honest entries and others."""

import numpy as np
import pytest
import torch

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.leaderboard.findings import broken
from aal_bench.verification import replay


@pytest.fixture
def case(submitted):
    return submitted()


def examined(case):
    """Every finding about predictions and adversarials."""
    rebuilt = case.rebuilt()
    return [
        replay.clean(rebuilt),
        *replay.replayed(case.entry, rebuilt, case.adversarials),
    ]


def wrong(case):
    return {finding.rule: finding.text for finding in examined(case) if not finding.ok}


def test_an_honest_entry(case):
    findings = examined(case)
    assert broken(findings) is None
    assert {finding.level for finding in findings} == {2}
    rules = ["clean", "adversarials", "bounds", "fooled", "fallen"]
    assert [finding.rule for finding in findings] == rules
    clean, fallen = case.entry.result.metrics.clean.value, len(case.kept()["index"])
    assert findings[0].text.startswith("0 of 60 predictions differ; clean accuracy ")
    assert findings[0].text.endswith(f"claimed {clean:.2%}")
    assert findings[3].text == (
        f"0 of {fallen} are classified correctly; 0 predictions differ from the evidence's"
    )
    assert findings[4].text == f"one for each of {fallen} images"


@pytest.mark.parametrize(("flips", "ok"), [(0, True), (1, True), (2, False)])
def test_clean_predictions_may_flip_as_far_as_accident_explains(case, flips, ok):
    """Under the tolerated 0.2 %, one flip among 60 has 11 %, two have 0.65 %."""
    rebuilt = case.rebuilt()
    claim = Evidence(rebuilt.evidence.index, rebuilt.evidence.label)
    wrong_before = np.flatnonzero(~rebuilt.evidence.clean_correct())
    pred = rebuilt.evidence.clean_pred.copy()
    pred[wrong_before[:flips]] = claim.label[wrong_before[:flips]]  # they claim more than is so
    claim.record("clean", np.arange(60), pred=pred)
    finding = replay.clean(rebuilt._replace(evidence=claim))
    assert finding.ok is ok
    assert finding.text.startswith(f"{flips} of 60 predictions differ")
    assert f"claimed {claim.clean_correct().mean():.2%}" in finding.text
    assert ("more than 0.2% of flips explain" in finding.text) is not ok


def test_the_file_must_be_the_one_that_the_entry_names(case):
    kept = case.kept()
    kept["x"][0] = 0
    np.savez(case.adversarials, **kept)
    assert "the entry names" in wrong(case)["adversarials"]
    with pytest.raises(UserError, match="no such file of adversarials"):
        replay.replayed(case.entry, case.rebuilt(), case.path.parent / "gone.npz")


def test_a_file_that_is_none_is_the_entrys_fault_once_its_hash_is_right(case):
    kept = case.kept()
    case.keep(index=kept["index"], x=kept["x"] * np.nan, stage=kept["stage"])
    assert "is not finite" in wrong(case)["adversarials"]
    case.keep(index=kept["index"], x=kept["x"])
    assert "without their stage" in wrong(case)["adversarials"]
    case.keep(**kept)
    assert wrong(case) == {}
    case.edit(**{"adversarials.count": 7})
    assert "the entry says 7" in wrong(case)["adversarials"]


def test_without_stored_adversarials_nothing_may_have_fallen(case):
    count = len(case.kept()["index"])
    case.edit(adversarials=None)
    assert wrong(case) == {"adversarials": f"none stored, {count} fell"}


def test_images_that_leave_the_ball_prove_nothing(case):
    kept = case.kept()
    index = kept["index"][2]
    kept["x"][2, 0, 4, 4] += 0.1 * np.sign(0.5 - kept["x"][2, 0, 4, 4])
    case.keep(**kept)
    where = f"image {index} of the test split (row 2 of the file)"
    assert wrong(case)["bounds"].startswith(f"{where} exceeds eps by ")


def test_images_that_leave_the_box_prove_nothing(case):
    """A black pixel 1/255 below zero is within eps, and no pixel."""
    kept, rebuilt = case.kept(), case.rebuilt()
    rows = np.flatnonzero(np.isin(rebuilt.evidence.index, kept["index"]))
    original = rebuilt.adapter.test.pixels(torch.from_numpy(rows)).numpy()
    image, *pixel = np.argwhere(original == 0)[0]
    kept["x"][(image, *pixel)] = -1 / 255
    case.keep(**kept)
    index = kept["index"][image]
    where = f"image {index} of the test split (row {image} of the file)"
    assert wrong(case)["bounds"] == f"{where} leaves the box [0, 1] by {1 / 255:.2e}"


def test_images_that_fool_nobody_prove_nothing(case):
    """The clean images instead of the adversarials of three: classified as they should be."""
    kept, rebuilt = case.kept(), case.rebuilt()
    rows = np.flatnonzero(np.isin(rebuilt.evidence.index, kept["index"][:3]))
    kept["x"][:3] = rebuilt.adapter.test.pixels(torch.from_numpy(rows)) / 255
    case.keep(**kept)
    count = len(kept["index"])
    assert wrong(case)["fooled"].startswith(f"3 of {count} are classified correctly; 3 predictions")


def test_a_fallen_image_without_its_adversarial(case):
    kept = case.kept()
    case.keep(**{name: values[1:] for name, values in kept.items()})
    first = kept["index"][0]
    assert wrong(case) == {"fallen": f"1 fallen images have none (the first is {first})"}


def test_survivors_that_the_file_itself_belies(liar):
    """A table in which three that fell stand, and with it the run's own file of adversarials."""
    case, rows, proofs = liar(3)
    assert wrong(case) == {}  # as long as theirs are missing: that is level 3's question
    kept = case.kept()
    case.keep(**{name: np.concatenate([kept[name], proofs[name]]) for name in kept})
    index = case.entry.evidence().index[rows[0]]
    assert wrong(case) == {"fallen": f"3 belong to images that stand (the first is {index})"}


def test_an_adversarial_of_another_stage(case):
    kept = case.kept()
    place = int(np.flatnonzero(kept["stage"] == "apgd-ce")[0])
    kept["stage"][place] = "fgsm"
    index = kept["index"][place]
    case.keep(**kept)
    text = f"1 name a stage under which theirs did not fall (the first is {index})"
    assert wrong(case) == {"fallen": text}
    kept["stage"][place] = "nothing"
    case.keep(**kept)
    assert wrong(case) == {"fallen": text}
