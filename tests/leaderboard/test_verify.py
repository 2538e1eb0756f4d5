"""Verifying files and folders: what is examined, in which order, and how it is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aal_bench.errors import UserError
from aal_bench.leaderboard import verify
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.verify import lines


def broken(verdict):
    return {found.rule for found in verdict.findings if not found.ok}


@pytest.fixture
def board(copied, committed):
    """Two entries on one board."""
    copied.second = copied.add(next(path for path in committed if path.name.startswith("fgsm-")))
    return copied


def test_a_folder_is_a_verdict_on_itself_and_one_on_each_entry(board):
    for where in (board.board, board.board.parent, board.root):
        verdicts = verify.verify(where)
        assert [verdict.path.name for verdict in verdicts] == [
            where.name,
            board.second.name,
            board.path.name,
        ]
        assert all(verdict.ok for verdict in verdicts)
        assert [verdict.level_held for verdict in verdicts] == [0, 1, 1]


def test_a_board_by_a_relative_path(board, monkeypatch):
    for folder, where in ((board.board, "."), (board.root, "digits"), (board.board, "..")):
        monkeypatch.chdir(folder)
        verdicts = verify.verify(Path(where))
        assert [verdict.ok for verdict in verdicts] == [True] * 3


def test_a_level_is_examined_only_where_those_below_hold(copied):
    assert {found.level for found in copied.findings(0)} == {0}
    assert {found.level for found in copied.findings(1)} == {0, 1}
    copied.change(lambda tree: tree.update(venue="elsewhere"), seal=False)
    copied.table_path.unlink()
    (verdict,) = verify.verify(copied.path, 1)
    assert {found.level for found in verdict.findings} == {0}
    assert verdict.level_held is None


def test_what_needs_a_model_is_not_examined_here(copied):
    (verdict,) = verify.verify(copied.path, 3)
    assert verdict.level_held == 1


def test_nothing_there_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        verify.verify(tmp_path / "none.json")


@pytest.mark.parametrize("place", [".", "digits", "digits/Linf", "reported"])
def test_a_folder_without_entries_is_a_users_mistake(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="no entries here"):
        verify.verify(tmp_path / place)


def test_published_numbers_are_no_entries(board):
    reported = board.root / "reported"
    reported.mkdir()
    (reported / "aal.json").write_text("{}")
    (board.root / "board.json").write_text("{}")
    assert len(verify.verify(board.root)) == 3
    for where in (reported, reported / "aal.json"):
        (verdict,) = verify.verify(where)
        assert verdict.ok
        assert "published" in verdict.findings[0].text


class TestOtherFolders:
    """An entry that lies elsewhere answers another question, or none."""

    @pytest.mark.parametrize("place", ["cifar10-1k/Linf", "digits/L2"])
    def test_another_board(self, copied, place):
        folder = copied.root / place
        folder.mkdir(parents=True)
        for path in (copied.path, copied.table_path):
            path.rename(folder / path.name)
        (_, verdict) = verify.verify(copied.root)
        assert broken(verdict) == {"folder"}

    @pytest.mark.parametrize("place", [".", "digits", "digits/Linf/more", "digits/linf"])
    def test_no_board(self, copied, place):
        folder = copied.root / place
        folder.mkdir(parents=True, exist_ok=True)
        for path in (copied.path, copied.table_path):
            path.rename(folder / path.name)
        verdicts = verify.verify(copied.root)
        assert "folder" in broken(verdicts[1])

    def test_a_file_outside_any_board_is_judged_but_for_its_place(self, copied, tmp_path):
        for path in (copied.path, copied.table_path):
            path.rename(tmp_path / path.name)
        (verdict,) = verify.verify(tmp_path / copied.path.name)
        assert verdict.ok
        assert "outside a board" in next(f.text for f in verdict.findings if f.rule == "folder")

    def test_a_run_is_judged_before_it_has_a_name_or_a_seal(self, copied, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        tree = copied.tree() | {"seal": None}
        tree["evidence"]["path"] = "evidence.npz"
        (run / "result.json").write_text(json.dumps(tree))
        (run / "run.json").write_text("{}")
        copied.table_path.rename(run / "evidence.npz")
        for where in (run, run / "result.json"):
            (verdict,) = verify.verify(where)
            assert verdict.level_held == 1
            assert "no entry yet" in next(f.text for f in verdict.findings if f.rule == "seal")


class TestBesideTheEntries:
    """What else lies in a board's folder is named."""

    @pytest.mark.parametrize(
        ("name", "rule"),
        [
            ("lonely.npz", "pairs"),
            ("notes.txt", "pairs"),
            (".hidden.json", "pairs"),
            ("PGD-CNN4.json", None),
        ],
    )
    def test_strays(self, board, name, rule):
        (board.board / name).write_text("{}")
        verdicts = verify.verify(board.root)
        assert broken(verdicts[0]) == ({rule} if rule else set())
        assert any(not verdict.ok for verdict in verdicts)

    @pytest.mark.parametrize("name", [".x.json.new", ".x.npz.new", ".x.npz.abc.tmp"])
    def test_what_the_next_writer_would_install(self, board, name):
        (board.board / name).write_text("{")
        about = verify.verify(board.root)[0]
        assert broken(about) == {"pairs"}
        assert "unfinished writing" in about.findings[1].text

    def test_names_that_differ_in_capitals_only(self, board):
        twin = board.path.with_name(board.path.name.upper().replace("JSON", "json"))
        twin.write_bytes(board.path.read_bytes())
        assert "names" in broken(verify.verify(board.root)[0])

    def test_a_record_without_evidence_breaks_level_1(self, board):
        board.table_path.unlink()
        verdict = verify.verify(board.root)[2]
        assert verdict.level_held == 0
        assert broken(verdict) == {"evidence"}


