"""One entry through all its levels, in order: honest, lying, recorded, and what is missing."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file, sha256_json
from aal_bench.leaderboard import verify
from aal_bench.leaderboard.audit_sample import seed_of
from aal_bench.leaderboard.findings import broken
from aal_bench.record import percent
from aal_bench.verification import Options, verify_entry

RANKED = "standard"
PUBLIC = "commit 4f2a"


@pytest.fixture
def case(submitted):
    return submitted(RANKED)


def options(case, **more):
    return Options(checkpoint=case.checkpoint, adversarials=case.adversarials)._replace(**more)


def rules(verdict, level):
    return [finding.rule for finding in verdict.findings if finding.level == level]


def wrong(verdict):
    return [finding.rule for finding in verdict.findings if not finding.ok]


# ---- levels in order ----------------------------------------------------------------------------


def test_level_two_of_an_honest_entry(case):
    before = case.path.read_bytes()
    verdict = verify_entry(case.path, 2, options(case))
    assert verdict.ok
    assert verdict.path == case.path
    assert rules(verdict, 0) + rules(verdict, 1) == [
        finding.rule for finding in verify.verify(case.path, 1)[0].findings
    ]
    assert rules(verdict, 2) == [
        *("question", "checkpoint", "data", "rows", "model"),
        *("clean", "adversarials", "bounds", "fooled", "fallen"),
    ]
    assert case.path.read_bytes() == before  # nobody asked for a record


def test_one_false_survivor_is_tolerated_and_recorded(liar):
    """It passes levels 0 to 2, falls at 3, and one of eleven is less than the rule needs."""
    case, rows, _ = liar(1, RANKED)
    before = case.entry.result
    standing = int(case.entry.evidence().robust().sum())
    verdict = verify_entry(case.path, 3, options(case, public_string=PUBLIC, by="a maintainer"))
    assert verdict.ok
    assert rules(verdict, 3) == ["seed", "survivors", "power"]
    assert f"1 of {standing} fell" in verdict.findings[-2].text

    after, table = case.entry.result, Evidence.load(case.entry.evidence_path)
    stage = after.evaluation[-1]
    assert (stage.attack, stage.n_in, stage.n_out) == ("reattack-1", standing, standing - 1)
    assert stage.implementation == before.evaluation[-1].implementation
    assert np.flatnonzero(table.robust(before.metrics.stages) & ~table.robust()).tolist() == [*rows]
    assert after.external == percent((standing - 1) / 60)
    assert after.autoattack_acc == before.autoattack_acc
    held, event = after.verification, after.verification.history[-1]
    seed = seed_of(before.run_hash, PUBLIC)
    assert (held.level, held.by, held.seed) == (3, "a maintainer", seed)
    assert held.report_sha256 == sha256_json([one._asdict() for one in verdict.findings])
    assert (event.event, event.stage, event.fallen) == ("reattacked", "reattack-1", 1)
    assert event.note == (
        f"level 3: {standing} of {standing} survivors attacked under seed {seed} of public string"
        f" '{PUBLIC}', 1 fell"
    )
    # What was recorded is an entry that holds, level 2 included: its file is the run's own.
    assert verify_entry(case.path, 2, options(case)).ok


def test_a_broken_level_ends_it(case):
    case.path.write_text(case.path.read_text().replace('"venue"', '"venue "'))
    verdict = verify_entry(case.path, 3, options(case, public_string=PUBLIC))
    assert broken(verdict.findings) == 0
    assert {finding.level for finding in verdict.findings} == {0}


def test_level_three_is_not_begun_on_other_adversarials(liar):
    """Two false survivors, and the run's own file, which holds their proofs: level 2 ends it."""
    case, _, proofs = liar(2, RANKED)
    kept = case.kept()
    np.savez(case.adversarials, **{key: np.concatenate([kept[key], proofs[key]]) for key in kept})
    before = case.path.read_bytes()
    given = options(case, public_string=PUBLIC, by="somebody")
    verdict = verify_entry(case.path, 3, given)
    assert wrong(verdict) == ["adversarials"]
    assert rules(verdict, 3) == []
    assert case.path.read_bytes() == before  # and a broken level is not recorded


def test_a_tampered_checkpoint(case, network, save):
    save(network(seed=1), case.checkpoint)
    verdict = verify_entry(case.path, 2, options(case))
    assert wrong(verdict) == ["checkpoint"]
    assert broken(verdict.findings) == 2


# ---- recording ----------------------------------------------------------------------------------


def test_level_two_is_recorded_by_whoever_verified(case):
    table = sha256_file(case.entry.evidence_path)
    verdict = verify_entry(case.path, 2, options(case, by="a maintainer"))
    held = case.entry.result.verification
    assert (held.level, held.by, held.seed) == (2, "a maintainer", None)
    assert held.report_sha256 == sha256_json([one._asdict() for one in verdict.findings])
    assert verdict.recorded == f"level 2 by a maintainer in {case.path}"
    assert [event.event for event in held.history] == ["submitted", "verified"]
    assert sha256_file(case.entry.evidence_path) == table
    assert verify.verify(case.path, 1)[0].ok


