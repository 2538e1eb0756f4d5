"""Two results side by side: fields, images, McNemar, and questions that may not be compared."""

import json
from math import comb

import pytest

from aal_bench import results
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.leaderboard.compare import compare, text, tree
from aal_bench.results import evidence_file


def falls(first: int, last: int) -> list[int]:
    return list(range(first, last))


@pytest.fixture
def write_run(make_result, tmp_path):
    """A finished run's folder: ``write_run("a", protocol="fast")``."""

    def write(name: str, **changes):
        folder = tmp_path / name
        folder.mkdir()
        made = make_result(**changes)
        made.evidence.save(folder / "evidence.npz")
        block = evidence_file(folder / "evidence.npz", made.evidence, {"pixels": "d" * 64})
        results.write(folder / "result.json", made.result.model_copy(update={"evidence": block}))
        return folder

    return write


class TestVerdict:
    def test_a_is_better_where_only_it_stands_on_twelve_images_of_fifteen(self, make_entry):
        a = make_entry("a", falls(0, 3))
        b = make_entry("b", falls(3, 15), method="fgsm")
        found = compare(a, b)
        line = found.line("autoattack")
        p = 2 * sum(comb(15, k) for k in range(4)) / 2**15
        assert line.pair == (12, 3, pytest.approx(p))
        assert (line.a, line.b) == (37 / 40, 28 / 40)
        assert (found.basis, found.winner) == ("autoattack", "A")
        told = "A is better: 12 images only A, 3 only B, p = 0.035 (under AutoAttack)"
        assert text(found).splitlines()[-1] == told

    def test_and_seen_from_the_other_side_b_is(self, make_entry):
        a, b = make_entry("a", falls(3, 15)), make_entry("b", falls(0, 3), method="fgsm")
        assert compare(a, b).winner == "B"

    def test_a_tie_is_called_a_tie(self, make_entry):
        a, b = make_entry("a", falls(0, 5)), make_entry("b", [], method="fgsm")
        assert "a tie: 0 images only A, 5 only B, p = 0.062" in text(compare(a, b))

    def test_a_result_with_itself(self, make_entry):
        a = make_entry("a", falls(0, 5))
        found = compare(a, a)
        assert found.differing == []
        assert {line.pair for line in found.lines} == {(0, 0, 1.0)}
        assert found.winner == "tie"
        assert "no protocol field differs" in text(found)

    def test_every_verdict_has_its_line(self, make_entry):
        a = make_entry("a", falls(0, 3), unclean=[38, 39])
        b = make_entry("b", falls(0, 3), method="fgsm")
        found = compare(a, b)
        attacks = ["fgsm", "pgd-10", "apgd-ce", "apgd-t", "fab-t", "square"]
        assert found.stages == attacks
        assert [line.verdict for line in found.lines] == ["clean", *attacks, "autoattack", "robust"]
        assert found.line("clean").pair[:2] == (0, 2)
        assert found.line("robust").only_b == [38, 39]
        printed = [line.split("  ")[0] for line in text(found).splitlines()]
        assert {"fgsm", "apgd-ce (cumulative)", "square (cumulative)"} <= {*printed}

    def test_a_challenged_entry_is_judged_by_everything_that_ranks_it(self, make_entry):
        a = make_entry("a", [], challenged=falls(0, 10))
        b = make_entry("b", falls(38, 40), method="fgsm")
        found = compare(a, b)
        assert found.basis == "external"
        assert found.line("external").pair[:2] == (2, 10)
        verdicts = [line.verdict for line in found.lines]
        assert "robust" not in verdicts, "the challenge is none of b's stages: another number"
        assert tree(found)["robust_over"] == []
        assert "challenge-1" not in found.stages
        assert found.winner == "B"

    def test_without_autoattack_on_both_the_common_attacks_decide_and_it_says_so(self, write_run):
        found = compare(write_run("a"), write_run("b", protocol="paper"))
        assert found.stages == ["fgsm", "pgd-10"]
        assert found.basis == "robust"
        assert "not full AutoAttack" in text(found)


class TestFields:
    def names(self, found) -> list[str]:
        return [field.name for field in found.differing]

    def test_what_was_set_differently_and_nothing_else(self, make_entry):
        a = make_entry("a", seed=0)
        b = make_entry("b", seed=1, **{"model.checkpoint.sha256": "f" * 64})
        tree = json.loads(b.read_text("utf-8"))
        tree["training"]["config"]["task"]["train"]["lr"] = 0.05
        tree["evaluation"][2]["params"]["alpha"] = "2/255"
        tree["evaluation"][2]["implementation"]["version"] = "2"
        tree["evaluation"][3]["tf32"] = True
        tree["training"]["wall_seconds"] = 1.0
        b.write_text(json.dumps(tree), "utf-8")
        found = compare(a, b)
        assert self.names(found) == [
            "checkpoint",
            "stages.apgd-ce.tf32",
            "stages.pgd-10.implementation.version",
            "stages.pgd-10.params.alpha",
            "training.config.task.train.lr",
            "training.seeds",
        ]
        lr = found.differing[4]
        assert (lr.a, lr.b) == ("0.1", "0.05")
        assert found.differing[3].a == "absent"

    def test_protocols(self, write_run):
        found = compare(write_run("a"), write_run("b", protocol="standard"))
        names = self.names(found)
        assert {"protocol.name", "protocol.stages", "stages.fgsm", "stages.pgd-10"} <= {*names}

    def test_a_foreign_checkpoint_has_no_training(self, make_entry):
        found = compare(make_entry("a"), make_entry("b", method=None))
        assert "training.method" in self.names(found)


