"""Ranks, ties, seeds and sections, counted by hand on entries with chosen verdicts."""

import json
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aal_bench import registry
from aal_bench.config import read_task
from aal_bench.errors import UserError
from aal_bench.leaderboard import paired, standings
from aal_bench.leaderboard.board import Board, Row, Standing, boards
from aal_bench.leaderboard.entries import Entry
from aal_bench.record import Record, robustbench_view


def only(root: Path, task: str | None = None) -> Board:
    (board,) = boards(root, task)
    return board


def ranks(board: Board, section: int = 0) -> list[tuple[str, str]]:
    return [(one.place, one.rows[0].id) for one in board.sections[section].standings]


def fingerprint(task: str, note: str) -> str:
    """The sha256 of pixels that the task file describes so."""
    known = read_task(registry.task_file(task)).data.fingerprints
    return next(digest for digest, text in known.items() if text.startswith(note))


def falls(first: int, last: int) -> list[int]:
    return list(range(first, last))


class TestRanks:
    def test_by_autoattack_and_a_clear_difference_is_a_rank(self, make_entry, boards_root):
        make_entry("weak", falls(0, 20), method="fgsm")
        make_entry("strong", falls(0, 4), method="pgd")
        make_entry("middle", falls(0, 12), method="trades")
        board = only(boards_root)
        assert ranks(board) == [("1", "strong"), ("2", "middle"), ("3", "weak")]
        (section,) = board.sections
        assert [one.mean for one in section.standings] == [36 / 40, 28 / 40, 20 / 40]
        assert [one.spread for one in section.standings] == [None, None, None]

    def test_six_images_to_none_is_a_rank_and_five_a_tie(self, make_entry, boards_root):
        """p is 2 / 64 = 0.031 for six, 2 / 32 = 0.0625 for five."""
        make_entry("leader", [], method="pgd")
        make_entry("five", falls(0, 5), method="trades")
        make_entry("six", falls(0, 6), method="fgsm")
        assert ranks(only(boards_root)) == [("1=", "leader"), ("1=", "five"), ("3", "six")]

    def test_ties_are_with_the_leader_and_not_passed_on(self, make_entry, boards_root):
        """four ties with none, and eight with four; eight does not tie with none."""
        for name, method, count in (
            ("none", "pgd", 0),
            ("four", "fgsm", 4),
            ("eight", "trades", 8),
        ):
            make_entry(name, falls(0, count), method=method)
        assert ranks(only(boards_root)) == [("1=", "none"), ("1=", "four"), ("3", "eight")]

    def test_equal_counts_on_different_images_tie_and_are_ordered_by_name(
        self, make_entry, boards_root
    ):
        make_entry("x", falls(20, 30), method="trades", **{"training.config_hash": "0" * 64})
        make_entry("y", falls(0, 10), method="fgsm", **{"training.config_hash": "f" * 64})
        assert ranks(only(boards_root)) == [("1=", "y"), ("1=", "x")], "fgsm before trades"

    def test_a_verified_lower_value_ranks(self, make_entry, boards_root):
        make_entry("challenged", falls(0, 2), method="fgsm", challenged=falls(2, 22))
        make_entry("other", falls(0, 10), method="pgd")
        board = only(boards_root)
        assert ranks(board) == [("1", "other"), ("2", "challenged")]
        row = board.sections[0].standings[1].rows[0]
        assert row.entry.result.autoattack_acc == "95.00"
        assert row.score == pytest.approx(18 / 40)
        assert row.measure.value == 18 / 40

    def test_a_lower_value_ranks_by_its_images_and_not_by_its_two_decimals(
        self, make_entry, boards_root
    ):
        make_entry("a", falls(0, 2), n=30, challenged=falls(2, 23))
        (row,) = only(boards_root).sections[0].standings[0].rows
        assert row.entry.result.external == "23.33"
        assert row.score == 7 / 30

    def test_an_unreliable_entry_is_ranked_and_marked(self, make_entry, boards_root):
        flag = {"code": "mask-honesty", "severity": "unreliable"}
        make_entry("doubtful", [], method="aal-pgd", flags=[flag])
        make_entry("plain", falls(0, 20), method="pgd")
        board = only(boards_root)
        assert ranks(board) == [("1", "doubtful"), ("2", "plain")]
        assert [one.unreliable for one in board.sections[0].standings] == [True, False]

    def test_nobody_elses_checkpoint_is_a_sibling(self, make_entry, boards_root):
        make_entry("one", falls(0, 2), method=None)
        make_entry("two", falls(0, 3), method=None)
        board = only(boards_root)
        assert [len(one.rows) for one in board.sections[0].standings] == [1, 1]
        assert [one.method for one in board.sections[0].standings] == ["one", "two"]
        assert board.sections[0].standings[0].rows[0].seed is None