class TestARunAmongBoards:
    """A run.json in the boards' folder must not make one run of all of them."""

    @pytest.mark.parametrize("name", ["run.json", "result.json"])
    @pytest.mark.parametrize("place", [".", "digits", "digits/Linf"])
    def test_every_entry_is_still_looked_at(self, board, name, place):
        (board.root / place / name).write_text("{}")
        board.change(lambda tree: tree.update(venue="elsewhere"), seal=False)
        for where in (board.root, board.root / place):
            verdicts = verify.verify(where)
            assert "seal" in {rule for verdict in verdicts for rule in broken(verdict)}
        told = {verdict.path.name: broken(verdict) for verdict in verdicts}
        assert told[name], "it is no entry either"

    def test_and_both_are_strays(self, board):
        for name in ("run.json", "result.json"):
            (board.root / name).write_text("{}")
        about = verify.verify(board.root)[0]
        assert "'result.json' is no task's folder; 'run.json'" in about.findings[1].text


def test_a_folder_called_reported_above_the_boards_hides_nothing(board, tmp_path):
    for name in ("reported", "reported/reported"):
        above = tmp_path / name
        above.mkdir()
        board.root = board.root.rename(above / "leaderboards")
        assert len(verify.verify(board.root)) == 3
        (file,) = verify.verify(next(board.root.rglob("pgd-*.json")))
        assert file.level_held == 1
    renamed = board.root.rename(tmp_path / "elsewhere")
    verdicts = verify.verify(renamed.rename(above / "reported"))
    assert len(verdicts) == 3, "boards may lie in a folder of any name"


class TestUnknown:
    """From the root down, only what the boards know may lie there."""

    @pytest.mark.parametrize(
        "name",
        [
            "notes.txt",
            ".hidden/entry.json",
            "digits/notes.md",
            "digits/.hidden/entry.json",
            "digits/L1/entry.json",
            "digits/Linf/.hidden/entry.json",
            "digits/Linf/more/entry.npz",
            "Linf/entry.npz",
            "reported/Linf/entry.json",
            "reported/run.sh",
            "BOARD.md/entry.txt",
        ],
    )
    def test_anything_else_is_a_fault(self, board, name):
        path = board.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        about = verify.verify(board.root)[0]
        assert broken(about) == {"pairs"}

    def test_what_belongs_there_is_none(self, board):
        (board.root / "reported").mkdir()
        (board.root / ".git").mkdir()
        for name in ("README.md", "BOARD.md", "board.json", "reported/a.json", ".git/config"):
            (board.root / name).write_text("{}")
        assert all(verdict.ok for verdict in verify.verify(board.root))


