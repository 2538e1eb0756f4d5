"""Few-shot entries: submitted, verified at levels 0 and 1, ranked by clean accuracy, compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from aal_bench import registry, results
from aal_bench.config import read_task
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file, sha256_json
from aal_bench.leaderboard import cells, copies, entries, terminal, verify
from aal_bench.leaderboard.board import Board, boards
from aal_bench.leaderboard.board_json import tree as board_tree
from aal_bench.leaderboard.compare import compare, text, tree
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.markdown import markdown
from aal_bench.leaderboard.metadata import Metadata
from aal_bench.leaderboard.question import known_task
from aal_bench.leaderboard.recomputed import ATTESTED
from aal_bench.leaderboard.submit import remark, submit
from aal_bench.record import ABSENT, Record, Result, robustbench_view
from aal_bench.verification import Options, verify_entry

TASK = "small-5w1s"
SUBMITTED: dict[str, list[tuple[Path, bytes]]] = {}
"""Name and changes of an entry -> its two files: place on the boards, and content."""


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task file like mini-imagenet's, with forty episodes."""
    path = tmp_path / "small.toml"
    told = registry.task_file("mini-imagenet").read_text(encoding="utf-8")
    told = told.replace('name = "mini-imagenet"\ntitle', 'name = "small"\ntitle', 1)
    path.write_text(told.replace("count = 2000", "count = 40"), "utf-8")
    files = registry.task_files() | {"small": path}
    monkeypatch.setattr(registry, "task_files", lambda: files)
    known_task.cache_clear()
    yield
    known_task.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "leaderboards"


@pytest.fixture
def enter(make_episodes, tmp_path: Path, root: Path) -> Callable[..., Entry]:
    """Submit a run: ``enter("name", method=, skill=, protocol=, ...)``; equal ones are kept."""

    def submitted(name: str, **changes: Any) -> Entry:
        key = json.dumps([name, changes])
        if key not in SUBMITTED:
            make_episodes("small", name=name, **changes)
            made = submit(tmp_path / name, root, Metadata(entry=name))
            places = (made.path, made.evidence_path)
            SUBMITTED[key] = [(one.relative_to(root), one.read_bytes()) for one in places]
        for place, content in SUBMITTED[key]:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(content)
        return entries.read(root / SUBMITTED[key][0][0])

    return submitted


def broken(path: Path) -> dict[str, str]:
    """``{"0 counts": what it found}`` of the rules that do not hold."""
    (verdict,) = verify.verify(path)
    return {f"{one.level} {one.rule}": one.text for one in verdict.findings if not one.ok}


