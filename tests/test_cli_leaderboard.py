"""The commands of the boards: what they print, what they refuse, how they exit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from aal_bench.cli import main
from aal_bench.leaderboard import entries
from aal_bench.paths import data_folder

DIGITS = data_folder("leaderboards") / "digits" / "Linf"


def invoke(*args: object):
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the committed digits board."""
    shutil.copytree(DIGITS, tmp_path / "leaderboards" / "digits" / "Linf")
    return tmp_path / "leaderboards"


@pytest.fixture
def entry(root: Path) -> Path:
    """One that no verification has extended: its last stage is the protocol's."""
    found = sorted(root.rglob("pgd-*.json"))
    return next(
        path for path in found if entries.read(path).result.evaluation[-1].attack == "square"
    )


class TestVerify:
    def test_one_line_per_rule_and_exit_0_where_all_hold(self, entry):
        done = invoke("verify", entry, "--level", 1)
        assert done.exit_code == 0
        rules = [line for line in done.output.splitlines() if line.startswith("ok  ")]
        assert len(rules) > 20
        assert not [line for line in done.output.splitlines() if line.startswith("NO")]

    def test_exit_1_at_the_first_broken_level(self, entry):
        tree = json.loads(entry.read_text(encoding="utf-8"))
        tree["metrics"]["robust"]["value"] += 0.01
        entry.write_text(json.dumps(tree), encoding="utf-8")
        done = invoke("verify", entry)
        assert done.exit_code == 1
        assert "NO" in done.output

    def test_json_names_every_rule_with_its_level(self, root):
        done = invoke("verify", root, "--json")
        verdicts = json.loads(done.output)
        assert len(verdicts) == len(entries.find(root)) + 1
        assert {finding["level"] for verdict in verdicts for finding in verdict["findings"]} == {
            0,
            1,
        }

    def test_exit_2_where_nothing_is_there(self, root):
        done = invoke("verify", root / "nothing")
        assert done.exit_code == 2
        assert "no such file" in done.stderr

    @pytest.mark.parametrize(
        ("options", "missing"),
        [
            (["--level", 2], ["level 2", "--checkpoint", "--adversarials"]),
            (["--level", 3, "--checkpoint", "w"], ["--adversarials", "--public-string"]),
            (["--challenge", "adv.npz"], ["challenge", "--checkpoint"]),
        ],
    )
    def test_a_level_says_which_option_is_missing(self, entry, options, missing):
        done = invoke("verify", entry, *options)
        assert done.exit_code == 2
        assert all(name in done.stderr for name in missing)

    def test_levels_0_and_1_import_no_torch(self, root):
        code = (
            "import sys; from aal_bench.cli import main\n"
            "try: main(['verify', sys.argv[1]])\n"
            "except SystemExit as done: print(done.code, 'torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "0 False"


class TestCompare:
    def test_the_verdict_and_the_indices(self, root):
        a, b = min(root.rglob("pgd-*seed0*.json")), min(root.rglob("aal-fgsm-*seed0*.json"))
        done = invoke("compare", a, b)
        assert done.exit_code == 0
        assert "A is better" in done.output
        told = json.loads(invoke("compare", a, b, "--json").output)
        assert json.loads(invoke("compare", b, a, "--json").output)["better"] == "B"
        assert told["better"] == "A"

    def test_an_entry_against_itself_is_a_tie(self, entry):
        assert "a tie" in invoke("compare", entry, entry).output

    def test_other_questions_are_refused_with_the_fields(self, entry):
        other = min((data_folder("leaderboards") / "cifar10-1k").rglob("*.json"))
        done = invoke("compare", entry, other)
        assert done.exit_code == 2
        assert "threat.eps 24/255 | 8/255" in done.stderr


class TestLeaderboard:
    def test_the_terminal_names_every_entry(self, root):
        done = invoke("leaderboard", "digits", "--leaderboards", root)
        assert done.exit_code == 0
        assert all(method in done.output for method in ("pgd", "fgsm", "aal-fgsm"))

    def test_markdown_and_json_are_the_same_board(self, root):
        written = invoke("leaderboard", "--leaderboards", root, "--markdown").output
        tree = json.loads(invoke("leaderboard", "--leaderboards", root, "--json").output)
        assert len(tree["boards"]) == 1
        assert all(path.stem in written for path in entries.find(root))

    def test_html_is_written_where_asked(self, root, tmp_path):
        done = invoke("leaderboard", "--leaderboards", root, "--html", tmp_path / "site")
        assert done.exit_code == 0
        assert (tmp_path / "site" / "index.html").is_file()

    def test_check_fails_until_the_board_is_written_and_again_when_an_entry_goes(self, root):
        def check() -> int:
            return invoke("leaderboard", "--leaderboards", root, "--check").exit_code

        assert check() == 1
        assert invoke("leaderboard", "--leaderboards", root, "--write").exit_code == 0
        assert check() == 0
        gone = entries.find(root)[0]
        gone.with_suffix(".npz").unlink()
        gone.unlink()
        assert check() == 1

    @pytest.mark.parametrize("output", [[], ["--markdown"], ["--json"]])
    def test_a_known_task_without_entries_shows_what_was_published(self, root, output):
        asked = ["cifar10", "--leaderboards", root, "--robustbench", "--reported", *output]
        done = invoke("leaderboard", *asked)
        assert done.exit_code == 0, done.output
        assert "Rice2020Overfitting" in done.output
        assert "AAL+PGD" in done.output
        if output == ["--json"]:
            assert json.loads(done.output)["boards"][0]["sections"] == []
        else:
            assert "no entries yet" in done.output.lower()

    def test_html_of_a_known_task_without_entries(self, root, tmp_path):
        asked = ["cifar10", "--leaderboards", root, "--html", tmp_path / "site"]
        assert invoke("leaderboard", *asked).exit_code == 0
        assert "Rice2020" in (tmp_path / "site" / "cifar10-Linf.html").read_text("utf-8")

    def test_two_outputs_at_once_and_an_unknown_task_are_refused(self, root):
        done = invoke("leaderboard", "--leaderboards", root, "--markdown", "--json")
        assert (done.exit_code, "one at a time" in done.stderr) == (2, True)
        assert invoke("leaderboard", "digit", "--leaderboards", root).exit_code == 2
        assert invoke("leaderboard", "digits", "--leaderboards", root, "--check").exit_code == 2


def test_submit_says_what_was_written_and_what_comes_next(entry, root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    tree = json.loads(entry.read_text(encoding="utf-8"))
    tree["evidence"]["path"] = "evidence.npz"
    tree |= {"seal": None, "verification": {"level": 0, "history": []}}
    (run / "result.json").write_text(json.dumps(tree), encoding="utf-8")
    (run / "run.json").write_text('{"status": "success", "error": null}', encoding="utf-8")
    shutil.copy(entry.with_suffix(".npz"), run / "evidence.npz")
    elsewhere = tmp_path / "other"
    done = invoke("submit", run, "--leaderboards", elsewhere, "--venue", "ICML 2026")
    assert done.exit_code == 0, done.output
    (written,) = entries.find(elsewhere)
    assert str(written) in done.output
    assert entries.read(written).result.venue == "ICML 2026"
    again = invoke("submit", run, "--leaderboards", elsewhere)
    assert again.exit_code == 2
    assert again.stderr.startswith("error: ")
    assert len(again.stderr.splitlines()) == 1
