"""What becomes an entry, what is refused and why; two processes submit at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aal_bench.errors import UserError
from aal_bench.leaderboard import entries, verify
from aal_bench.leaderboard.metadata import Metadata, metadata
from aal_bench.leaderboard.submit import remark, submit
from aal_bench.results import read

SUBMIT = """
import sys
from pathlib import Path
from aal_bench.errors import UserError
from aal_bench.leaderboard.metadata import Metadata
from aal_bench.leaderboard.submit import submit
run, root, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:]
sys.stdin.readline()
for name in names:
    try:
        submit(run, root, Metadata(entry=name, venue=sys.argv[3]), replace="replace" in sys.argv[3])
        print("written", name)
    except UserError as error:
        print("refused", name, error)
"""


class Made:
    """The folder of a finished run, made of a committed entry, and a board for it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.run, self.root = folder / f"run-{source.stem}", folder / "leaderboards"
        self.run.mkdir()
        tree = json.loads(source.read_text(encoding="utf-8"))
        tree["evidence"]["path"], tree["seal"] = "evidence.npz", None
        tree["verification"] = {"level": 0, "history": []}
        tree["adversarials"]["path"] = "adversarials.npz"
        self.write("result.json", tree)
        self.write("run.json", {"status": "success", "error": None})
        (self.run / "evidence.npz").write_bytes(source.with_suffix(".npz").read_bytes())

    def write(self, name: str, tree: dict[str, Any]) -> None:
        (self.run / name).write_text(json.dumps(tree), encoding="utf-8")

    def change(self, **fields: Any) -> None:
        """Other values at the top of ``result.json``."""
        tree = json.loads((self.run / "result.json").read_text(encoding="utf-8"))
        self.write("result.json", tree | fields)

    def submit(self, replace: bool = False, **about: str) -> entries.Entry:
        return submit(self.run, self.root, Metadata(**about), replace)

    def refused(self, replace: bool = False, **about: str) -> str:
        """The reason; and nothing was written."""
        before = sorted(self.root.rglob("*"))
        with pytest.raises(UserError) as caught:
            self.submit(replace, **about)
        assert sorted(self.root.rglob("*")) == before
        return str(caught.value)


@pytest.fixture
def made(committed, tmp_path):
    return Made(next(path for path in committed if path.name.startswith("pgd-")), tmp_path)


def test_an_entry_is_the_run_under_its_own_name_at_level_one(made):
    entry = made.submit()
    ran = read(made.run / "result.json")
    assert entry.path.parent == made.root / "digits" / "Linf"
    assert entry.path.stem == ran.submission_id == entry.result.submission_id
    assert ran.run_hash is not None
    assert ran.training is not None
    (seed,) = ran.training.seeds
    assert entry.path.stem == f"pgd-cnn4-32-seed{seed}-{ran.run_hash[:8]}"
    assert entry.result.metrics == ran.metrics
    assert entry.result.verification.level == 1
    assert [event.event for event in entry.result.verification.history] == ["submitted"]
    assert entry.evidence_path.read_bytes() == (made.run / "evidence.npz").read_bytes()
    assert all(verdict.ok for verdict in verify.verify(made.root))


def test_options_win_over_the_toml_beside_the_run(made):
    (made.run / "submission.toml").write_text(
        'entry = "Madry2018Towards"\nvenue = "ICLR 2018"\nlicense = "MIT"\n'
        'checkpoint_url = "https://example.org/w"\n',
        encoding="utf-8",
    )
    about = metadata(made.run, {"venue": "arXiv, Jun 2017", "authors": None})
    entry = submit(made.run, made.root, about)
    assert entry.path.name == "Madry2018Towards.json"
    assert entry.result.venue == "arXiv, Jun 2017"
    assert entry.result.model.license == "MIT"
    assert entry.result.model.checkpoint.url == "https://example.org/w"
    assert all(verdict.ok for verdict in verify.verify(made.root))