def forge(entry: Entry, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the record and renew whatever anybody can compute: derived keys, hashes, seal."""
    record = json.loads(entry.path.read_text(encoding="utf-8"))
    edit(record)
    for key in ABSENT:
        record.pop(key, None)
    typed = {key: record[key] for key in Record.model_fields if key in record}
    record |= robustbench_view(Record.model_validate(typed))
    if record["training"] is not None:
        record["training"]["config_hash"] = sha256_json(record["training"]["config"])
    found = Result.model_validate(record)
    record["run_hash"] = results.run_hash(
        found.task.hash, found.threat, found.model, found.evaluation, found.limit
    )
    record["verification"]["history"][0]["run_hash"] = record["run_hash"]
    record["seal"] = results.seal(record)
    entry.path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def retable(entry: Entry, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change the evidence, and let every number of the record follow from it."""
    with np.load(entry.evidence_path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    change(arrays)
    np.savez_compressed(entry.evidence_path, **arrays)  # pyright: ignore[reportArgumentType]

    def edit(record: dict[str, Any]) -> None:
        record["evidence"]["sha256"] = sha256_file(entry.evidence_path)
        try:
            table = Evidence.load(entry.evidence_path)
        except UserError:
            return
        metrics = results.METRICS["fewshot"](table, ["clean", *table.stages])
        record["metrics"] = {"autoattack": None} | metrics
        record["evaluation"][0]["n_out"] = int(table.clean_correct().sum())

    forge(entry, edit)


class TestTask:
    def test_ways_and_shots_are_those_of_the_boards_name(self):
        task = known_task("small-5w5s")
        file = read_task(registry.task_file("small"))
        assert task.episodes == file.episodes.model_copy(update={"shots": 5})
        assert task.model_copy(update={"episodes": file.episodes}) == file

    @pytest.mark.parametrize(
        "name",
        ["small", "small-1w1s", "small-05w1s", "digits-5w1s", "no-5w1s"],
    )
    def test_other_names_are_no_boards(self, name):
        assert known_task(name) is None

    def test_a_board_of_images_has_its_files_name(self):
        assert known_task("digits") == read_task(registry.task_file("digits"))


class TestSubmit:
    @pytest.mark.parametrize("protocol", ["episodes", "robust-episodes"])
    def test_an_entry_lies_on_the_board_of_its_ways_and_shots(self, enter, root, protocol):
        entry = enter("one", protocol=protocol)
        assert entry.path == root / TASK / "Linf" / "one.json"
        (verdict,) = verify.verify(entry.path)
        assert broken(entry.path) == {}
        assert verdict.level_held == 1
        assert entry.result.verification.level == 1
        assert "not offered yet for few-shot" in remark(entry.result)

    @pytest.mark.parametrize("changes", [{"shots": 5}, {"count": 600}, {"ways": 3, "shots": 5}])
    def test_other_shapes_and_lengths_are_entries_of_their_own_board(self, enter, changes):
        entry = enter("one", **changes)
        assert broken(entry.path) == {}
        shape = {"ways": 5, "shots": 1} | changes
        assert entry.path.parts[-3] == f"small-{shape['ways']}w{shape['shots']}s"

    def test_three_ways_leave_out_the_attack_that_needs_four_classes(self, enter):
        entry = enter("one", ways=3, protocol="robust-episodes-no-apgd-t")
        assert broken(entry.path) == {}
        assert entry.result.autoattack_acc is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"smoke": True}, "smoke run"),
            ({"limit": 20}, "evaluated on 20 of 40 episodes; run it again"),
            ({"protocol": "clean,pgd-20"}, "--protocol episodes or robust-episodes"),
            ({"protocol": "full"}, "not episodes or robust-episodes"),
            ({"protocol": "robust-episodes-no-square"}, "not episodes or robust-episodes"),
            ({"count": 50}, "not one of 40, 600, 2,000, 10,000"),
            ({"queries": 10}, "task.episodes.queries is 10, not 15"),
            ({"listed": {"seed": 7}}, "task.episodes.seed is 7, not 0"),
            ({"copies": 1}, "task.episodes.copies is 1, not 5"),
        ],
    )
    def test_what_is_no_answer_to_the_task_is_refused(
        self, make_episodes, tmp_path, root, changes, message
    ):
        make_episodes("small", **changes)
        with pytest.raises(UserError, match=message):
            submit(tmp_path / "run", root, Metadata())
        assert not root.exists()

    def test_one_checkpoint_is_one_entry(self, enter):
        enter("one")
        with pytest.raises(UserError, match="once"):
            enter("two", protocol="robust-episodes")

    def test_another_length_of_the_list_is_a_section_of_its_own(self, enter, root):
        enter("one", skill=0.6)
        enter("two", skill=0.5, count=600)
        (board,) = boards(root)
        assert sorted(section.examples for section in board.sections) == [40, 600]


