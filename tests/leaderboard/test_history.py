"""Level 0, what happened since: a challenge leaves a stage, an event and a lower value."""

import numpy as np
import pytest

from aal_bench.evidence import Evidence
from aal_bench.leaderboard import entries, pair
from aal_bench.leaderboard.extend import Attacked, Verified, confirm, extend
from aal_bench.record import percent


@pytest.fixture
def challenge(copied):
    """Add a challenge that fells `count` of the survivors, as ``verify --challenge`` does."""

    def add(count: int, kind: str = "challenge") -> None:
        entry = entries.read(copied.path)
        table = entry.evidence()
        rows = np.flatnonzero(table.robust())[: max(count, 1)]
        wrong = (table.label[rows] + 1) % 10 if count else table.label[rows]
        attacked = Attacked(
            kind=kind,  # pyright: ignore[reportArgumentType]
            implementation={"package": "submitted adversarials"},
            params={"eps": "24/255", "sha256": "0" * 64},
            rows=rows,
            pred=wrong,
            norm=24 / 255,
            forwards=1,
        )
        done = extend(entry, attacked, Verified(by="somebody", level=4))
        pair.write(copied.path, done.result, done.evidence)

    return add


def test_a_challenged_entry_holds(copied, challenge):
    before = int(Evidence.load(copied.table_path).robust().sum())
    challenge(3)
    challenge(2)
    assert copied.broken() == set()
    assert copied.tree()["external"] == percent((before - 5) / 360)
    assert copied.said("history") == "3 events, oldest first"


def test_a_challenge_that_fells_nothing_brings_nothing_down(copied, challenge):
    challenge(0)
    assert "external" not in copied.tree()
    assert copied.broken() == set()


def test_a_challenge_and_a_reattack_are_counted_each_for_itself(copied, challenge):
    challenge(1)
    challenge(1, kind="reattack")
    challenge(1)
    names = [stage["attack"] for stage in copied.tree()["evaluation"]][-3:]
    assert names == ["challenge-1", "reattack-1", "challenge-2"]
    assert copied.broken() == set()


def test_a_verification_without_a_stage(copied):
    entry = entries.read(copied.path)
    pair.write(copied.path, confirm(entry, Verified(by="somebody", level=2)), copied.table_path)
    assert copied.broken() == set()


@pytest.mark.parametrize(
    ("rule", "edit"),
    [
        ("external", lambda tree: tree.pop("external")),
        ("external", lambda tree: tree.update(external=tree["autoattack_acc"])),
        ("history", lambda tree: tree["verification"]["history"][-1].update(fallen=2)),
        ("history", lambda tree: tree["verification"]["history"][-1].update(event="verified")),
        ("history", lambda tree: tree["verification"]["history"][-1].update(external="50.00")),
        ("history", lambda tree: tree["verification"]["history"].pop()),
        ("order", lambda tree: tree["evaluation"][-1].update(n_in=359)),
        ("counts", lambda tree: tree["evaluation"][-1].update(n_out=1)),
        ("protocol", lambda tree: tree["evaluation"][-1].update(attack="challenge-2")),
        ("protocol", lambda tree: tree["evaluation"].insert(1, tree["evaluation"].pop())),
        ("parameters", lambda tree: tree["evaluation"][-1]["params"].update(eps="32/255")),
        ("arithmetic", lambda tree: tree["evaluation"][-1].update(partition="any")),
    ],
)  # fmt: skip
def test_what_a_challenge_left_cannot_be_taken_back(copied, challenge, rule, edit):
    challenge(3)
    copied.change(edit)
    assert f"0 {rule}" in copied.broken(0)


def test_a_submitter_cannot_keep_the_stage_out_of_the_table(copied, challenge):
    challenge(3)
    arrays = copied.arrays()
    arrays["stage/challenge-1"]["ok"] = arrays["stage/challenge-1"]["attacked"]
    arrays["stage/challenge-1"]["pred"] = np.where(
        arrays["stage/challenge-1"]["attacked"], arrays["label"], -1
    )
    copied.forge(arrays)
    assert {"1 stages", "1 metrics"} <= copied.broken()


def test_events_before_a_replacement_are_about_another_run(copied, challenge):
    challenge(3)
    old = copied.tree()

    def edit(tree):
        """The entry as it was submitted, replacing the challenged one."""
        replaced = {**old["verification"]["history"][0], "event": "replaced"}
        replaced |= {"external": old["external"], "at": "2099-01-01T00:00:00+00:00"}
        history = [*old["verification"]["history"], replaced]
        tree["verification"] = old["verification"] | {"level": 1, "history": history}

    copied.restore()
    copied.change(edit)
    assert copied.broken() == set()
