"""Level 1: each rule about the table is broken by a sealed and hashed table that contradicts it."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aal_bench import registry
from aal_bench.config import Choice, Run, read_task
from aal_bench.leaderboard.rows import labels_sha256
from aal_bench.leaderboard.stated import budget_of
from aal_bench.results import percent


def stands(arrays: dict[str, np.ndarray], row: int) -> bool:
    """Whether a row is correct without attack and in every stage: counted here by hand."""
    return arrays["clean_pred"][row] == arrays["label"][row] and all(
        bool(block["ok"][row]) for name, block in arrays.items() if name.startswith("stage/")
    )


def fell(arrays: dict[str, np.ndarray], stage: str) -> int:
    """The first row that a stage attacked and felled."""
    block = arrays[f"stage/{stage}"]
    return int(np.flatnonzero(block["attacked"] & ~block["ok"])[0])


def standing(arrays: dict[str, np.ndarray]) -> int:
    """The first row that stands everywhere."""
    return next(row for row in range(len(arrays["label"])) if stands(arrays, row))


def test_the_real_table_holds_and_every_rule_says_so(copied):
    findings = [found for found in copied.findings() if found.level == 1]
    assert all(found.ok for found in findings)
    assert len({found.rule for found in findings}) == len(findings) >= 12


def test_the_numbers_that_hold_are_those_counted_row_by_row(copied):
    arrays, tree = copied.arrays(), copied.tree()
    n = len(arrays["label"])
    attacks = [name for name in arrays if name.startswith("stage/")]
    robust = autoattack = 0
    for row in range(n):
        verdicts = {name: bool(arrays[name]["ok"][row]) for name in attacks}
        clean = arrays["clean_pred"][row] == arrays["label"][row]
        robust += bool(clean and all(verdicts.values()))
        autoattack += bool(clean and all(verdicts[f"stage/{a}"] for a in registry.AUTOATTACK))
    assert tree["metrics"]["robust"]["value"] == robust / n
    assert tree["autoattack_acc"] == percent(autoattack / n) == f"{100 * autoattack / n:.2f}"


def test_a_changed_table_is_not_the_file_that_the_record_names(copied):
    content = bytearray(copied.table_path.read_bytes())
    content[len(content) // 2] ^= 1
    copied.table_path.write_bytes(content)
    assert copied.broken() == {"1 evidence"}
    assert "sha256" in copied.said("evidence")


def test_an_entry_without_its_table_is_well_formed_and_no_more(copied):
    copied.table_path.unlink()
    assert copied.broken(0) == set()
    assert copied.broken() == {"1 evidence"}
    assert "no such file" in copied.said("evidence")


def test_the_same_table_packed_anew_still_holds(copied):
    copied.forge(copied.arrays())
    assert copied.broken() == set()


Edit = Callable[[dict[str, np.ndarray]], Any]


def at(name: str, row: Callable[[dict[str, np.ndarray]], int], **values: Any) -> Edit:
    """Set columns of one row of a stage."""

    def edit(arrays):
        chosen = row(arrays)
        for column, value in values.items():
            arrays[f"stage/{name}"][column][chosen] = value

    return edit


def top(name: str, row: Callable[[dict[str, np.ndarray]], int], value: int | str) -> Edit:
    """Set a value of a whole row, or take it from another column."""

    def edit(arrays):
        chosen = row(arrays)
        arrays[name][chosen] = arrays[value][chosen] if isinstance(value, str) else value

    return edit


def erred(arrays):
    return int(np.flatnonzero(arrays["clean_pred"] != arrays["label"])[0])


def fell_to_ce(arrays):
    return fell(arrays, "apgd-ce")


def fell_to_t(arrays):
    return fell(arrays, "apgd-t")


@pytest.mark.parametrize(
    ("rule", "edit"),
    [
        ("rows", top("index", lambda _: -1, 4000)),
        ("evidence", top("index", lambda _: -1, 0)),
        ("evidence", top("index", lambda _: 0, -1)),
        ("rows", lambda arrays: arrays.update(clean_pred=np.full(360, -1, np.int16))),
        ("rows", at("fgsm", erred, recorded=False)),
        ("rows", lambda arrays: arrays.pop("stage/square")),
        ("rows", lambda arrays: arrays.update({"stage/more": arrays["stage/fgsm"]})),
        ("rows", lambda arrays: [arrays.update({k: v[:-1]}) for k, v in arrays.items() if v.ndim]),
        ("evidence", lambda arrays: arrays.update(format=np.array("another"))),
        ("evidence", lambda arrays: arrays.update(label=arrays["label"].astype(np.int64))),
        ("evidence", lambda arrays: arrays.update(label=np.array([{}] * 360, dtype=object))),
        ("labels", lambda arrays: arrays["label"].__setitem__(erred(arrays), 0)),
        ("classes", top("clean_pred", erred, 10)),
        ("classes", at("apgd-ce", fell_to_ce, pred=10)),
        ("evidence", at("fgsm", erred, pred=3)),
        ("attacked", top("clean_pred", erred, "label")),
        ("attacked", top("clean_pred", standing, 9)),
        ("evidence", at("square", fell_to_ce, attacked=True)),
        ("verdicts", at("apgd-ce", standing, ok=False)),
        ("evidence", at("apgd-ce", fell_to_ce, ok=True)),
        ("norms", at("apgd-ce", fell_to_ce, norm=24.1 / 255)),
        ("norms", at("apgd-ce", fell_to_ce, norm=24 / 255 + 1.5e-6)),
        ("norms", at("apgd-ce", fell_to_ce, norm=24 / 255 + 6e-7)),
        ("evidence", at("apgd-ce", fell_to_ce, norm=np.nan)),
        ("evidence", at("fgsm", erred, norm=0.01)),
        ("passes", at("square", standing, forwards=5003)),
        ("passes", at("square", standing, forwards=5005)),
        ("passes", at("pgd-10", standing, backwards=9)),
        ("passes", at("apgd-t", fell_to_t, forwards=921)),
        ("passes", at("apgd-t", fell_to_t, forwards=0)),
        ("evidence", at("fgsm", erred, forwards=2)),
        ("stages", at("apgd-t", fell_to_t, forwards=105)),
        ("stages", at("apgd-t", fell_to_t, backwards=102)),
    ],
)  # fmt: skip
def test_a_table_that_contradicts_itself_or_the_task(copied, rule, edit):
    arrays = copied.arrays()
    edit(arrays)
    copied.forge(arrays)
    assert f"1 {rule}" in copied.broken()


def test_a_table_that_robs_an_image_of_its_fall_breaks_every_number_of_it(copied):
    """One verdict turned to "still correct", consistently in the table, not in the record."""
    arrays = copied.arrays()
    rescue(arrays, fell_to_t(arrays))
    copied.forge(arrays)
    assert {"1 stages", "1 metrics", "1 adversarials"} <= copied.broken()
    assert "the evidence says" in copied.said("metrics")


def rescue(arrays: dict[str, np.ndarray], row: int) -> None:
    """Make a row that fell to APGD-T stand there and under what follows, as a survivor would."""
    task = read_task(registry.task_file("digits"))
    for stage in ("apgd-t", "fab-t", "square"):
        budget = budget_of(stage, task)
        assert budget is not None
        block = arrays[f"stage/{stage}"]
        block[row] = (True, True, arrays["label"][row], True, 0.0, *budget)


def test_a_lie_told_everywhere_is_what_level_1_cannot_see(copied):
    """Table, record, hashes and seal forged as one: only an attack could tell (level 3)."""
    arrays = copied.arrays()
    rescue(arrays, fell_to_t(arrays))
    copied.forge(arrays, copied.recount)
    assert copied.broken() == set()


def test_labels_are_hashed_as_the_data_is(copied):
    arrays, tree = copied.arrays(), copied.tree()
    line = f"int64 {len(arrays['label'])}\n".encode()
    expected = hashlib.sha256(
        line + b"".join(int(k).to_bytes(8, "little") for k in arrays["label"])
    )
    assert labels_sha256(arrays["label"]) == expected.hexdigest()
    assert tree["evidence"]["dataset_fingerprint"]["labels"] == expected.hexdigest()


@pytest.mark.parametrize("name", sorted(registry.task_files()))
def test_known_pixels_have_the_labels_that_the_task_file_states(name):
    data = read_task(registry.task_file(name)).data
    assert data.labels.keys() == data.fingerprints.keys()


def test_what_is_known_of_labels_changes_neither_the_question_nor_the_configuration():
    task = read_task(registry.task_file("digits"))
    bare = task.model_copy(update={"data": task.data.model_copy(update={"labels": {}})})
    assert task.data.labels
    assert bare.hash({"pixels": "0"}) == task.hash({"pixels": "0"})
    runs = [
        Run(task=one, method=Choice(name="pgd"), model=Choice(name="cnn4"), protocol="full")
        for one in (task, bare)
    ]
    assert runs[0].hash() == runs[1].hash()


def test_pixels_of_the_task_with_other_labels_are_refused(copied):
    """Two labels swapped, with a fingerprint and hashes of their own: another test set."""
    copied.rename("Own2026Labels")
    arrays = copied.arrays()
    a, b = 0, int(np.flatnonzero(arrays["label"] != arrays["label"][0])[0])
    arrays["label"][[a, b]] = arrays["label"][[b, a]]

    def edit(tree):
        digest = labels_sha256(arrays["label"])
        tree["evidence"]["dataset_fingerprint"]["labels"] = digest
        copied.rehash(tree)

    for block in (arrays[name] for name in arrays if name.startswith("stage/")):
        block[[a, b]] = np.zeros(1, block.dtype)[0]
        block["recorded"][[a, b]], block["pred"][[a, b]] = True, -1
    copied.forge(arrays, edit)
    assert "1 labels" in copied.broken()
    assert "task file" in copied.said("labels")


def test_pixels_that_the_task_file_does_not_know_are_allowed_and_said(copied):
    copied.rename("Other2026Pixels")

    def edit(tree):
        tree["evidence"]["dataset_fingerprint"]["pixels"] = "0" * 64
        copied.rehash(tree)

    copied.change(edit)
    assert copied.broken() == set()
    assert copied.said("labels") == "as stated; pixels 00000000 are unknown to the task file"


class TestTwins:
    """Identical images of one batch: the count of the one that fell may stand at the survivor."""

    def swapped(self, arrays: dict[str, np.ndarray], stage: str, count: int) -> None:
        block = arrays[f"stage/{stage}"]
        fallen = np.flatnonzero(block["attacked"] & ~block["ok"])[:count]
        survivors = np.flatnonzero(block["ok"])[:count]
        for way in ("forwards", "backwards"):
            values = block[way][fallen].copy()
            block[way][fallen] = block[way][survivors]
            block[way][survivors] = values

    def test_one_pair_is_believed(self, copied):
        arrays = copied.arrays()
        self.swapped(arrays, "apgd-t", 1)
        copied.forge(arrays)
        assert copied.broken() == set()

    def test_more_are_not(self, copied):
        arrays = copied.arrays()
        self.swapped(arrays, "apgd-t", 3)
        copied.forge(arrays)
        assert copied.broken() == {"1 passes"}

    def test_nor_where_nobody_leaves_the_batch(self, copied):
        arrays = copied.arrays()
        block = arrays["stage/apgd-ce"]
        block["forwards"][np.flatnonzero(block["ok"])[0]] -= 1
        copied.forge(arrays, copied.recount)
        assert copied.broken() == {"1 passes"}