class TestLevelZero:
    @pytest.mark.parametrize(
        ("rule", "edit"),
        [
            ("task", lambda r: r["task"]["episodes"].update(copies=1)),
            ("task", lambda r: r["evidence"]["dataset_fingerprint"].pop("episodes")),
            ("task", lambda r: r["evidence"]["dataset_fingerprint"].update(count="79")),
            ("task", lambda r: r["evidence"]["dataset_fingerprint"].update(count="1e3")),
            ("hashes", lambda r: r["evidence"]["dataset_fingerprint"].update(episodes="0" * 64)),
            ("counts", lambda r: r["metrics"]["clean"].update(ci95=[0.5, 0.7])),
            ("counts", lambda r: r["metrics"]["episodes"]["sd"].update(clean=0.05)),
            ("counts", lambda r: r["metrics"]["episodes"]["sd"].update(robust=0.05)),
            ("counts", lambda r: r["metrics"]["episodes"].update(queries=25)),
            ("counts", lambda r: r["evaluation"][0].update(n_out=r["evaluation"][0]["n_out"] + 1)),
            ("order", lambda r: r["evaluation"][0].update(n_in=2_999)),
            ("budget", lambda r: r["evaluation"][0].update(forwards=2.0)),
            ("arithmetic", lambda r: r["evaluation"][0].update(batch_size=1)),
            ("evidence file", lambda r: r["evidence"].update(rows=40)),
            ("evidence file", lambda r: r["evidence"].update(format="aal-bench 2")),
            ("evidence file", lambda r: r["evidence"]["columns"].remove("episode")),
            ("training", lambda r: r["training"].update(steps=651)),
            ("training", lambda r: r["training"]["config"]["task"]["episodes"].update(shots=5)),
            ("model", lambda r: r["model"].update(architecture="WRN-28-10")),
            ("level", lambda r: r["verification"].update(level=2)),
            ("eligible", lambda r: r.update(smoke=True)),
        ],
    )
    def test_every_lie_breaks_its_rule(self, enter, rule, edit):
        entry = enter("one")
        forge(entry, edit)
        assert f"0 {rule}" in broken(entry.path)

    def test_a_spread_that_no_episodes_have_is_refused(self, enter):
        def edit(record: dict[str, Any]) -> None:
            clean, sd = record["metrics"]["clean"], 0.9
            half = float(stats.t.ppf(0.975, 39)) * sd / 40**0.5
            clean["ci95"] = [clean["value"] - half, clean["value"] + half]
            record["metrics"]["episodes"]["sd"]["clean"] = sd

        entry = enter("one")
        forge(entry, edit)
        assert "more than any 40 episodes" in broken(entry.path)["0 counts"]

    def test_a_part_of_autoattack_is_none(self, enter):
        def edit(record: dict[str, Any]) -> None:
            record["evaluation"] = record["evaluation"][:3]
            record["protocol"] = "clean,pgd-20,apgd-ce"

        entry = enter("one", protocol="robust-episodes")
        forge(entry, edit)
        assert "0 autoattack" in broken(entry.path)

    def test_a_stage_that_was_added_is_not_known_yet(self, enter):
        def edit(record: dict[str, Any]) -> None:
            extra = json.loads(json.dumps(record["evaluation"][-1]))
            record["evaluation"].append(extra | {"attack": "challenge-1"})

        entry = enter("one", protocol="robust-episodes")
        forge(entry, edit)
        assert "nothing is added to few-shot entries" in broken(entry.path)["0 protocol"]

    def test_a_guessing_model_must_say_so(self, enter):
        entry = enter("one", skill=0.2)
        assert broken(entry.path) == {}
        forge(entry, lambda record: record.update(flags=[]))
        assert "0 flags" in broken(entry.path)

    def test_its_numbers_may_not_be_claimed_for_more_shots(self, enter, root):
        entry = enter("one")
        other = root / "small-5w5s" / "Linf"
        other.mkdir(parents=True)
        for path in (entry.path, entry.evidence_path):
            path.rename(other / path.name)

        def edit(record: dict[str, Any]) -> None:
            record["task"]["id"] = "small-5w5s"
            record["task"]["episodes"]["shots"] = 5
            task = known_task("small-5w5s")
            record["task"]["hash"] = task.hash(record["evidence"]["dataset_fingerprint"])

        moved = entry._replace(path=other / entry.path.name)
        forge(moved, edit)
        assert "another question" in broken(moved.path)["0 training"]


