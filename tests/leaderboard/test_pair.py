"""A record and its evidence are written both or neither, whoever else writes and whatever kills."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aal_bench.errors import UserError
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import entries, pair

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from aal_bench.leaderboard import entries, pair

renames = int(sys.argv[3])
rename = os.replace

def counted(source, target):
    global renames
    if renames == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    rename(source, target)

os.replace = counted
path, table = Path(sys.argv[1]), Path(sys.argv[2])
result = entries.read(path.with_suffix(".next")).result
with pair.locked(path.parent):
    pair.write(path, result, table)
"""
"""Writes the entry `argv[1]`, and is killed instead of its rename number `argv[3]`."""


@pytest.fixture
def two(make_result, tmp_path):
    """(path of an entry, what it says now, what it shall say, the new table)."""
    folder = tmp_path / "digits" / "Linf"
    path = folder / "entry.json"
    before = stored(make_result(), tmp_path / "old.npz", seed=1)
    after = stored(make_result(), tmp_path / "new.npz", seed=2)
    with pair.locked(folder):
        pair.write(path, before, tmp_path / "old.npz")
    path.with_suffix(".next").write_text(pair.dumps(after), encoding="utf-8")
    return path, before, after, tmp_path / "new.npz"


def stored(made, table: Path, seed: int):
    """The record of a table that is saved at `table`; different seeds, different tables."""
    made.evidence.clean_pred[seed] = 9
    made.evidence.save(table)
    block = made.result.evidence.model_copy(update={"sha256": sha256_file(table)})
    return made.result.model_copy(update={"evidence": block, "submission_id": "entry"})


def consistent(path: Path) -> bool:
    """Whether the record states the sha256 of the table beside it."""
    stated = entries.read(path).result.evidence
    return stated is not None and stated.sha256 == sha256_file(path.with_suffix(".npz"))


def test_both_files_are_there_and_agree(two):
    path, before, _, _ = two
    assert entries.read(path).result == before
    assert consistent(path)


@pytest.mark.parametrize("rename", [0, 1, 2, 3, 4])
def test_killed_at_any_rename_the_next_writer_finds_the_old_pair_or_the_new_one(two, rename):
    path, before, after, table = two
    script = [sys.executable, "-c", KILLED_AT, str(path), str(table), str(rename)]
    done = subprocess.run(script, check=False)
    # Four renames: both files into their hidden places, then into the visible ones.
    assert done.returncode == (0 if rename == 4 else -signal.SIGKILL)
    with pair.locked(path.parent):
        pass
    assert consistent(path)
    assert entries.read(path).result == (before if rename < 2 else after)
    left = {entry.name for entry in path.parent.iterdir()}
    assert left == {"entry.json", "entry.npz", "entry.next"}


def test_a_record_of_another_table_is_not_written(two, tmp_path):
    path, before, after, _ = two
    with pair.locked(path.parent), pytest.raises(ValueError, match="another sha256"):
        pair.write(path, after, tmp_path / "old.npz")
    assert entries.read(path).result == before
    assert consistent(path)


def test_a_second_process_waits_for_the_folder(two):
    path = two[0]
    script = (
        "import sys; from pathlib import Path; from aal_bench.leaderboard import pair\n"
        "print('asks', flush=True)\n"
        "with pair.locked(Path(sys.argv[1])): print('has it', flush=True)\n"
    )
    with pair.locked(path.parent):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path.parent)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    with process.stdout:
        assert process.stdout.read() == "has it\n"
    assert process.wait() == 0


def test_a_linked_folder_is_refused(two, tmp_path):
    link = tmp_path / "L2"
    link.symlink_to(two[0].parent)
    with pytest.raises(UserError, match="symbolic link"), pair.locked(link):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "digits").write_text("a file, no folder", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"), pair.locked(tmp_path / "digits/Linf"):
        pass