class TestSeeds:
    def test_one_standing_with_mean_and_sample_standard_deviation(self, make_entry, boards_root):
        for seed, count in ((2, 12), (0, 4), (1, 10)):
            make_entry(f"pgd-{seed}", falls(0, count), seed=seed)
        (standing,) = only(boards_root).sections[0].standings
        assert [row.seed for row in standing.rows] == [0, 1, 2]
        scores = [36 / 40, 30 / 40, 28 / 40]
        assert [row.score for row in standing.rows] == scores
        assert standing.mean == pytest.approx(mean(scores))
        assert standing.spread == pytest.approx(stdev(scores))
        assert (standing.rank, standing.tied, standing.collapsed) == (1, False, 0)

    def test_another_configuration_is_another_standing(self, make_entry, boards_root):
        make_entry("a", seed=0)
        make_entry("b", seed=1, **{"training.config_hash": "f" * 64})
        make_entry("c", seed=2, **{"model.name": "wrn-10-1"})
        assert len(only(boards_root).sections[0].standings) == 3

    @pytest.mark.parametrize("own", [{"authors": "Mallory"}, {"name": "Another title"}])
    def test_a_strangers_seed_of_the_same_recipe_lowers_nobodys_mean(
        self, make_entry, boards_root, own
    ):
        make_entry("mine-0", falls(0, 4), seed=0)
        make_entry("mine-1", falls(0, 6), seed=1)
        path = make_entry("invented", falls(0, 38), seed=7)
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | own), "utf-8")
        first, last = only(boards_root).sections[0].standings
        assert [row.id for row in first.rows] == ["mine-0", "mine-1"]
        assert first.mean == pytest.approx((36 + 34) / 80)
        assert [row.id for row in last.rows] == ["invented"]
        assert [row.collapsed for row in last.rows] == [False], "its best sibling is itself"

    def test_a_collapsed_seed_counts_in_the_mean(self, make_entry, boards_root):
        make_entry("good", falls(0, 4), seed=0)
        make_entry("bad", falls(0, 30), seed=1)
        (standing,) = only(boards_root).sections[0].standings
        assert [row.collapsed for row in standing.rows] == [False, True], "10 < 36 / 2"
        assert standing.collapsed == 1
        assert standing.mean == pytest.approx((36 / 40 + 10 / 40) / 2)

    def test_a_tie_unless_every_seed_beats_every_other(self, make_entry, boards_root):
        make_entry("p0", falls(0, 2), seed=0, method="pgd")
        make_entry("p1", falls(0, 10), seed=1, method="pgd")
        make_entry("f0", falls(0, 13), seed=0, method="fgsm")
        assert ranks(only(boards_root)) == [("1=", "p0"), ("1=", "f0")], "10 and 13 differ by 3"
        make_entry("p1", falls(0, 3), seed=1, method="pgd")
        assert ranks(only(boards_root)) == [("1", "p0"), ("2", "f0")]

    def test_the_level_is_the_lowest_of_the_seeds(self, make_entry, boards_root):
        make_entry("a", seed=0, **{"verification.level": 3})
        make_entry("b", seed=1, **{"verification.level": 1})
        assert only(boards_root).sections[0].standings[0].level == 1


@pytest.mark.parametrize(
    ("clean", "score", "siblings", "collapsed"),
    [
        (0.9, 0.5, [0.5], False),
        (0.2, 0.2, [0.2], True),  # at most twice chance
        (0.21, 0.2, [0.2], False),
        (0.9, 0.25, [0.25, 0.5], False),  # exactly half of the best
        (0.9, 0.24, [0.24, 0.5], True),
        (0.9, 0.0, [0.0], False),  # not robust, but nothing says that the seed is to blame
    ],
)
def test_when_a_seed_collapsed(clean, score, siblings, collapsed):
    assert standings.is_collapsed(clean, score, 10, siblings) is collapsed