class TestIndices:
    def test_the_text_has_twenty_and_the_json_all(self, make_entry):
        a, b = make_entry("a", []), make_entry("b", falls(5, 30), method="fgsm")
        found = compare(a, b)
        shown = ", ".join(map(str, range(5, 25)))
        assert f"only A robust: {shown}, and 5 more (--json)\nonly B robust: none" in text(found)
        assert tree(found)["indices"] == {"only_a": falls(5, 30), "only_b": []}

    def test_they_are_of_the_verdict_that_decides(self, make_entry):
        """B falls on 0..9 by a challenge, which is none of A's stages."""
        a, b = make_entry("a", method="fgsm"), make_entry("b", [], challenged=falls(0, 10))
        found = compare(a, b)
        assert tree(found)["indices"] == {"only_a": falls(0, 10), "only_b": []}
        shown = ", ".join(map(str, range(10)))
        assert f"challenges and fresh attacks included\nonly A robust: {shown}\n" in text(found)

    def test_they_are_positions_in_the_test_split_not_rows(self, make_entry):
        paths = [make_entry("a", [0]), make_entry("b", [1], method="fgsm")]
        for path in paths:
            evidence = Evidence.load(path.with_suffix(".npz"))
            evidence.index = 1000 - 2 * evidence.index  # another, descending subset
            evidence.save(path.with_suffix(".npz"))
            record = json.loads(path.read_text("utf-8"))
            digest = results.evidence_file(path.with_suffix(".npz"), evidence, {}).sha256
            record["evidence"]["sha256"] = digest
            path.write_text(json.dumps(record), "utf-8")
        assert tree(compare(*paths))["indices"] == {"only_a": [998], "only_b": [1000]}

    def test_the_json_is_json(self, make_entry):
        found = tree(compare(make_entry("a"), make_entry("b", [1], method="fgsm")))
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        (line,) = [line for line in found["lines"] if line["verdict"] == "robust"]
        assert (line["only_a"], line["only_b"], line["better"]) == (1, 0, "tie")


class TestRefusals:
    @pytest.mark.parametrize(
        ("field", "value", "told"),
        [
            ("threat.eps", "8/255", "threat.eps 24/255 | 8/255"),
            ("task.version", "2.0", "task.version 1.0 | 2.0"),
            ("task.classes", 11, "task.classes 10 | 11"),
            ("training.config.task.attack.step", "1/255", "step 6/255 | 1/255"),
            ("training.config.task.evaluation.seed", 7, "evaluation.seed 0 | 7"),
            ("training.config.task.data.size", 32, "data.size 16 | 32"),
            (
                "evidence.dataset_fingerprint",
                {"pixels": "a" * 64, "count": "40"},
                "fingerprint.count absent | 40; fingerprint.pixels dddddddddddd | aaaaaaaaaaaa",
            ),
        ],
    )
    def test_another_question_and_what_makes_it_another(self, make_entry, field, value, told):
        a, b = make_entry("a"), make_entry("b", **{"task.hash": "b" * 64, field: value})
        with pytest.raises(UserError, match="answer different questions") as caught:
            compare(a, b)
        assert str(caught.value).endswith(f"(task_hash aaaaaaaa | bbbbbbbb): {told}")

    def test_hashes_that_differ_without_a_reason(self, make_entry):
        with pytest.raises(UserError, match="no recorded field differs, so one hash is wrong"):
            compare(make_entry("a"), make_entry("b", **{"task.hash": "b" * 64}))

    def test_a_step_that_only_the_attack_tells(self, make_entry):
        paths = [make_entry("a", method=None), make_entry("b", method=None)]
        for path, step in zip(paths, ("2/255", "6/255"), strict=True):
            record = json.loads(path.read_text("utf-8"))
            record["evaluation"][2]["params"]["alpha"] = step
            record["task"]["hash"] = step[0] * 64
            path.write_text(json.dumps(record), "utf-8")
        with pytest.raises(UserError, match=r"step 2/255 \| 6/255$"):
            compare(*paths)

    def test_a_limited_run_with_a_whole_one(self, write_run):
        with pytest.raises(UserError, match=r"evaluated 100 images, .* 360: compare"):
            compare(write_run("a", limit=100), write_run("b"))

    def test_evidence_that_the_record_was_not_made_of(self, write_run):
        a, b = write_run("a"), write_run("b")
        Evidence([0], [0]).save(b / "evidence.npz")
        with pytest.raises(UserError, match=r"evidence\.npz: not the table that result\.json was"):
            compare(a, b)

    def test_a_run_that_is_not_finished(self, write_run):
        b = write_run("b", status="cancelled")
        with pytest.raises(UserError, match=r"result\.json: the run is not finished \(cancelled\)"):
            compare(write_run("a"), b)

    def test_a_folder_that_is_no_run(self, make_entry, tmp_path):
        with pytest.raises(UserError, match=r"holds no result\.json"):
            compare(make_entry("a"), tmp_path)

    def test_no_attack_in_common(self, write_run):
        a = write_run("a", protocol="clean,fgsm")
        with pytest.raises(UserError, match=r"no attack in common: fgsm \| pgd-10"):
            compare(a, write_run("b", protocol="clean,pgd-10"))


def test_an_entry_and_a_run_folder_and_its_result_are_all_taken(write_run):
    folder = write_run("a")
    entry = folder.parent / "entry.json"
    entry.write_bytes((folder / "result.json").read_bytes())
    entry.with_suffix(".npz").write_bytes((folder / "evidence.npz").read_bytes())
    for one in (folder, folder / "result.json"):
        assert compare(one, entry).line("robust").pair == (0, 0, 1.0)


def test_characters_that_steer_a_terminal_are_not_printed(make_entry):
    a = make_entry("a", **{"training.method": "pgd\x1b[2J\u202e", "submission_id": "a\x1b[31m"})
    shown = text(compare(a, make_entry("b")))
    assert "pgd [2J" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
