"""What an event leaves in an entry: a stage, a lower value, a line of history, a level.

Whether the rules of levels 0 and 1 hold afterwards is asked in test_history.py.
"""

import json

import numpy as np
import pytest

from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import entries, pair
from aal_bench.leaderboard.extend import (
    Attacked,
    Verified,
    capped,
    confirm,
    extend,
    is_extra,
    protocol_stages,
)
from aal_bench.results import run_hash, seal

FALLEN = range(4)
"""Of the 40 images, those that AutoAttack felled."""


@pytest.fixture
def path(make_entry):
    return make_entry("theirs", falls=FALLEN)


def challenge(path, rows, fell, kind="challenge", by="somebody", level=4, **more):
    """Extend the entry by `rows`, of which `fell` fall to class 9, and write it."""
    entry = entries.read(path)
    labels = entry.evidence().label[rows]
    attacked = Attacked(
        kind=kind,
        implementation={"package": "submitted adversarials"},
        params={"eps": "24/255"},
        rows=np.array(rows),
        pred=np.where(np.isin(rows, fell), 9, labels),
        norm=np.linspace(0.01, 0.09, len(rows)),
        **more,
    )
    done = extend(entry, attacked, Verified(by=by, level=level))
    pair.write(path, done.result, done.evidence)
    return done


def test_every_row_that_stood_is_in_the_stage_and_only_those_tried_moved(path):
    done = challenge(path, [2, 10, 20, 30], fell=[10, 20])
    table, name = Evidence.load(path.with_suffix(".npz")), "challenge-1"
    stood = np.arange(40) >= 4
    np.testing.assert_array_equal(table.column(name, "attacked"), stood)
    np.testing.assert_array_equal(np.flatnonzero(stood & ~table.column(name, "ok")), [10, 20])
    assert done.fallen.tolist() == [10, 20]
    pred, norm = table.column(name, "pred"), table.column(name, "norm")
    assert pred[[10, 20]].tolist() == [9, 9]
    assert pred[[30, 31]].tolist() == table.label[[30, 31]].tolist()
    # Row 2 had fallen before the challenge: nothing is recorded of it.
    np.testing.assert_array_equal(np.flatnonzero(norm), [10, 20, 30])
    assert table.column(name, "forwards").sum() == 0  # what it cost nobody knows


def test_the_number_is_lowered_and_autoattacks_stays(path):
    done = challenge(path, [10, 20, 30], fell=[10, 20])
    record = entries.read(path).result
    assert (record.autoattack_acc, record.external) == ("90.00", "85.00")  # 36 and 34 of 40
    assert record.metrics.robust.value == 34 / 40
    assert record.metrics.autoattack.value == 36 / 40
    stage = record.evaluation[-1]
    assert (stage.attack, stage.n_in, stage.n_out) == ("challenge-1", 36, 34)
    assert stage.partition == "survivors-in-index-order"
    assert record.evidence.sha256 == sha256_file(path.with_suffix(".npz"))
    assert record.evidence.columns == done.evidence.columns()
    assert record.seal == seal(json.loads(path.read_text()))


def test_the_run_is_still_the_run_that_was_submitted(path):
    before = entries.read(path).result
    challenge(path, [10], fell=[10])
    after = entries.read(path).result
    stages = protocol_stages(after.evaluation)
    assert stages == before.evaluation
    assert after.run_hash == before.run_hash
    assert after.run_hash == run_hash(after.task.hash, after.threat, after.model, stages)


def test_a_second_challenge_adds_to_the_first(path):
    challenge(path, [10, 20], fell=[10, 20])
    done = challenge(path, [20, 21, 22], fell=[20, 21], by="another")
    assert done.fallen.tolist() == [21]  # 20 had fallen
    record = entries.read(path).result
    assert [stage.attack for stage in record.evaluation][-2:] == ["challenge-1", "challenge-2"]
    assert record.external == "82.50"
    told = [
        (event.event, event.by, event.stage, event.fallen, event.external)
        for event in record.verification.history
    ]
    assert told == [
        ("challenged", "somebody", "challenge-1", 2, None),
        ("challenged", "another", "challenge-2", 1, "85.00"),
    ]


