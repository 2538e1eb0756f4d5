"""What level 3 leaves behind: a caught lie in the entry, its proof in a file, or a lower level."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from aal_bench.cli import main
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import verify
from aal_bench.leaderboard.audit_sample import sample, seed_of
from aal_bench.record import percent
from aal_bench.results import run_hash
from aal_bench.verification import Options, verify_entry

RANKED = "standard"


@pytest.fixture
def lie(liar):
    """An entry with three false survivors, and a public string under which an audit asks of one.

    It falls at once: so few seconds, and one of one is more than accident explains.
    """
    case, rows, _ = liar(3, RANKED)
    stood, ran = np.flatnonzero(case.entry.evidence().robust()), case.entry.result.run_hash
    strings = (f"commit {n}" for n in range(10_000))
    drawn = ((one, stood[sample(len(stood), 1, seed_of(ran, one))]) for one in strings)
    return next((case, int(row[0]), one) for one, row in drawn if row[0] in rows)


def command(case, public, *more):
    """``aal-bench verify`` at level 3 with one survivor attacked."""
    given = ["--checkpoint", case.checkpoint, "--adversarials", case.adversarials]
    asked = [case.path, "--level", 3, *given, "--public-string", public, "--audit", 1, *more]
    return CliRunner().invoke(main, ["verify", *map(str, asked)])


def challenged(case, path):
    asked = [case.path, "--checkpoint", case.checkpoint, "--challenge", path]
    return CliRunner().invoke(main, ["verify", *map(str, asked)])


def test_a_caught_lie_is_recorded_and_its_proof_kept(lie, tmp_path):
    case, row, public = lie
    before, saved = case.entry, tmp_path / "new" / "fell.npz"
    stood = before.evidence().robust()
    done = command(case, public, "--by", "a maintainer", "--save", saved)
    assert done.exit_code == 1
    assert "NO  3 survivors" in done.stdout
    lower = f"level 3 broken, external {percent((stood.sum() - 1) / 60)} %,"
    assert done.stdout.splitlines()[-1] == (
        f"recorded  {lower} by a maintainer in {case.path}; the entry stays at level 1"
    )

    after, table = case.entry.result, case.entry.evidence()
    assert np.flatnonzero(stood & ~table.robust()).tolist() == [row]
    assert after.external == percent((stood.sum() - 1) / 60)
    assert after.autoattack_acc == before.result.autoattack_acc
    assert after.evaluation[-1].attack == "reattack-1"
    held, event = after.verification, after.verification.history[-1]
    assert (held.level, held.by, held.seed) == (1, None, None)
    assert (event.event, event.by, event.level) == ("reattacked", "a maintainer", 1)
    assert (event.stage, event.fallen) == ("reattack-1", 1)
    assert event.note.startswith(f"level 3 broken: 1 of {stood.sum()} survivors attacked")
    assert verify.verify(case.path, 1)[0].ok

    assert f"1 image -> {saved}" in done.stdout
    with np.load(saved) as kept:
        assert kept["index"].tolist() == [table.index[row]]
    again = challenged(case, saved)
    assert again.exit_code == 1
    assert "none of the 1 images newly falls: the entry holds" in again.stdout


def test_without_a_name_the_proof_is_a_file_and_a_challenge_records_it(lie, tmp_path):
    case, row, public = lie
    before, saved = case.path.read_bytes(), tmp_path / "fell.npz"
    stood = int(case.entry.evidence().robust().sum())
    done = command(case, public, "--save", saved)
    assert done.exit_code == 1
    assert f"nothing is written without --by: --challenge {saved} brings the images" in done.stdout
    assert case.path.read_bytes() == before
    done = challenged(case, saved)
    assert done.exit_code == 0
    old, new = case.entry.result.autoattack_acc, percent((stood - 1) / 60)
    assert done.stdout.startswith(
        f"ok  challenge: external lowered {old} (AutoAttack) -> {new} %, written; the entry stays"
        f" at level 1  {case.path}\n"
    )
    assert case.entry.result.external == percent((stood - 1) / 60)
    assert not case.entry.evidence().robust()[row]


def test_without_a_name_and_a_file_it_says_how_to_keep_the_proof(lie):
    case, _, public = lie
    before = case.path.read_bytes()
    options = Options(case.checkpoint, case.adversarials, public_string=public, audit=1)
    *_, last = verify_entry(case.path, 3, options).findings
    assert (last.rule, last.ok) == ("unrecorded", True)
    assert "--save FILE keeps the images, --challenge FILE brings them" in last.text
    assert case.path.read_bytes() == before


def test_one_survivor_attacked_is_not_level_three(submitted, tmp_path):
    case = submitted(RANKED)
    standing = int(case.entry.evidence().robust().sum())
    saved = tmp_path / "fell.npz"
    done = command(case, "commit 4f2a", "--by", "me", "--save", saved, "--json")
    assert done.exit_code == 0
    (verdict,) = json.loads(done.stdout)
    told = {one["rule"]: one["text"] for one in verdict["findings"] if one["level"] == 3}
    needs = f"a record of level 3 needs {standing}: of this one, at most level 2"
    assert told["sample"] == f"1 attacked; {needs}"
    assert told["saved"] == f"no image fell: {saved} is not written"
    assert not saved.exists()
    held = case.entry.result.verification
    assert (held.level, held.by, held.seed) == (2, "me", None)
    assert held.history[-1].note.startswith(
        f"level 2, for a record of level 3 needs more survivors: 1 of {standing} survivors attacked"
    )
    assert verify.verify(case.path, 1)[0].ok


# ---- files that are no weights ------------------------------------------------------------------


def odd(kind, path):
    """Something at `path` that is no weights file."""
    if kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to(path.with_name("nowhere"))
    elif kind != "nothing":
        path.write_text({"empty": "", "text": "weights\n", "page": "<!doctype html>"}[kind])
    return path


@pytest.mark.parametrize("option", ["--checkpoint", "--adversarials", "--challenge"])
@pytest.mark.parametrize(
    ("kind", "there"),
    [
        ("nothing", False),
        ("folder", False),
        ("link to nothing", False),
        ("empty", True),
        ("text", True),
        ("page", True),
    ],
)
def test_a_file_that_is_none_is_one_line(submitted, tmp_path, option, kind, there):
    """Missing: exit 2. Another file than the entry names: its level is broken, exit 1."""
    case = submitted(RANKED)
    given = {"--checkpoint": case.checkpoint, "--adversarials": case.adversarials}
    given[option] = odd(kind, tmp_path / "given")
    asked = ["verify", case.path, "--level", 2]
    done = CliRunner().invoke(
        main, [str(arg) for arg in (*asked, *(x for pair in given.items() for x in pair))]
    )
    assert isinstance(done.exception, SystemExit)
    if there and option != "--challenge":
        assert (done.exit_code, done.stderr) == (1, "")
        (wrong,) = [line for line in done.stdout.splitlines() if line.startswith("NO  2")]
        assert str(tmp_path / "given") in wrong
    else:
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"error: {tmp_path / 'given'}: ")


@pytest.mark.parametrize("kind", ["empty", "text", "page"])
def test_a_checkpoint_that_is_none_even_where_the_entry_names_it(submitted, tmp_path, kind):
    """Its sha256 is right, and it is still no weights of any network."""
    case = submitted(RANKED)
    path = odd(kind, tmp_path / "given")
    case.edit(
        **{"model.checkpoint.sha256": sha256_file(path), "model.checkpoint.format": "torch"},
        **{"model.checkpoint.bytes": path.stat().st_size},
    )
    record = case.entry.result
    ran = run_hash(record.task.hash, record.threat, record.model, record.evaluation)
    event = record.verification.history[0].model_dump(mode="json") | {"run_hash": ran}
    case.edit(**{"run_hash": ran, "verification.history": [event]})
    asked = [case.path, "--level", 2, "--checkpoint", path, "--adversarials", case.adversarials]
    done = CliRunner().invoke(main, ["verify", *map(str, asked)])
    assert isinstance(done.exception, SystemExit)
    assert (done.exit_code, done.stderr) == (1, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("NO  2")], done.stdout


def test_the_entrys_own_adversarials_are_no_challenge(submitted):
    case = submitted(RANKED)
    before, count = case.path.read_bytes(), len(case.kept()["index"])
    done = challenged(case, case.adversarials)
    assert (done.exit_code, done.stderr) == (1, "")
    assert done.stdout.startswith("NO  challenge failed: the entry is unchanged  ")
    holds = f"none of the {count} images newly falls: the entry holds against them"
    assert f"{holds} ({count} had fallen already, 0 stand)" in done.stdout
    assert case.path.read_bytes() == before
