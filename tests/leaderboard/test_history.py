"""Level 0, what happened since: a challenge leaves a stage, an event and a lower value."""

import numpy as np
import pytest

from aal_bench.evidence import Evidence
from aal_bench.leaderboard import entries, history, pair
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
    signed = Verified(by="somebody", level=2, report_sha256="0" * 64)
    pair.write(copied.path, confirm(entry, signed), copied.table_path)
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


class TestReplacing:
    """What another entry of the name left in the history is about another run."""

    def replaced(self, copied, challenge, run_hash: str) -> None:
        """The entry as it was submitted, in place of one of `run_hash` that was challenged."""
        challenge(3)
        old = copied.tree()
        events = [event | {"run_hash": run_hash} for event in old["verification"]["history"]]
        event = events[0] | {"event": "replaced", "external": old["external"]}
        events.append(event | {"at": "2099-01-01T00:00:00+00:00"})
        copied.restore()
        copied.change(lambda tree: tree["verification"].update(level=1, history=events))

    def test_another_run_brought_down_does_not_touch_this_one(self, copied, challenge):
        self.replaced(copied, challenge, "0" * 64)
        assert copied.broken() == set()

    def test_a_run_does_not_replace_itself(self, copied, challenge):
        self.replaced(copied, challenge, copied.tree()["run_hash"])
        assert copied.broken() == {"0 history"}
        assert "names the run that the entry holds" in copied.said("history")

    def test_what_felled_this_run_stays_wherever_it_stands(self, copied, challenge):
        """The replacement alone names another run: the challenge still is about this one."""
        own = copied.tree()["run_hash"]
        self.replaced(copied, challenge, "0" * 64)
        copied.change(lambda tree: tree["verification"]["history"][1].update(run_hash=own))
        assert "0 history" in copied.broken()
        findings = history.findings(entries.read(copied.path).result)
        assert "is another run's" in findings[1].text
        assert "stage 'challenge-1', which the entry does not have" in findings[1].text

    def test_a_replacement_names_a_run(self, copied, challenge):
        self.replaced(copied, challenge, "0" * 64)
        copied.change(lambda tree: tree["verification"]["history"][2].update(run_hash=None))
        assert "0 history" in copied.broken()


@pytest.mark.parametrize("first", ["replaced", "verified", "none"])
def test_a_history_begins_with_the_submission(copied, first):
    def edit(tree):
        events = tree["verification"]["history"]
        if first == "none":
            events.clear()
        else:
            events[0] |= {"event": first, "run_hash": "0" * 64}

    copied.change(edit)
    assert "0 history" in copied.broken()
    assert "first event is not 'submitted'" in copied.said("history")


class TestLevelFour:
    """Only what was attacked again, and then brought down."""

    def test_a_challenge_after_level_3(self, copied, challenge):
        entry = entries.read(copied.path)
        signed = Verified(by="somebody", level=3, seed=5, report_sha256="0" * 64)
        pair.write(copied.path, confirm(entry, signed), copied.table_path)
        challenge(2)
        assert copied.tree()["verification"]["level"] == 4
        assert copied.broken() == set()

    def test_a_challenge_of_ones_own_entry_at_level_1(self, copied, challenge):
        challenge(2)

        def edit(tree):
            block = tree["verification"]
            block |= {"level": 4, "by": "somebody", "date": block["history"][-1]["at"]}
            block["history"][-1]["level"] = 4

        copied.change(edit)
        assert copied.broken() == {"0 level"}
        assert "event 2, challenged, lifts the entry from 1 to 4" in copied.said("level")

    def test_a_challenge_without_a_stage(self, copied):
        entry = entries.read(copied.path)
        signed = Verified(by="somebody", level=3, seed=5, report_sha256="0" * 64)
        pair.write(copied.path, confirm(entry, signed), copied.table_path)

        def edit(tree):
            block = tree["verification"]
            block["level"] = 4
            block["history"].append(block["history"][-1] | {"event": "challenged", "level": 4})

        copied.change(edit)
        assert copied.broken() == {"0 history", "0 level"}