class TestSections:
    def test_rows_on_other_questions_are_never_ranked_together(self, make_entry, boards_root):
        make_entry("a", falls(0, 9), method="pgd")
        make_entry("b", [], method="fgsm")
        make_entry("c", [], method="pgd", **{"task.hash": "b" * 64})
        board = only(boards_root)
        assert [section.task_hash[0] for section in board.sections] == ["a", "b"]
        assert ranks(board, 0) == [("1", "b"), ("2", "a")]
        assert ranks(board, 1) == [("1", "c")]

    def test_pixels_are_named_by_the_task_file(self, make_entry, boards_root):
        known = fingerprint("digits", "the embedded")
        make_entry("a", **{"evidence.dataset_fingerprint": {"pixels": known}})
        make_entry("b", **{"task.hash": "b" * 64})
        known_section, unknown = only(boards_root).sections
        assert (known_section.pixels, known_section.official) == ("the embedded images", True)
        assert unknown.pixels == "pixels dddddddd, unknown to the task file"
        assert unknown.official is None
        assert (unknown.examples, unknown.eps, unknown.fingerprint) == (40, "24/255", "d" * 64)

    def test_the_official_bytes_come_first_however_few_their_rows(self, make_entry, boards_root):
        known = {"pixels": fingerprint("digits", "the embedded")}
        changes = {"task.hash": "b" * 64, "evidence.dataset_fingerprint": known}
        make_entry("a", method="pgd")
        make_entry("b", method="fgsm")
        make_entry("c", method="pgd", **changes)
        assert [section.official for section in only(boards_root).sections] == [True, None]

    def test_a_known_copy_is_not_official(self, make_entry, boards_root):
        known = fingerprint("cifar10-1k", "a JPEG copy")
        make_entry("a", task="cifar10-1k", **{"evidence.dataset_fingerprint": {"pixels": known}})
        (section,) = only(boards_root).sections
        assert section.official is False
        assert section.pixels.startswith("a JPEG copy")

    def test_boards_are_one_for_each_task_and_norm(self, make_entry, boards_root):
        make_entry("a")
        make_entry("b", task="cifar10")
        make_entry("c", **{"threat.norm": "L2"})
        found = [(board.task, board.norm, board.eps) for board in boards(boards_root)]
        assert found == [
            ("cifar10", "Linf", "8/255"),
            ("digits", "L2", "24/255"),
            ("digits", "Linf", "24/255"),
        ]
        assert [board.norm for board in boards(boards_root, "digits")] == ["L2", "Linf"]

    def test_a_known_task_without_entries_is_an_empty_board(self, make_entry, boards_root):
        make_entry("a")
        (board,) = boards(boards_root, "cifar10")
        assert board[:4] == ("cifar10", board.title, "Linf", "8/255")
        assert (board.sections, board.task_file is None) == ([], False)
        assert [one.task for one in boards(boards_root)] == ["digits"], (
            "without TASK it is left out"
        )

    def test_a_task_without_a_file_is_shown_by_its_name(self, make_entry, boards_root):
        path = make_entry("a")
        tree = json.loads(path.read_text("utf-8")) | {"dataset": "elsewhere"}
        tree["task"]["id"] = "elsewhere"
        moved = boards_root / "elsewhere" / "Linf" / "a.json"
        moved.parent.mkdir(parents=True)
        path.with_suffix(".npz").rename(moved.with_suffix(".npz"))
        moved.write_text(json.dumps(tree), "utf-8")
        path.unlink()
        board = only(boards_root)
        assert (board.title, board.task_file) == ("elsewhere", None)