@pytest.mark.parametrize("code", [{"commit": None}, {"dirty": True}])
def test_code_that_nobody_can_look_up_stays_at_level_one(case, code):
    """It may be replayed; but what it was is not recorded."""
    for key, value in code.items():
        case.edit(**{f"environment.aal_bench.{key}": value})
    assert verify_entry(case.path, 2, options(case)).ok
    before = case.path.read_bytes()
    with pytest.raises(UserError, match="stays at level 1, and --by cannot record more"):
        verify_entry(case.path, 2, options(case, by="a maintainer"))
    assert case.path.read_bytes() == before


def test_an_entry_that_changes_while_it_is_verified_is_not_signed(case, monkeypatch):
    """Somebody else writes it after it was read: here, at the moment the images are read."""
    from aal_bench.verification import replay

    seen = replay.clean

    def clean(rebuilt):
        case.edit(venue="ICML 2020")
        return seen(rebuilt)

    monkeypatch.setattr(replay, "clean", clean)
    with pytest.raises(UserError, match="was changed while it was verified; verify it again"):
        verify_entry(case.path, 2, options(case, by="a maintainer"))
    assert case.entry.result.verification.level == 1


# ---- a challenge --------------------------------------------------------------------------------


def test_a_challenge_needs_no_adversarials_of_the_entrys_and_no_name(liar, tmp_path):
    case, _, proofs = liar(2, RANKED)
    np.savez(tmp_path / "mine.npz", **proofs)
    verdict = verify_entry(
        case.path, 1, Options(checkpoint=case.checkpoint, challenge=tmp_path / "mine.npz")
    )
    assert verdict.ok
    assert verdict.findings[-2].text == "2 images that stood fell to mine.npz"
    assert verdict.findings[-1].text.endswith("written; the entry stays at level 1")
    assert rules(verdict, 2)[-1] == "clean"
    assert case.entry.result.verification.history[-1].by == "anonymous"
    assert verify_entry(case.path, 2, options(case)).ok
    after = case.path.read_bytes()
    again = Options(checkpoint=case.checkpoint, challenge=tmp_path / "mine.npz", by="another")
    assert wrong(verify_entry(case.path, 1, again)) == ["challenge"]
    assert case.path.read_bytes() == after


# ---- what is missing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "given", "match"),
    [
        (2, [], "level 2 needs --checkpoint FILE and --adversarials FILE"),
        (2, ["checkpoint"], "level 2 needs --adversarials FILE"),
        (3, ["checkpoint", "adversarials"], "level 3 needs --public-string S"),
        (
            3,
            ["adversarials"],
            "level 2 needs --checkpoint FILE; level 3 needs --public-string S",
        ),
        (1, ["challenge"], "a challenge needs --checkpoint FILE"),
    ],
)
def test_the_level_says_what_it_lacks(case, level, given, match):
    chosen = {"checkpoint": case.checkpoint, "adversarials": case.adversarials}
    chosen["challenge"] = case.adversarials
    asked = Options(**{name: chosen[name] for name in given})
    with pytest.raises(UserError) as error:
        verify_entry(case.path, level, asked)
    assert str(error.value) == match


def test_what_falls_can_be_saved_is_known_before_anything_runs(case, tmp_path):
    """Hours of attacks are not for nothing; and no file is written over, least of all an input."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    there = "is there already; name a new file"
    for path, level, match in (
        (tmp_path / "a.npz", 2, "--save keeps what falls at level 3: add --level 3"),
        (case.adversarials, 3, there),
        (tmp_path, 3, there),
        (tmp_path / "link", 3, there),
        (tmp_path / "file" / "a.npz", 3, "file is no folder that can be written"),
    ):
        given = options(case, public_string=PUBLIC, save=path)
        with pytest.raises(UserError, match=match):
            verify_entry(case.path, level, given)


@pytest.mark.parametrize("kind", ["model", "method"])
def test_typed_code_is_for_an_entry_that_names_code(case, kind):
    with pytest.raises(UserError, match=f"no code: omit --{kind}"):
        verify_entry(case.path, 2, options(case, **{kind: "masked.py:build"}))


@pytest.mark.parametrize(
    ("level", "by", "match"),
    [
        (1, "me", "--by records a verification of level 2 or 3: add --level 2"),
        (2, " ", "--by: name who verifies, on one line"),
        (2, "two\nlines", "--by: name who verifies, on one line"),
    ],
)
def test_who_verifies(case, level, by, match):
    with pytest.raises(UserError, match=match):
        verify_entry(case.path, level, options(case, by=by))


def test_one_entry_at_a_time(case):
    with pytest.raises(UserError, match="examine one entry at a time: name its"):
        verify_entry(case.path.parent, 2, options(case))


def test_a_run_is_replayed_and_not_recorded(runs, case):
    """Before it is submitted; its record has no seal and no history yet."""
    run = case.path.parent.parent / "run"
    shutil.copytree(runs(RANKED) / "run", run)
    path = run / "result.json"
    before = path.read_bytes()
    assert wrong(verify_entry(path, 2, options(case))) == []
    for given in (options(case, by="me"), options(case, challenge=case.adversarials)):
        with pytest.raises(UserError, match="is no entry yet: aal-bench submit"):
            verify_entry(path, 2, given)
    assert path.read_bytes() == before


def test_no_torch_up_to_level_one(case):
    code = f"""
import sys
from pathlib import Path
from aal_bench.verification import Options, verify_entry
verify_entry(Path({str(case.path)!r}), 1, Options())
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