def test_an_unknown_key_beside_the_run_names_the_near_one(made):
    (made.run / "submission.toml").write_text('author = "A"', encoding="utf-8")
    with pytest.raises(UserError, match=r"submission.toml: unknown key 'author'.*authors"):
        metadata(made.run, {})


@pytest.mark.parametrize("code", [{"dirty": True}, {"commit": None}])
def test_code_that_nobody_can_fetch_is_accepted_and_stays_at_level_one(made, code):
    environment = read(made.run / "result.json").model_dump(mode="json")["environment"]
    environment["aal_bench"] |= code
    training = read(made.run / "result.json").model_dump(mode="json")["training"]
    training["code"] |= code
    made.change(environment=environment, training=training)
    entry = made.submit()
    assert entry.result.verification.level == 1
    assert remark(entry.result).startswith("(at most")


class TestRefused:
    def test_a_smoke_run(self, made):
        made.change(smoke=True, autoattack_acc="0.00")
        tree = json.loads((made.run / "result.json").read_text(encoding="utf-8"))
        del tree["autoattack_acc"]
        made.write("result.json", tree)
        assert "smoke" in made.refused()

    def test_a_limited_evaluation(self, made):
        tree = json.loads((made.run / "result.json").read_text(encoding="utf-8"))
        del tree["autoattack_acc"]
        made.write("result.json", tree | {"limit": 100})
        assert "without --limit-eval" in made.refused()

    @pytest.mark.parametrize("status", ["error", "cancelled", "started"])
    def test_a_run_that_did_not_succeed(self, made, status):
        error = {"stage": "apgd-t", "type": "RunFailed", "message": "logits are not finite"}
        told = error if status == "error" else None
        made.write("run.json", {"status": status, "error": told})
        said = made.refused()
        assert f"status is {status}" in said
        assert ("logits are not finite" in said) == (status == "error")

    def test_a_protocol_without_full_autoattack_names_those_that_have_it(self, made):
        tree = json.loads((made.run / "result.json").read_text(encoding="utf-8"))
        del tree["autoattack_acc"]
        tree["evaluation"] = [one for one in tree["evaluation"] if one["attack"] != "square"]
        tree["metrics"] |= {"autoattack": None}
        made.write("result.json", tree | {"protocol": "clean,apgd-ce,apgd-t,fab-t"})
        assert "--protocol full or again or standard" in made.refused()

    def test_an_entry_that_exists(self, made):
        made.submit()
        assert "--replace" in made.refused()

    def test_the_same_evidence_under_another_name(self, made):
        made.submit()
        assert "once" in made.refused(entry="Another2026Name")

    def test_evidence_that_is_not_the_runs(self, made):
        table = made.run / "evidence.npz"
        table.write_bytes(table.read_bytes() + b"\0")
        assert "not the file" in made.refused()
        table.unlink()
        assert "missing" in made.refused()

    def test_numbers_that_the_evidence_does_not_hold(self, made):
        tree = json.loads((made.run / "result.json").read_text(encoding="utf-8"))
        tree["evaluation"][1]["forwards"] -= 0.5
        made.write("result.json", tree)
        assert made.refused().startswith("not fit for a board")

    @pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "a b", "x" * 200])
    def test_a_name_that_is_no_file_name(self, made, name):
        assert "letters" in made.refused(entry=name)

    def test_a_folder_that_is_no_run(self, made, tmp_path):
        with pytest.raises(UserError, match=f"it holds the runs {made.run.name}"):
            submit(made.run.parent, made.root, Metadata())
        with pytest.raises(UserError, match="give its folder"):
            submit(made.run / "result.json", made.root, Metadata())
        with pytest.raises(UserError, match="no run folder"):
            submit(tmp_path / "nothing", made.root, Metadata())

    def test_a_name_that_differs_in_case_only(self, made, committed, tmp_path):
        other = Made(next(path for path in committed if path.name.startswith("fgsm-")), tmp_path)
        other.submit(entry="one2026entry")
        assert "in case only" in made.refused(entry="One2026Entry")

    def test_a_claim_that_is_no_percentage(self, made):
        for claim in ("about half", "145", "-1"):
            with pytest.raises(UserError, match=r"^metadata: reported: write the percentage"):
                metadata(made.run, {"reported": claim})
        (made.run / "submission.toml").write_text("reported = 53.4", encoding="utf-8")
        assert metadata(made.run, {}).reported == "53.40"

    def test_a_run_record_nested_too_deep(self, made):
        (made.run / "run.json").write_text("[" * 100_000, encoding="utf-8")
        assert len(made.refused().splitlines()) == 1

    def test_a_link_that_a_browser_would_run(self, made):
        assert "link" in made.refused(link="javascript:alert(1)")