def numbers(node: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the numbers of a JSON tree stand."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from numbers(child, (*place, key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield place


def test_every_single_number_forged_under_a_new_seal_is_caught_unless_attested(enter):
    """The next number there is; the bounds of an interval are held to 1e-9."""
    entry = enter("one", protocol="robust-episodes")
    original = entry.path.read_text(encoding="utf-8")
    tried = 0
    for place in numbers(json.loads(original)):
        if any(fnmatchcase(".".join(map(str, place)), pattern) for pattern in ATTESTED):
            continue
        record = node = json.loads(original)
        for part in place[:-1]:
            node = node[part]
        value = node[place[-1]]
        near = value + 2e-9 if "ci95" in place else math.nextafter(value, math.inf)
        node[place[-1]] = value + 1 if isinstance(value, int) else near
        record["seal"] = results.seal(record)
        entry.path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        assert broken(entry.path), place
        tried += 1
    assert tried > 120


class TestLevelOne:
    @pytest.mark.parametrize(
        ("rule", "change"),
        [
            ("rows", lambda arrays: arrays.update(index=arrays["index"] + 1)),
            ("labels", lambda arrays: _swap(arrays["label"], 0, 20)),
            ("labels", lambda arrays: _swap(arrays["index"], 0, 20)),
            ("classes", lambda arrays: arrays["clean_pred"].__setitem__(3, 5)),
            ("evidence", lambda arrays: arrays["episode"].__setitem__(75, 0)),
            ("evidence", lambda arrays: arrays["index"].__setitem__(1, arrays["index"][0])),
            ("evidence", lambda arrays: arrays.pop("episode")),
        ],
    )
    def test_a_table_that_is_not_the_tasks_is_refused(self, enter, rule, change):
        entry = enter("one")
        retable(entry, change)
        assert f"1 {rule}" in broken(entry.path)

    def test_queries_of_one_class_stay_of_one_class_in_every_episode(self, enter):
        entry = enter("one")
        retable(entry, lambda arrays: _swap(arrays["index"], 0, 20))
        assert "are one class, as other episodes say" in broken(entry.path)["1 labels"]

    def test_images_are_no_episodes(self, enter):
        def images(arrays: dict[str, np.ndarray]) -> None:
            del arrays["episode"]
            arrays["format"] = np.array("aal-bench classification evidence 1")
            arrays["index"] = np.arange(len(arrays["index"]), dtype=np.int32)

        entry = enter("one")
        with np.load(entry.evidence_path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        images(arrays)
        np.savez_compressed(entry.evidence_path, **arrays)  # pyright: ignore[reportArgumentType]
        forge(entry, lambda r: r["evidence"].update(sha256=sha256_file(entry.evidence_path)))
        assert "a table of classification" in broken(entry.path)["1 rows"]

    @pytest.mark.parametrize("name", ["clean", "robust", "autoattack", "pgd-20"])
    def test_every_number_follows_from_the_rows(self, enter, name):
        """A spread and its interval, changed together, pass level 0: the rows tell."""

        def edit(record: dict[str, Any]) -> None:
            metrics = record["metrics"]
            measure = metrics.get(name) or metrics["stages"][name]
            sd = metrics["episodes"]["sd"][name] * 0.9
            half = float(stats.t.ppf(0.975, 39)) * sd / 40**0.5
            measure["ci95"] = [measure["value"] - half, measure["value"] + half]
            metrics["episodes"]["sd"][name] = sd

        entry = enter("one", protocol="robust-episodes")
        forge(entry, edit)
        assert {*broken(entry.path)} == {"1 metrics"}

    def test_the_last_digits_of_an_interval_are_scipys_own(self, enter):
        entry = enter("one")
        forge(entry, lambda r: r["metrics"]["clean"]["ci95"].__setitem__(0, _next(r)))
        assert broken(entry.path) == {}

    def test_entries_of_one_question_answered_the_same_queries(self, enter):
        enter("one", skill=0.6)
        other = enter("two", skill=0.5, method="ier")
        retable(other, lambda arrays: _swap(arrays["index"], 0, 1))
        assert "other queries than those of 'one'" in broken(other.path)["1 episodes"]

    def test_a_copy_with_some_other_answers_is_a_copy(self, enter, root):
        enter("one", skill=0.6)
        copy = enter("two", skill=0.5, method="ier")

        def change(arrays: dict[str, np.ndarray]) -> None:
            with np.load(root / TASK / "Linf" / "one.npz") as stored:
                arrays["clean_pred"] = stored["clean_pred"].copy()
            arrays["clean_pred"][::100] = (arrays["clean_pred"][::100] + 1) % 5

        retable(copy, change)
        assert "those of one" in broken(copy.path)["1 copies"]

    def test_honest_models_share_fewer_errors(self, enter):
        a, b = enter("one", seed=0).evidence(), enter("two", seed=1).evidence()
        assert copies.errors(a, b) < copies.COPIED


def _swap(column: np.ndarray, a: int, b: int) -> None:
    column[[a, b]] = column[[b, a]]


def _next(record: dict[str, Any]) -> float:
    return float(np.nextafter(record["metrics"]["clean"]["ci95"][0], 0))


@pytest.mark.parametrize("options", [{"level": 2}, {"level": 3}, {"challenge": Path("mine.npz")}])
def test_levels_beyond_the_first_are_not_offered_yet(enter, options):
    entry = enter("one", protocol="robust-episodes")
    level = options.pop("level", 1)
    with pytest.raises(UserError, match="not offered yet for few-shot entries"):
        verify_entry(entry.path, level, Options(**options))


def only(root: Path) -> Board:
    (board,) = boards(root)
    return board


class TestBoard:
    def test_rows_are_ranked_by_clean_accuracy_over_paired_episodes(self, enter, root):
        enter("good", skill=0.62, method="ier")
        enter("same", skill=0.621, method="aal-ier")
        enter("weak", skill=0.5, method="protonet", protocol="robust-episodes")
        board = only(root)
        (section,) = board.sections
        assert board.fewshot
        assert board.title == "mini-ImageNet, 5-way 1-shot"
        ranks = {one.rows[0].id: one.place for one in section.standings}
        assert {"good", "same"} == {name for name, place in ranks.items() if place == "1="}
        assert ranks["weak"] == "3"
        for one in section.standings:
            assert one.mean == one.first.metrics.clean.value

    def test_a_difference_that_unpaired_intervals_hide_is_found(self, enter, root):
        """Episodes are hard or easy for both: the intervals overlap, the difference is clear."""
        a = enter("a", skill=0.6).result.metrics.clean
        b = enter("b", skill=0.55, method="ier").result.metrics.clean
        assert b.ci95[1] > a.ci95[0]
        assert [one.place for one in only(root).sections[0].standings] == ["1", "2"]

    def test_seeds_of_one_configuration_are_one_standing(self, enter, root):
        for seed in range(3):
            enter(f"s{seed}", seed=seed)
        (standing,) = only(root).sections[0].standings
        assert [row.seed for row in standing.rows] == [0, 1, 2]
        assert standing.spread > 0

    def test_a_seed_that_guesses_has_collapsed(self, enter, root):
        enter("one", skill=0.2)
        assert only(root).sections[0].standings[0].collapsed == 1

    def test_a_seed_that_learnt_little_has_not(self, enter, root):
        enter("one", skill=0.35)
        assert only(root).sections[0].standings[0].collapsed == 0

    def test_a_board_that_its_evidence_contradicts_is_not_printed(self, enter, root):
        entry = enter("one")
        record = json.loads(entry.path.read_text(encoding="utf-8"))
        record["metrics"]["clean"] |= {"value": 0.9, "ci95": [0.8, 1.0]}
        record["clean_acc"] = "90.00"
        entry.path.write_text(json.dumps(record), "utf-8")
        with pytest.raises(UserError, match=r"clean is 90.00 %, the evidence says"):
            boards(root)

    def test_a_task_files_name_stands_for_all_of_its_boards(self, enter, root):
        enter("one", skill=0.6)
        enter("five", skill=0.7, shots=5)
        assert [board.task for board in boards(root, "small")] == [
            "small-5w1s",
            "small-5w5s",
        ]
        assert [board.task for board in boards(root, "small-5w5s")] == ["small-5w5s"]

    def test_a_board_without_entries_is_known(self, enter, root):
        enter("one")
        (board,) = boards(root, "mini-imagenet-5w5s")
        assert (board.task, board.sections, board.fewshot) == ("mini-imagenet-5w5s", [], True)
        with pytest.raises(UserError, match="unknown task 'small-1w1s'"):
            boards(root, "small-1w1s")


class TestShown:
    @pytest.fixture
    def shown(self, enter, root) -> list[Board]:
        enter("good", skill=0.6, method="ier")
        enter("weak", skill=0.5, method="protonet", protocol="robust-episodes")
        return boards(root)

    def test_the_terminal_has_robust_columns_where_they_were_measured(self, shown):
        page = StringIO()
        for part in terminal.table(shown[0], 200):
            Console(width=200, file=page).print(part)
        text = page.getvalue()
        assert "40 5-way 1-shot episodes of 75 queries, ranked by clean accuracy" in text
        good, weak = (
            next(line.split() for line in text.splitlines() if f" {name} " in line)
            for name in ("ier", "protonet")
        )
        metrics = shown[0].sections[0].standings[1].first.metrics
        robust = [cells.percent(measure.value) for measure in (metrics.autoattack, metrics.robust)]
        assert [share for share in weak if share in robust] == robust
        assert good.count("-") == weak.count("-") + 2

    def test_without_any_the_columns_are_left_out(self, enter, root):
        enter("good")
        page = StringIO()
        for part in terminal.table(only(root), 200):
            Console(width=200, file=page).print(part)
        assert "AutoAttack" not in page.getvalue()

    def test_the_rules_say_by_what_is_ranked(self, shown):
        text = markdown(shown)
        assert "- Few-shot boards are ranked by clean accuracy, as the papers' tables are" in text
        assert "Ranked by AutoAttack" not in text
        assert "| clean, % | 95 % interval | AutoAttack, % | all attacks, % |" in text

    def test_beside_boards_of_images_both_rules_stand(self, shown, make_entry, boards_root):
        make_entry("a")
        both = [*boards(boards_root), *shown]
        assert cells.rules(both) == (*cells.RULES, *cells.FEWSHOT_RULES)
        assert cells.rules(both[:1]) == cells.RULES

    def test_json_has_episodes_intervals_and_spreads(self, shown):
        (board,) = json.loads(json.dumps(board_tree(shown, reported=True)))["boards"]
        (section,) = board["sections"]
        assert (section["examples"], section["episodes"]["shots"]) == (40, 1)
        good, weak = (standing["rows"][0] for standing in section["standings"])
        assert (good["robust"], good["autoattack"], good["score"]) == (
            None,
            None,
            good["clean"]["value"],
        )
        assert weak["episodes"]["sd"].keys() >= {"clean", "robust", "autoattack", "pgd-20"}
        claimed = {claim["method"]: claim["values"] for claim in board["reported"]}
        assert claimed["IER"] == {"clean": 0.6682}

    def test_pages_say_the_same(self, shown, tmp_path):
        from aal_bench.leaderboard.site.build import build

        build(shown, tmp_path / "site")
        board = (tmp_path / "site" / f"{TASK}-Linf.html").read_text()
        assert "Ranked by clean accuracy, as the papers&#39; tables are" in board or (
            "Ranked by clean accuracy, as the papers' tables are" in board
        )
        assert "40 episodes of 75 queries" in board
        assert "Clean accuracy against training time" in board
        good, weak = (
            (tmp_path / "site" / f"{TASK}-Linf" / f"{name}.html").read_text()
            for name in ("good", "weak")
        )
        assert "No attack: queries as they are." in good
        assert "under AutoAttack" not in good
        assert "under AutoAttack" in weak
        assert weak.count(">cumulative<") == 4
        assert "intervals are 95 % (Student" in weak


class TestCompare:
    def test_the_difference_is_paired_over_episodes_as_scipy_does(self, enter):
        a = enter("a", skill=0.6, protocol="robust-episodes")
        b = enter("b", skill=0.55, method="ier", protocol="robust-episodes")
        found = compare(a.path, b.path)
        for verdict, stages in {"clean": (), "robust": a.evidence().stages}.items():
            one, other = (
                table.per_episode(table.robust(stages)) for table in (a.evidence(), b.evidence())
            )
            test, line = stats.ttest_rel(one, other), found.line(verdict)
            interval = test.confidence_interval(0.95)
            assert line.pair.difference == pytest.approx((one - other).mean(), abs=1e-12)
            assert line.pair.ci95 == pytest.approx((interval.low, interval.high), abs=1e-12)
            assert line.pair.p == pytest.approx(test.pvalue, rel=1e-6)
            assert (line.a, line.b) == (
                pytest.approx(one.mean()),
                pytest.approx(other.mean()),
            )
        assert [line.verdict for line in found.lines] == [
            *("clean", "pgd-20", "apgd-ce", "apgd-t", "fab-t", "square", "autoattack", "robust")
        ]
        assert found.winner == "A"

    def test_clean_accuracy_alone_where_only_one_was_attacked(self, enter):
        a = enter("a", skill=0.6)
        b = enter("b", skill=0.5, method="ier", protocol="robust-episodes")
        found = compare(a.path, b.path)
        assert [line.verdict for line in found.lines] == ["clean"]
        told = text(found).splitlines()[-1]
        difference = 100 * found.line("clean").pair.difference
        assert told.startswith(f"A is better: {difference:+.2f} points [")
        assert "over 40 episodes, p = " in told

    def test_a_result_with_itself_is_a_tie(self, enter):
        a = enter("a")
        found = compare(a.path, a.path)
        assert found.line("clean").pair == (0.0, (0.0, 0.0), 1.0)
        assert "a tie: +0.00 points" in text(found)

    def test_json_has_every_number_and_the_number_of_episodes(self, enter):
        a, b = enter("a", skill=0.6), enter("b", skill=0.5, method="ier")
        found = json.loads(json.dumps(tree(compare(a.path, b.path))))
        assert (found["episodes"], found["queries"], found["better"]) == (40, 75, "A")
        (line,) = found["lines"]
        assert line.keys() == {"verdict", "a", "b", "difference", "ci95", "p", "better"}
        assert found["a"]["episodes"] == 40

    def test_runs_are_compared_before_they_are_submitted(self, make_episodes, tmp_path):
        for name, skill in (("a", 0.6), ("b", 0.5)):
            make_episodes("small", name=name, skill=skill, limit=20)
        found = compare(tmp_path / "a", tmp_path / "b")
        assert (found.a.evidence.episodes, found.winner) == (20, "A")

    @pytest.mark.parametrize(("field", "value"), [("shots", 5), ("count", 600)])
    def test_other_episodes_are_another_question(self, enter, field, value):
        a, b = enter("a", skill=0.6), enter("b", skill=0.5, **{field: value})
        with pytest.raises(UserError, match=f"different questions.*task.episodes.{field}"):
            compare(a.path, b.path)

    def test_fewer_episodes_of_one_list_are_refused(self, make_episodes, tmp_path):
        make_episodes("small", name="a")
        make_episodes("small", name="b", skill=0.5, limit=20)
        with pytest.raises(UserError, match=r"3000 queries.*1500: compare runs on the same"):
            compare(tmp_path / "a", tmp_path / "b")