class TestLinks:
    """Symbolic links are refused, whatever they point to."""

    def test_a_linked_record(self, board, tmp_path):
        outside = tmp_path / board.path.name
        board.path.rename(outside)
        board.path.symlink_to(outside)
        (verdict,) = verify.verify(board.path)
        assert broken(verdict) == {"readable"}
        assert "symbolic link" in verdict.findings[0].text
        assert broken(verify.verify(board.root)[0]) == {"plain files"}

    def test_linked_evidence(self, board, tmp_path):
        outside = tmp_path / "table.npz"
        board.table_path.rename(outside)
        board.table_path.symlink_to(outside)
        assert board.broken() == {"1 evidence"}
        assert "symbolic link" in board.said("evidence")

    @pytest.mark.parametrize("which", ["board", "task"])
    def test_a_linked_folder(self, board, tmp_path, which):
        folder = board.board if which == "board" else board.board.parent
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
        assert broken(verify.verify(board.root)[0]) == {"plain files"}
        assert "plain files" in broken(verify.verify(folder)[0])
        (verdict,) = verify.verify(board.path)
        assert broken(verdict) == {"folder"}

    def test_a_link_to_nothing(self, board):
        board.path.unlink()
        board.path.symlink_to("nothing.json")
        (verdict,) = verify.verify(board.path)
        assert broken(verdict) == {"readable"}

    def test_a_pipe_is_not_waited_for(self, copied):
        copied.table_path.unlink()
        os.mkfifo(copied.table_path)
        assert copied.broken() == {"1 evidence"}


class TestTwice:
    """What belongs to one entry of a board, in the folder and for each file alone."""

    def told(self, board) -> dict[str, set[str]]:
        verdicts = verify.verify(board.root)[1:]
        assert [broken(verify.verify(v.path)[0]) for v in verdicts] == [broken(v) for v in verdicts]
        return {verdict.path.name: broken(verdict) for verdict in verdicts}

    def test_the_same_run_under_another_name(self, board):
        original = board.path.name
        board.rename("Again2026Run")
        board.add(board.source)
        expected = {board.path.name: {"once"}, original: {"once"}, board.second.name: set()}
        assert self.told(board) == expected
        assert board.said("once", 0).startswith("the run_hash and the checkpoint and configuration")

    @pytest.mark.parametrize(
        ("checkpoint", "seed", "said"),
        [
            (None, 7, "the run_hash and the checkpoint of"),
            ("1" * 64, None, "configuration and seed of"),
        ],
    )
    def test_one_of_them(self, board, checkpoint, seed, said):
        tree = board.tree()
        own, (trained,) = tree["model"]["checkpoint"]["sha256"], tree["training"]["seeds"]
        board.another("Again2026Run", checkpoint or own, trained if seed is None else seed)
        board.add(board.source)
        assert broken(verify.verify(board.path, 0)[0]) == {"once"}
        assert board.said("once", 0).startswith(said)

    def test_another_seed_of_the_configuration(self, board):
        board.another("Again2026Run")
        board.add(board.source)
        assert broken(verify.verify(board.path, 0)[0]) == set()


class TestCopies:
    """Another entry's evidence under a new name."""

    def test_both_are_named_in_the_folder_and_alone(self, board):
        original = board.path
        board.another("Copy2026Cat")
        board.add(board.source)
        copy = verify.verify(board.path)[0]
        assert broken(copy) == {"copies"}
        assert original.stem in copy.findings[-1].text
        by_name = {verdict.path.name: broken(verdict) for verdict in verify.verify(board.root)[1:]}
        assert by_name == {
            board.path.name: {"copies"},
            original.name: {"copies"},
            board.second.name: set(),
        }

    def test_an_unreadable_neighbour_is_not_this_entrys_fault(self, board):
        board.second.with_suffix(".npz").write_bytes(b"no table")
        assert board.broken() == set()