class TestReplacing:
    def test_by_another_run_the_history_keeps_what_it_was(self, made, committed, tmp_path):
        other = Made(next(path for path in committed if path.name.startswith("fgsm-")), tmp_path)
        first = made.submit(entry="One2026Entry").result
        second = other.submit(entry="One2026Entry", replace=True).result
        events = second.verification.history
        assert [event.event for event in events] == ["submitted", "replaced"]
        assert events[1].autoattack_acc == first.autoattack_acc != second.autoattack_acc
        assert events[1].run_hash == first.run_hash != second.run_hash
        assert all(verdict.ok for verdict in verify.verify(made.root))

    def test_metadata_of_the_same_run_are_amended(self, made):
        about = {"venue": "unknown", "authors": "A. One", "link": "https://example.org/p"}
        first = made.submit(entry="One2026Entry", **about).result
        second = made.submit(entry="One2026Entry", venue="ICML 2026", replace=True).result
        assert (second.venue, second.authors, second.link) == (
            "ICML 2026",
            *list(about.values())[1:],
        )
        assert second.metrics == first.metrics
        events = second.verification.history
        assert [event.event for event in events] == ["submitted", "amended"]
        assert all(verdict.ok for verdict in verify.verify(made.root))

    def test_a_checkpoint_that_was_brought_down_cannot_replace_itself(self, made):
        brought_down(made.submit(entry="One2026Entry").path)
        assert "other weights" in made.refused(entry="One2026Entry", replace=True)

    def test_nor_can_it_come_back_after_another_has_replaced_it(self, made, committed, tmp_path):
        other = Made(next(path for path in committed if path.name.startswith("fgsm-")), tmp_path)
        brought_down(made.submit(entry="One2026Entry").path)
        other.submit(entry="One2026Entry", replace=True)
        assert "other weights" in made.refused(entry="One2026Entry", replace=True)


def brought_down(path: Path) -> None:
    """Write a lower value into an entry, as a challenge does."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tree | {"external": "1.00"}), encoding="utf-8")


def together(made: Made, venue: str, *lists: list[str]) -> list[str]:
    """Let processes submit at the same moment; the lines that they print."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SUBMIT, str(made.run), str(made.root), venue, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in lists
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [line for process in processes for line in process.communicate()[0].splitlines()]


class TestAtOnce:
    def test_of_two_that_want_one_name_exactly_one_gets_it(self, made):
        said = together(made, "ICML 2026", ["One2026Entry"], ["One2026Entry"])
        assert sorted(line.split()[0] for line in said) == ["refused", "written"]
        assert [path.stem for path in entries.find(made.root)] == ["One2026Entry"]
        assert all(verdict.ok for verdict in verify.verify(made.root))

    def test_nothing_is_lost_of_what_both_write(self, made):
        """Ten replacements from two processes: all ten are in the history, in some order."""
        made.submit(entry="One2026Entry")
        said = together(made, "replace", ["One2026Entry"] * 5, ["One2026Entry"] * 5)
        assert [line.split()[0] for line in said] == ["written"] * 10
        (path,) = entries.find(made.root)
        history = entries.read(path).result.verification.history
        assert [event.event for event in history] == ["submitted", *["amended"] * 10]
        assert all(verdict.ok for verdict in verify.verify(made.root))
