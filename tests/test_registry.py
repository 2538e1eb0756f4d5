"""Names on the command line: every row leads somewhere, a wrong one is answered with near ones."""

import pytest

from aal_bench import registry
from aal_bench.errors import UserError
from aal_bench.paths import data_folder

METHODS = ["standard", "fgsm", "rs-fgsm", "pgd", "trades", "aal-fgsm", "aal-pgd"]
MODELS = ["resnet18", "preactresnet18", "wrn-D-W", "resnet50", "cnn4"]
ROWS = [
    pytest.param(row.target, id=f"{kind}-{name}")
    for kind, table in registry.TABLES.items()
    for name, row in table.items()
]


def test_the_names_of_the_issue_are_there():
    assert set(METHODS) <= set(registry.METHODS)
    assert set(MODELS) <= set(registry.MODELS)
    assert {"plain", "awp"} <= set(registry.UPDATES)
    of_images = {"full", "paper", "again", "standard", "fast", "searched", "smoke"}
    detecting = {"detection", "detection-fast", "detection-clean"}
    assert of_images | {"episodes", "robust-episodes"} | detecting == set(registry.PROTOCOLS)


@pytest.mark.parametrize("target", ROWS)
def test_every_row_leads_to_something_callable(target):
    assert callable(registry.load(target))


@pytest.mark.parametrize("name", registry.PROTOCOLS)
def test_every_protocol_begins_clean_and_names_attacks_that_exist(name):
    stages = registry.protocol(name)
    assert stages[0] == "clean"
    without_attack = {"episodes", "detection-clean"}
    assert len(set(stages)) == len(stages) > (0 if name in without_attack else 1)
    for stage in stages:
        registry.find("attack", stage)


def test_protocols_are_those_of_the_design():
    autoattack = ("apgd-ce", "apgd-t", "fab-t", "square")
    assert registry.protocol("full") == ("clean", "fgsm", "pgd-10", *autoattack)
    assert registry.protocol("paper") == ("clean", "fgsm", "pgd-10")
    pgd = ("pgd-10", "pgd-20", "pgd-50", "pgd-100")
    assert registry.protocol("again") == ("clean", *pgd, "cw-inf-30", *autoattack)
    assert registry.protocol("standard") == ("clean", *autoattack)
    assert registry.protocol("fast") == ("clean", "pgd-20", "apgd-ce", "apgd-t")


def test_a_protocol_may_be_a_list_of_attacks():
    assert registry.protocol("clean,pgd-7,cw-inf-30") == ("clean", "pgd-7", "cw-inf-30")


@pytest.mark.parametrize("text", ["pgd-7,clean", "clean,pgd-7,pgd-7", "clean,clean"])
def test_a_list_begins_clean_and_repeats_nothing(text):
    with pytest.raises(UserError, match="begins with clean"):
        registry.protocol(text)


@pytest.mark.parametrize(
    ("kind", "name", "numbers"),
    [
        ("attack", "pgd-10", (10,)),
        ("attack", "cw-inf-30", (30,)),
        ("model", "wrn-34-10", (34, 10)),
        ("model", "cnn4", ()),
    ],
)
def test_numbers_in_a_name_are_read(kind, name, numbers):
    assert registry.find(kind, name).numbers == numbers


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("attack", "pgd-N"),
        ("attack", "pgd-0"),
        ("attack", "pgd-"),
        ("attack", "pgd-1.5"),
        ("attack", "pgd-999999"),
        ("model", "wrn-D-W"),
        ("model", "wrn-34"),
        ("model", "wrn-34-10-2"),
        ("model", "resnet18-3"),
    ],
)
def test_numbers_that_are_none_are_no_name(kind, name):
    with pytest.raises(UserError, match=f"unknown {kind} '{name}'"):
        registry.find(kind, name)


@pytest.mark.parametrize(
    ("kind", "name", "near", "where"),
    [
        ("method", "aal-pdg", "aal-pgd", "list methods"),
        ("update", "apw", "awp", "list methods"),
        ("attack", "apdg-ce", "apgd-ce", "list attacks"),
        ("attack", "pdg-10", "pgd-N", "list attacks"),
        ("model", "resnt18", "resnet18", "list models"),
    ],
)
def test_an_unknown_name_is_answered_with_the_near_ones(kind, name, near, where):
    with pytest.raises(UserError) as caught:
        registry.find(kind, name)
    assert f"unknown {kind} '{name}'. Did you mean " in str(caught.value)
    assert near in str(caught.value)
    assert where in str(caught.value)


def test_an_unknown_protocol_or_task_is_answered_likewise():
    with pytest.raises(UserError, match=r"unknown protocol 'ful'. Did you mean full"):
        registry.protocol("ful")
    with pytest.raises(UserError, match=r"unknown task 'cifar-10'. Did you mean cifar10"):
        registry.task_file("cifar-10")
    with pytest.raises(UserError, match=r"mine\.toml: no such task file"):
        registry.task_file("mine.toml")


def test_a_name_like_nothing_is_not_answered_with_a_guess():
    with pytest.raises(UserError) as caught:
        registry.find("method", "zzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_a_method_on_another_family_names_those_that_fit():
    trades = registry.METHODS["trades"]
    registry.serves(trades, "trades", "classification")
    with pytest.raises(UserError) as caught:
        registry.serves(trades, "trades", "detection")
    message = str(caught.value)
    assert "method 'trades' serves classification, not detection" in message
    assert "aal-pgd" in message
    assert "trades" not in message.partition("These can:")[2]


def test_tasks_are_the_files_of_the_data_folder():
    folder = data_folder("tasks")
    ours = {name: path for name, path in registry.task_files().items() if path.parent == folder}
    assert set(ours) == {path.stem for path in folder.glob("*.toml")}
    assert registry.task_file("digits") == folder / "digits.toml"
    assert registry.task_file(str(folder / "digits.toml")) == folder / "digits.toml"
