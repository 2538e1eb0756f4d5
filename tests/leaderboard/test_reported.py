"""The papers' printed numbers, and which of them may stand beside a measurement."""

import itertools
import json
import re
from decimal import Decimal

import pytest

from aal_bench import registry
from aal_bench.config import Task, read_task
from aal_bench.leaderboard import reported
from aal_bench.leaderboard.question import known_task
from aal_bench.paths import data_folder
from aal_bench.threat import Threat


def task(name: str, **changes: object) -> Task:
    return read_task(registry.task_file(name)).model_copy(update=changes)


def test_the_main_claim_is_the_one_printed_in_table_2():
    (claim,) = reported.claims(task("cifar10"), "aal-pgd", "wrn-34-10")
    assert (claim.paper, claim.table, claim.method) == ("AAL", "Table 2", "AAL+PGD")
    assert claim.backbone == "WRN-34-10"
    assert claim.same_backbone
    assert claim.values == {"clean": 0.8970, "fgsm": 0.6878, "pgd-10": 0.6088}


def test_a_claim_for_another_network_is_given_and_says_so():
    (claim,) = reported.claims(task("cifar10"), "aal-pgd", "resnet18")
    assert not claim.same_backbone
    assert str(claim) == "AAL, Table 2: AAL+PGD on WRN-34-10"


def test_claims_for_the_same_network_come_first():
    first, second = reported.claims(task("cifar10"), "pgd", "resnet18")
    assert (first.paper, first.method, first.same_backbone) == ("AGAIN", "PGD-AT", True)
    assert (second.paper, second.method, second.same_backbone) == ("AAL", "PGD", False)
    assert first.values["autoattack"] == 0.4169
    assert first.values["cw-inf-30"] == 0.4575


@pytest.mark.parametrize(
    ("name", "method", "model", "expected"),
    [
        ("cifar10", "standard", "resnet18", {"clean": 0.9546, "fgsm": 0.2018}),
        ("cifar10", "fgsm", "resnet18", {"clean": 0.9255, "fgsm": 0.8240, "pgd-10": 0.4164}),
        ("cifar10", "aal-fgsm", "resnet18", {"clean": 0.9540, "fgsm": 0.8385, "pgd-10": 0.4289}),
        ("imagenet", "aal-fgsm", "resnet50", {"clean": 0.7273, "fgsm": 0.6096}),
        ("imagenet", "standard", "resnet50", {"clean": 0.7380, "fgsm": 0.0756}),
        ("imagenet100", "aal-fgsm", "resnet50", {"clean": 0.8990, "fgsm": 0.8919}),
        (
            "cifar10-1k",
            "mart",
            "resnet18",
            {"clean": 0.8161, "pgd-10": 0.5238, "autoattack": 0.4609},
        ),
    ],
)
def test_first_claims(name, method, model, expected):
    first = reported.claims(task(name), method, model)[0]
    assert {stage: first.values.get(stage) for stage in expected} == expected


def test_what_was_not_printed_is_absent():
    assert "pgd-10" not in reported.claims(task("cifar10"), "standard", "resnet18")[0].values


def test_kernels_of_the_ablation_are_told_apart():
    claims = reported.claims(task("imagenet100"), "aal-fgsm", "resnet50")
    kernels = {claim.notes[0]: claim.values["fgsm"] for claim in claims if claim.table == "Table 8"}
    assert kernels == {
        "kernel M^a": 0.8728,
        "kernel 1 - M^a o M^a": 0.5112,
        "kernel M^a o M^a": 0.8919,
    }


@pytest.mark.parametrize("method", ["rs-fgsm", "nobody-knows", "pkg.mod:Class"])
def test_methods_without_a_claim(method):
    assert reported.claims(task("cifar10"), method, "resnet18") == []


@pytest.mark.parametrize("name", ["digits", "cifar100"])
def test_tasks_without_a_claim(name):
    assert reported.claims(task(name), "aal-pgd", "resnet18") == []


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "4/255"), ("Linf", "0.031"), ("L2", "8/255")])
def test_no_claim_under_another_threat(norm, eps):
    other = task("cifar10", threat=Threat.model_validate({"norm": norm, "eps": eps}))
    assert reported.claims(other, "aal-pgd", "wrn-34-10") == []


