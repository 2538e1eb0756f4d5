"""Every committed entry keeps the rules that a pull request is held to: levels 0 and 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from aal_bench.leaderboard import board_files, entries, verify
from aal_bench.paths import data_folder

ROOT = data_folder("leaderboards")
COMMITTED = entries.find(ROOT)


def test_there_are_entries_of_three_methods_on_both_boards():
    for board in ("digits", "cifar10-1k"):
        records = [entries.read(path).result for path in COMMITTED if board in path.parts]
        methods = {record.training.method for record in records if record.training is not None}
        assert {"fgsm", "pgd", "aal-fgsm"} <= methods


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_entry_keeps_every_rule_of_levels_zero_and_one(path: Path):
    (verdict,) = verify.verify(path, level=1)
    assert [finding for finding in verdict.findings if not finding.ok] == []
    assert verdict.level_held == 1


def test_the_folder_holds_nothing_but_entries_and_their_evidence():
    about = verify.verify(ROOT, level=1)[0]
    assert [finding for finding in about.findings if not finding.ok] == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_recorded_command_runs_on_any_machine(path: Path):
    command = entries.read(path).result.command
    assert not [word for word in command if Path(word).is_absolute()]


def test_the_committed_board_is_that_of_the_entries():
    assert board_files.stale(ROOT) == [], "aal-bench leaderboard --write renews it"