class TestRefusals:
    def test_missing_evidence(self, make_entry, boards_root):
        path = make_entry("a").with_suffix(".npz")
        path.unlink()
        with pytest.raises(UserError, match=r"digits/Linf/a\.npz: no such"):
            boards(boards_root)

    def test_an_entry_in_the_wrong_folder(self, make_entry, boards_root):
        path = make_entry("a")
        (boards_root / "cifar10").mkdir()
        path.parent.rename(boards_root / "cifar10" / "Linf")
        with pytest.raises(
            UserError, match=r"a\.json: answers digits/Linf, but lies in cifar10/Linf"
        ):
            boards(boards_root)

    def test_an_entry_without_autoattack(self, make_entry, boards_root):
        path = make_entry("a")
        tree = json.loads(path.read_text("utf-8"))
        tree["metrics"]["autoattack"] = None
        del tree["autoattack_acc"]
        path.write_text(json.dumps(tree), "utf-8")
        with pytest.raises(UserError, match=r"a\.json: has no AutoAttack accuracy"):
            boards(boards_root)

    def test_four_stages_that_are_not_the_standard_autoattack(self, make_entry, boards_root):
        path = make_entry("a")
        tree = json.loads(path.read_text("utf-8"))
        tree["evaluation"][3]["params"]["steps"] = 10
        del tree["autoattack_acc"]
        path.write_text(json.dumps(tree), "utf-8")
        with pytest.raises(UserError, match=r"a\.json: has no AutoAttack accuracy"):
            boards(boards_root)

    @pytest.mark.parametrize("external", ["n/a", "nan", "101", "-1", "99.00"])
    def test_an_external_value_that_its_attacks_do_not_leave(
        self, make_entry, boards_root, external
    ):
        make_entry("a", external=external)
        with pytest.raises(
            UserError, match=rf"a\.json: external is '{external}', its attacks leave 100\.00"
        ):
            boards(boards_root)

    def test_evidence_of_other_images(self, make_entry, boards_root):
        make_entry("a", method="pgd")
        make_entry("b", method="fgsm", n=39)
        with pytest.raises(UserError, match="different images or labels"):
            boards(boards_root)

    def test_a_record_that_is_none(self, boards_root):
        path = boards_root / "digits" / "Linf" / "a.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}", "utf-8")
        with pytest.raises(UserError, match=r"a\.json: "):
            boards(boards_root)

    def test_an_unknown_task_and_the_nearest(self, make_entry, boards_root):
        make_entry("a")
        with pytest.raises(
            UserError, match=r"unknown task 'digit'\. Did you mean digits\?"
        ) as told:
            boards(boards_root, "digit")
        assert str(told.value).endswith("Boards: digits")

    def test_a_table_that_the_record_was_not_made_of(self, make_entry, boards_root):
        a, b = make_entry("a", falls(0, 4)), make_entry("b", [39], method="fgsm")
        b.with_suffix(".npz").replace(a.with_suffix(".npz"))
        make_entry("b", [39], method="fgsm")
        with pytest.raises(UserError, match=r"a\.json: a\.npz is not the table .*aal-bench verify"):
            boards(boards_root)

    @pytest.mark.parametrize(
        ("name", "told"),
        [("clean", "clean is 100.00 %"), ("autoattack", "AutoAttack is 100.00 %")],
    )
    def test_numbers_that_the_evidence_does_not_say(self, make_entry, boards_root, name, told):
        """The sha256 is right, the printed share is not: 36 of 40 stand, 39 without attack."""
        path = make_entry("a", falls(0, 4), unclean=[3])
        tree = json.loads(path.read_text("utf-8"))
        tree["metrics"][name] |= {"value": 1.0, "ci95": [0.9, 1.0]}
        record = {key: value for key, value in tree.items() if key in Record.model_fields}
        tree |= robustbench_view(Record.model_validate(record))
        path.write_text(json.dumps(tree), "utf-8")
        counted = {"clean": "97.50", "autoattack": "90.00"}[name]
        with pytest.raises(
            UserError, match=rf"a\.json: {told}, the evidence says {counted} %.*aal-bench verify"
        ):
            boards(boards_root)

    def test_no_entries_at_all_is_no_mistake(self, boards_root):
        boards_root.mkdir()
        assert boards(boards_root) == []


VERDICTS = st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=VERDICTS, data=st.data())
def test_ranks_hold_for_any_verdicts(make_result, drawn, data):
    """Whatever the verdicts: the order of the files is of no account, a leader ties with its whole
    group and beats the next leader, and ranks count the standings above."""
    result = make_result(n=24).result
    training = result.training
    assert training is not None
    rows, verdicts = [], {}
    for number, bits in enumerate(drawn):
        own = training.model_copy(update={"method": f"m{number // 2}", "seeds": [number]})
        entry = Entry(Path(f"{number}.json"), {}, result.model_copy(update={"training": own}))
        verdicts[entry.path] = np.array([bits >> i & 1 for i in range(24)], bool)
        rows.append(Row(entry, float(verdicts[entry.path].mean()), collapsed=False))
    ranked = standings.rank(rows, verdicts)
    assert standings.rank(data.draw(st.permutations(rows)), verdicts) == ranked
    assert sum(len(one.rows) for one in ranked) == len(rows)

    def beats(a: Standing, b: Standing) -> bool:
        pairs = [(verdicts[x.entry.path], verdicts[y.entry.path]) for x in a.rows for y in b.rows]
        return all(paired.pair(x, y).winner == "A" for x, y in pairs)

    leader = ranked[0]
    for position, one in enumerate(ranked):
        if position and one.rank == position + 1:
            assert beats(leader, one)
            leader = one
        assert one.rank == ranked.index(leader) + 1
        assert not (position and one is not leader and beats(leader, one))
        assert one.tied == (sum(other.rank == one.rank for other in ranked) > 1)
    assert [one.mean for one in ranked] == sorted((one.mean for one in ranked), reverse=True)
