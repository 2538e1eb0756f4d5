"""Boards as a pull request leaves them, against the main branch's: one rule for each way to cheat.

Every forgery here is consistent: levels 0 and 1 of the forged entry hold.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aal_bench.errors import UserError
from aal_bench.leaderboard import base, entries, pair, verify
from aal_bench.leaderboard.extend import Attacked, Verified, confirm, extend


def broken(board, maintainer=False):
    found = base.findings(board.root, board.base, maintainer)
    return {finding.rule for finding in found if not finding.ok}


def lower(path: Path, count: int = 3) -> None:
    """Bring an entry down, as a challenge does."""
    entry = entries.read(path)
    table = entry.evidence()
    rows = np.flatnonzero(table.robust())[:count]
    attacked = Attacked(
        kind="challenge",
        implementation={"package": "submitted adversarials"},
        params={"eps": "24/255", "sha256": "0" * 64},
        rows=rows,
        pred=(table.label[rows] + 1) % 10,
        norm=24 / 255,
    )
    done = extend(entry, attacked, Verified(by="somebody", level=4))
    pair.write(path, done.result, done.evidence)


@pytest.fixture
def board(copied, committed, tmp_path):
    """A board of two entries, and a copy of it as the main branch."""
    copied.second = copied.add(next(path for path in committed if path.name.startswith("fgsm-")))
    copied.base = tmp_path / "base"
    shutil.copytree(copied.root, copied.base)
    return copied


@pytest.fixture
def lowered(board):
    """The same where the first entry was brought down on the main branch."""
    board.before = board.tree()
    lower(board.path)
    shutil.copytree(board.root, board.base, dirs_exist_ok=True)
    return board


def test_what_did_not_change_holds(lowered):
    assert broken(lowered) == set()
    found = base.findings(lowered.root, lowered.base)
    assert [finding.level for finding in found] == [0] * 5
    assert found[0].text == "all 2 entries of the base"


def test_a_new_entry_is_welcome(board, committed):
    board.add(next(path for path in committed if path.name.startswith("aal-fgsm-")))
    assert broken(board) == set()


def test_part_of_the_boards_is_compared_with_that_part(board):
    board.second.unlink()
    for where in (board.board, board.root / "digits", board.root):
        (gone,) = [found for found in base.findings(where, board.base) if not found.ok]
        assert gone.text == f"'digits/Linf/{board.second.name}' has disappeared"


def test_an_entry_that_disappears_or_is_made_unreadable(board):
    board.second.write_text("{}")
    assert broken(board) == {"kept"}
    board.second.rename(board.second.with_name("another.json"))
    assert "kept" in broken(board)


def test_a_history_that_is_rewritten(board):
    board.change(lambda tree: tree["verification"]["history"][0].update(by="somebody else"))
    assert verify.verify(board.path)[0].ok
    assert broken(board) == {"histories"}


def test_another_run_under_the_name_without_an_event(board):
    """Old name, other weights: submitted as if nothing had been there."""
    name = board.path.stem
    board.another("Other2026Run")
    board.rename(name)
    assert broken(board) == {"histories"}


class TestWhatWasLowered:
    """A forger cannot have it as it was before."""

    def washed(self, board) -> None:
        shutil.copy(board.source.with_suffix(".npz"), board.table_path)
        board.write(json.loads(json.dumps(board.before)))

    def test_the_submitted_files_again(self, lowered):
        self.washed(lowered)
        assert verify.verify(lowered.path)[0].ok
        assert broken(lowered) == {"histories", "values", "lowered"}

    def test_under_another_name(self, lowered):
        self.washed(lowered)
        lowered.rename("Fresh2026Start")
        assert verify.verify(lowered.path)[0].ok
        assert broken(lowered) == {"kept", "lowered"}

    def test_under_another_name_with_other_weights_in_the_old_place(self, lowered):
        """The old entry is properly replaced; the run that it was lowered for is a new one."""
        place = lowered.base / "digits" / "Linf" / lowered.path.name
        tree = json.loads(place.read_text())
        event = {
            **tree["verification"]["history"][0],
            "event": "replaced",
            "at": "2099-01-01T00:00:00Z",
        }
        event |= {"external": tree["external"]}
        self.washed(lowered)
        lowered.rename("Fresh2026Start")
        replacing = json.loads(lowered.second.read_text())
        replacing["verification"]["history"] = [*tree["verification"]["history"], event]
        replacing["submission_id"] = place.stem
        (lowered.board / place.name).write_text(json.dumps(replacing))
        assert broken(lowered) == {"lowered"}

    def test_with_the_value_it_may_have_any_name(self, lowered):
        lowered.rename("Fresh2026Start")
        assert broken(lowered) == {"kept"}

    def test_falling_further_is_no_fault(self, lowered):
        lower(lowered.path, 2)
        assert broken(lowered) == set()

    def test_a_value_that_rises(self, lowered):
        lowered.change(lambda tree: tree.update(external="99.00"))
        assert broken(lowered) == {"values", "lowered"}


class TestLevels:
    """Above level 1 only a maintainer sets them."""

    def verified(self, path):
        signed = Verified(by="me", level=2, report_sha256="0" * 64)
        result = confirm(entries.read(path), signed)
        pair.write(path, result, path.with_suffix(".npz"))

    def test_a_claim(self, board):
        self.verified(board.path)
        assert verify.verify(board.path)[0].ok
        assert broken(board) == {"claims"}
        assert broken(board, maintainer=True) == set()

    def test_a_verified_entry_that_is_not_touched(self, board):
        self.verified(board.path)
        shutil.copytree(board.root, board.base, dirs_exist_ok=True)
        assert broken(board) == set()
        board.change(lambda tree: tree.update(venue="NeurIPS 2026"))
        assert broken(board) == {"claims"}


def test_a_base_that_cannot_be_compared_with(board, tmp_path):
    for where, below in (
        (board.root, tmp_path / "none"),
        (board.path, board.base),
        (board.root, tmp_path / "empty"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"no such folder|no entries here"):
            base.findings(where, below)


def test_the_command(board):
    def command(*options: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "aal_bench.cli", "verify", *map(str, options)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    assert command(board.root, "--base", board.base).returncode == 0
    board.second.unlink()
    done = command(board.root, "--base", board.base)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("NO  0 kept")]
    for wrong in (["--maintainer"], ["--base", board.base, "--level", 2]):
        assert command(board.root, *wrong).returncode == 2