@pytest.mark.parametrize(
    ("method", "model", "one", "five"),
    [
        ("maml", "cnn4-32", 0.4870, 0.6311),
        ("protonet", "cnn4", 0.4942, 0.6820),
        ("protonet", "cnn4-64", 0.4942, 0.6820),
        ("metaoptnet", "resnet12", 0.6264, 0.7863),
        ("baseline-finetune", "wrn28", 0.5773, 0.7817),
        ("rfs", "resnet12", 0.6202, 0.7964),
        ("ier", "resnet12", 0.6682, 0.8435),
        ("aal", "resnet12", 0.6845, 0.8502),
        ("aal-ier", "resnet12", 0.6845, 0.8502),
    ],
)
def test_few_shot_claims_are_those_of_the_shots_and_of_clean_queries(method, model, one, five):
    for shots, value in ((1, one), (5, five)):
        asked = known_task(f"mini-imagenet-5w{shots}s")
        assert asked is not None
        (claim,) = reported.claims(asked, method, model)
        assert claim.table == "Table 5"
        assert claim.same_backbone
        assert claim.values == {"clean": value}


@pytest.mark.parametrize("name", ["mini-imagenet-5w3s", "mini-imagenet-20w1s", "cifar-fs-5w1s"])
def test_few_shot_tasks_without_a_claim(name):
    asked = known_task(name)
    assert asked is not None
    assert reported.claims(asked, "ier", "resnet12") == []


def test_a_few_shot_claim_for_another_network_says_so():
    asked = known_task("mini-imagenet-5w1s")
    assert asked is not None
    (claim,) = reported.claims(asked, "ier", "cnn4")
    assert not claim.same_backbone


def test_every_name_of_the_map_is_printed_somewhere():
    printed = {row.get("method") for _, table in reported._tables() for row in table["rows"]}
    assert {name for names in reported.PRINTED.values() for name in names} <= printed


def test_every_printed_accuracy_is_a_percentage_with_two_decimals():
    for _, table in reported._tables():
        for row in table["rows"]:
            for column in table["columns"]:
                assert row[column] is None or re.fullmatch(r"\d{1,2}\.\d\d", row[column])


def test_counts_of_tables_and_rows():
    counts = {
        paper: {table["id"]: len(table["rows"]) for table in reported.read(paper)["tables"]}
        for paper in reported.PAPERS
    }
    aal = {"tab1": 3, "tab2": 8, "tab3": 4, "tab4": 4, "tab5": 14, "tab6": 13, "tab7": 3, "tab8": 3}
    assert aal.items() <= counts["aal"].items()
    assert counts["aal"]["text_claims"] == 14
    again = {"white_box_resnet18": 11, "white_box_wrn34_10": 6}
    assert again.items() <= counts["again"].items()


def test_the_gains_that_the_text_claims_are_differences_of_the_tables():
    """The papers' own arithmetic, redone: a wrong digit in a table would show here."""
    tables = {table["id"]: table["rows"] for table in reported.read("aal")["tables"]}
    printed = {
        value
        for rows in (tables[f"tab{number}"] for number in range(2, 9))
        for row in rows
        for value in row.values()
    }
    for claim in tables["text_claims"]:
        left, right = claim["check"].split("-")
        assert {left, right} <= printed
        assert Decimal(left) - Decimal(right) == Decimal(claim["value"])


def test_more_attack_steps_never_help_except_where_the_poster_prints_so():
    """PGD-10 >= PGD-20 >= ... holds in the poster but for rows known to break it (CAS, LAS-AT)."""
    (table, *_) = reported.read("again")["tables"]
    steps = ("pgd10", "pgd20", "pgd50", "pgd100", "aa")
    broken = {
        row["method"]
        for row in table["rows"]
        if any(Decimal(row[a]) < Decimal(row[b]) for a, b in itertools.pairwise(steps))
    }
    assert broken == {"CAS", "LAS-AT"}


def test_the_files_hold_one_row_per_line_and_no_other_json_lies_there():
    folder = data_folder("leaderboards") / "reported"
    names = {path.stem for path in folder.iterdir()}
    assert {name for name in names if not name.startswith("robustbench-")} == set(reported.PAPERS)
    for paper in reported.PAPERS:
        text = (folder / f"{paper}.json").read_text(encoding="utf-8")
        rows = [row for table in json.loads(text)["tables"] for row in table["rows"]]
        lines = {line.strip().rstrip(",") for line in text.splitlines()}
        assert all(json.dumps(row, ensure_ascii=False) in lines for row in rows)