def test_a_reattack_counts_for_itself_and_keeps_its_passes(path):
    challenge(path, [10], fell=[10])
    spent = {"forwards": np.array([100, 300]), "backwards": np.array([50, 60])}
    challenge(path, [11, 12], [11], "reattack", level=3, seed=5, seconds=1.23456, **spent)
    stage = entries.read(path).result.evaluation[-1]
    assert (stage.attack, stage.seed, stage.wall_seconds) == ("reattack-1", 5, 1.2346)
    assert (stage.n_in, stage.n_out) == (35, 34)
    assert (stage.forwards, stage.backwards) == (400 / 35, 110 / 35)


def test_a_stage_in_which_nothing_falls_lowers_nothing(path):
    challenge(path, [10], fell=[])
    assert entries.read(path).result.external is None


@pytest.mark.parametrize(
    ("stage", "extra"),
    [
        ("challenge-1", True),
        ("reattack-12", True),
        ("challenge-0", False),
        ("challenge", False),
        ("pgd-10", False),
        ("xchallenge-1", False),
        ("challenge-1x", False),
    ],
)
def test_names_of_added_stages(stage, extra):
    assert is_extra(stage) == extra


# ---- levels -------------------------------------------------------------------------------------


def test_a_verification_is_an_event_and_a_signature(path):
    entry = entries.read(path)
    verified = Verified("a maintainer", 3, seed=2**63 + 1, report_sha256="e" * 64, note="none fell")
    record = confirm(entry, verified)
    held, (event,) = record.verification, record.verification.history
    assert (held.level, held.by, held.seed, held.date) == (3, "a maintainer", 2**63 + 1, event.at)
    assert (event.event, event.level, event.note) == ("verified", 3, "none fell")
    assert record.external is None
    assert record.metrics == entry.result.metrics
    assert record.seal == seal(record.model_dump(mode="json"))


def attacked_again(path):
    """Bring the entry to level 3."""
    record = confirm(entries.read(path), Verified("a maintainer", 3, seed=1))
    pair.write(path, record, path.with_suffix(".npz"))


def test_a_challenge_lifts_only_what_was_attacked_again_before(path):
    """Else a submitter would climb to level 4 by challenging his own entry."""
    challenge(path, [10], fell=[10])
    assert entries.read(path).result.verification.level == 0
    attacked_again(path)
    challenge(path, [11], fell=[11])
    record = entries.read(path).result
    assert (record.verification.level, record.verification.by) == (4, "somebody")
    assert record.external == "85.00"


def test_a_lower_level_does_not_take_back_a_higher_one(path):
    attacked_again(path)
    challenge(path, [10], fell=[10])
    record = confirm(entries.read(path), Verified("a maintainer", 2))
    assert (record.verification.level, record.verification.by) == (4, "somebody")
    assert [event.level for event in record.verification.history] == [3, 4, 4]
    assert record.verification.history[-1].by == "a maintainer"


def test_what_reaches_no_level_is_recorded_and_signs_none(path):
    """A re-attack whose rule fired: the fall is history, the level is whoever's it was."""
    record = confirm(entries.read(path), Verified("a maintainer", 2))
    pair.write(path, record, path.with_suffix(".npz"))
    held = record.verification
    challenge(path, [10, 11], [11], "reattack", by="another", level=None)
    after = entries.read(path).result
    assert after.external == "87.50"
    assert after.verification.model_copy(update={"history": held.history}) == held
    *_, event = after.verification.history
    assert (event.event, event.by, event.level, event.fallen) == ("reattacked", "another", 2, 1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"environment.aal_bench.commit": None}, "was evaluated by code without a commit"),
        ({"environment.aal_bench.dirty": True}, "was evaluated by code with uncommitted changes"),
        (
            {"environment.aal_bench.dirty": None},
            "was evaluated by code of which nobody knows whether it had uncommitted changes",
        ),
        ({"training.code.dirty": True}, "was trained by code with uncommitted changes"),
    ],
)
def test_code_that_nobody_can_look_up_caps_the_level_but_saves_no_number(make_entry, changes, why):
    path = make_entry("theirs", falls=FALLEN, **changes)
    assert capped(entries.read(path).result) == why
    challenge(path, [10], fell=[10])
    record = entries.read(path).result
    assert (record.verification.level, record.external) == (0, "87.50")
    assert record.verification.history[-1].event == "challenged"


def test_code_with_a_commit_is_not_capped(path):
    assert capped(entries.read(path).result) is None