class TestTelling:
    """Lines for people, a tree for machines."""

    def test_one_entry_has_a_line_for_each_rule(self, copied):
        told = list(lines(verify.verify(copied.path)))
        findings = copied.findings()
        assert len(told) == 1 + len(findings)
        assert told[0].startswith("ok  level 1 recomputed")
        assert all(line.startswith("ok  ") for line in told)

    def test_of_many_only_the_broken_rules_are_spelt_out(self, board):
        board.change(lambda tree: tree.update(venue="elsewhere"), seal=False)
        told = list(lines(verify.verify(board.root)))
        assert len(told) == 3 + 1 + 1
        assert [line for line in told if line.startswith("NO  0 seal")]
        assert told[-1] == "1 of 2 entries hold; the folder holds"
        assert len(list(lines(verify.verify(board.root), verbose=True))) > 60

    def test_a_file_name_cannot_steer_the_terminal(self, copied):
        evil = copied.path.with_name("a\x1b[2J\nb.json")
        copied.path.rename(evil)
        told = list(lines(verify.verify(evil)))
        assert all(line.isprintable() for line in told)

    def test_evidence_is_no_entry(self, copied):
        with pytest.raises(UserError, match=r"name the \.json beside it"):
            verify.verify(copied.path.with_suffix(".npz"))

    def test_what_was_recorded_and_a_folder_that_is_wrong(self):
        fine, wrong = Finding(0, "seal", True, ""), Finding(0, "board", False, "a stray file")
        entry = verify.Verdict(Path("a.json"), [fine], recorded="level 2 by me\x1b in a.json")
        folder = verify.Verdict(Path("boards"), [wrong], about="the folder")
        told = list(lines([folder, entry]))
        assert told[-2:] == [
            "recorded  level 2 by me\N{REPLACEMENT CHARACTER} in a.json",
            "1 of 1 entries hold; the folder does not",
        ]

    def test_json(self, board):
        tree = json.loads(json.dumps(verify.as_json(verify.verify(board.root))))
        assert [verdict["ok"] for verdict in tree] == [True] * 3
        assert tree[1]["level_held"] == 1
        assert {"level", "rule", "ok", "text"} == tree[1]["findings"][0].keys()


class TestLevelHeld:
    """The highest level such that all up to it were examined and hold."""

    def verdict(self, *rules: tuple[int, str, bool]) -> verify.Verdict:
        findings = [Finding(level, rule, ok, "") for level, rule, ok in rules]
        return verify.Verdict(Path("entry.json"), findings)

    @pytest.mark.parametrize(
        ("more", "held"),
        [
            ([], 1),
            ([(2, "clean", True), (2, "adversarials", True)], 2),
            ([(2, "clean", True), (2, "adversarials", False)], 1),
            ([(2, "clean", True), (4, "challenge", True)], 1),
            ([(2, "clean", True), (4, "challenge", False)], 1),
            ([(2, "adversarials", True), (3, "survivors", True)], 3),
            ([(2, "adversarials", True), (3, "survivors", True), (4, "challenge", True)], 4),
            ([(2, "adversarials", True), (3, "survivors", True), (4, "challenge", False)], 3),
            ([(2, "adversarials", True), (4, "challenge", True)], 2),
        ],
    )
    def test_each_needs_those_below(self, more, held):
        assert self.verdict((0, "seal", True), (1, "rows", True), *more).level_held == held

    def test_a_challenge_in_vain_breaks_nothing_of_the_entrys(self):
        verdict = self.verdict((0, "seal", True), (1, "rows", True), (4, "challenge", False))
        assert not verdict.ok, "the command exits 1"
        first = next(lines([verdict]))
        assert first == "NO  challenge failed: the entry is unchanged  entry.json"


def test_what_an_untrusted_file_says_cannot_steer_the_terminal():
    """Findings of levels 2 to 4 quote names and texts that somebody wrote into a file."""
    finding = Finding(2, "adver\x1b[2Jsarials", False, "stage '\x1b]0;owned\x07'\r\nok  all")
    verdict = verify.Verdict(Path("a\x1b[31mb.json"), [finding])
    assert all(line.isprintable() for line in lines([verdict]))
    (tree,) = verify.as_json([verdict])
    assert tree["path"].isprintable()
    assert all(str(value).isprintable() for value in tree["findings"][0].values())


def test_no_torch_is_loaded_and_none_of_scipy(copied):
    code = """
import sys
from pathlib import Path
from aal_bench.leaderboard import verify
assert all(verdict.ok for verdict in verify.verify(Path(sys.argv[1])))
print([name for name in ("torch", "scipy", "rich", "jinja2") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(copied.root)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
