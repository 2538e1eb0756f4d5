"""Task files and runs: typed, strict, and hashed by what changes the question or the result."""

import hashlib
import json
import tomllib
from fractions import Fraction

import pytest

from aal_bench import registry
from aal_bench.config import (
    Choice,
    Run,
    Task,
    Train,
    differing,
    parse,
    parse_value,
    read_task,
    read_toml,
    set_path,
    shorten,
)
from aal_bench.errors import UserError

TASKS = sorted(registry.task_files())
PAPER = ["cifar10", "cifar10-1k", "cifar100", "imagenet", "imagenet100"]
FINGERPRINT = {"pixels": "a" * 64, "labels": "b" * 64, "count": "1000"}


def task_tree(**changes):
    """A small task file as a dictionary; ``train__lr=1`` changes ``train.lr``."""
    tree = {
        "name": "toy",
        "title": "a toy",
        "data": {"name": "digits", "classes": 10, "size": 16},
        "threat": {"norm": "Linf", "eps": "8/255"},
        "attack": {"step": "2/255", "steps": 10},
        "train": {"epochs": 2, "lr": 0.1},
        "model": "cnn4",
    }
    for key, value in changes.items():
        set_path(tree, key.replace("__", "."), value)
    return tree


def task(**changes):
    return Task.model_validate(task_tree(**changes))


def run(**changes):
    fields = {"task": task(), "method": Choice(name="pgd"), "model": Choice(name="cnn4")}
    return Run.model_validate(fields | {"protocol": "full"} | changes)


# ---- the files of tasks/ -------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_every_task_file_parses_and_names_what_exists(name):
    found = read_task(registry.task_file(name))
    assert found.name == name
    registry.find("model", found.model)
    assert registry.protocol(found.protocol)
    assert found.threat.radius > 0


def test_the_tasks_of_the_issue_are_there():
    assert {"digits", *PAPER} <= set(TASKS)


@pytest.mark.parametrize("name", PAPER)
def test_real_sets_carry_the_papers_settings(name):
    """AAL paper, sec. 4.1: 250 epochs, SGD 0.9, 5e-4, cosine, 0.1 (ImageNet 0.2), eps 8/255."""
    found = read_task(registry.task_file(name))
    train = found.train
    assert (train.epochs, train.momentum, train.weight_decay) == (250, 0.9, 5e-4)
    assert (train.schedule, train.lr) == ("cosine", 0.2 if name.startswith("imagenet") else 0.1)
    assert (found.threat.norm, found.threat.eps) == ("Linf", Fraction(8, 255))
    assert (found.attack.step, found.attack.steps) == (Fraction(2, 255), 10)
    assert found.protocol == "full"


def test_the_thousand_images_are_a_task_of_their_own():
    whole, part = (read_task(registry.task_file(name)) for name in ("cifar10", "cifar10-1k"))
    assert part.data.subset is not None
    assert part.data.subset.count == 1000
    assert whole.data.subset is None
    assert part.train == whole.train
    assert part.hash(FINGERPRINT) != whole.hash(FINGERPRINT)


# ---- hashes --------------------------------------------------------------------------------------


def test_the_task_hash_is_the_sha256_of_the_question():
    """A value computed here from text written by hand: the hash may not drift between versions."""
    by_hand = (
        '{"data":{"classes":10,"name":"digits","resize":null,"size":16,"subset":null},'
        '"evaluation":{"batch_size":512,"seed":0},"family":"classification",'
        '"fingerprint":{"count":"1000","labels":"' + "b" * 64 + '","pixels":"' + "a" * 64 + '"},'
        '"name":"toy","step":"2/255","threat":{"eps":"8/255","norm":"Linf"},"version":"1.0"}'
    )
    assert task().hash(FINGERPRINT) == hashlib.sha256(by_hand.encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"threat__eps": "4/255"},
        {"threat__norm": "L2"},
        {"attack__step": "1/255"},
        {"data__subset": {"count": 100}},
        {"data__subset": {"count": 100, "seed": 1}},
        {"data__size": 32},
        {"evaluation__batch_size": 256},
        {"evaluation__seed": 1},
        {"version": "1.1"},
        {"name": "toy2"},
    ],
)
def test_another_question_has_another_task_hash(changes):
    assert task(**changes).hash(FINGERPRINT) != task().hash(FINGERPRINT)


@pytest.mark.parametrize("part", ["pixels", "labels"])
def test_other_bytes_are_another_question(part):
    assert task().hash(FINGERPRINT | {part: "c" * 64}) != task().hash(FINGERPRINT)


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "another title"},
        {"train__epochs": 250, "train__lr": 0.2, "train__schedule": "step"},
        {"attack__steps": 20},
        {"data__fingerprints": {"d" * 64: "somewhere"}},
        {"paper__robustbench": "cifar10"},
        {"model": "resnet18", "protocol": "fast"},
        {"normalisation__std": [0.5, 0.5, 0.5]},
    ],
)
def test_the_same_question_keeps_its_task_hash(changes):
    assert task(**changes).hash(FINGERPRINT) == task().hash(FINGERPRINT)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"device": "cuda:1"},
        {"task": task(title="another")},
        {"task": task(data__fingerprints={"d" * 64: "somewhere"})},
        {"method": Choice(name="../methods/pgd")},
        {"recipe": "official"},  # what it came to is in the other fields
    ],
)
def test_the_config_hash_leaves_out_seed_device_paths_and_wording(changes):
    assert run(**changes).hash() == run().hash()


@pytest.mark.parametrize(
    "changes",
    [
        {"task": task(train__lr=0.2)},
        {"task": task(threat__eps="4/255")},
        {"method": Choice(name="trades")},
        {"method": Choice(name="pgd", options={"craft_bn": "train"})},
        {"method": Choice(name="pgd", source="e" * 64)},
        {"update": Choice(name="awp")},
        {"model": Choice(name="resnet18")},
        {"protocol": "fast"},
        {"limits": {"train": 100}},
        {"precision": "bf16"},
        {"compile": True},
        {"ema": 0.999},
        {"smoke": True},
        {"crafting": {"steps": 7}},
        {"crafting": {"eps": "16/255"}},
    ],
)
def test_whatever_changes_a_number_changes_the_config_hash(changes):
    assert run(**changes).hash() != run().hash()


def test_the_config_hash_is_that_of_the_recorded_identity():
    """Anybody can recompute it from ``run.json``: floats as text, sorted, no spaces."""
    recorded = json.loads(json.dumps(run().identity()), parse_float=str)
    text = json.dumps(recorded, sort_keys=True, separators=(",", ":"))
    assert run().hash() == hashlib.sha256(text.encode()).hexdigest()


def test_the_training_attack_is_the_tasks_unless_crafting_says_otherwise():
    plain = run()
    assert plain.training_attack == (
        plain.task.threat.eps,
        plain.task.attack.step,
        plain.task.attack.steps,
    )
    other = run(crafting={"eps": "16/255", "steps": 7})
    assert other.training_attack == (Fraction(16, 255), plain.task.attack.step, 7)
    assert other.task.threat.eps == plain.task.threat.eps  # the question stays


def test_a_step_schedule_has_one_factor_for_all_milestones_or_one_for_each():
    halves = task(train__milestones=[0.2, 0.4], train__decay=0.5).train
    assert halves.factors == (0.5, 0.5)
    warm = task(train__milestones=[0.01, 0.75, 0.9], train__decay=[5, 0.1, 0.1]).train
    assert warm.factors == (5, 0.1, 0.1)


# ---- bad values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__decay": [0.1]}, "toy: train: decay has 1 factors for 2 milestones"),
        ({"train__epochz": 3}, "toy: unknown key 'train.epochz'. Did you mean epochs"),
        ({"datta": {}}, "toy: unknown key 'datta'. Did you mean data"),
        ({"data__subset": {"cuont": 3}}, "unknown key 'data.subset.cuont'. Did you mean count"),
        ({"evaluation__xyzzy": 3}, "unknown key 'evaluation.xyzzy'. Known: batch_size, seed."),
        ({"train__epochs": "ten"}, "toy: train.epochs: must be a number, got 'ten'"),
        ({"train__epochs": "10"}, "train.epochs: must be a number, got '10'"),
        ({"train__epochs": True}, "train.epochs: must be a number, got True"),
        ({"train__epochs": 1.5}, "train.epochs: Input should be a valid integer"),
        ({"train__epochs": 0}, "train.epochs: Input should be greater than or equal to 1 (got 0)"),
        ({"train__lr": float("nan")}, "train.lr: Input should be a finite number"),
        ({"train__lr": float("inf")}, "train.lr: Input should be a finite number"),
        ({"train__schedule": "cosin"}, "train.schedule: Input should be 'cosine', 'onecycle'"),
        ({"train__select": "best"}, 'train: select = "best" needs held-out images'),
        ({"threat__eps": "eight"}, "threat.eps: 'eight' is not a fraction like 8/255 or a number"),
        ({"threat__eps": 8}, "write 8/255 for 8 grey levels"),
        ({"attack__step": 0}, "attack.step: Input should be greater than 0"),
        ({"normalisation__std": [1, 1, 0]}, "normalisation: std must be positive"),
        ({"normalisation__std": [1, 1]}, "normalisation.std.2: Field required"),
        ({"data": {"name": "digits"}}, "data.classes: Field required"),
        ({"data": [1, 2]}, "toy: data: Input should be"),
        ({"threat__eps": {"a": "b" * 200}}, "..."),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(changes, message):
    with pytest.raises(UserError) as caught:
        parse(Task, task_tree(**changes), "toy")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_task_file_is_named_as_its_task(tmp_path):
    path = tmp_path / "other.toml"
    path.write_text(registry.task_file("digits").read_text())
    with pytest.raises(UserError, match=r"name = 'digits', but the file is named 'other'"):
        read_task(path)


def test_a_file_that_is_no_toml_is_named_with_the_position(tmp_path):
    (tmp_path / "a.toml").write_text("name = \n")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"a\.toml: not valid TOML: .*line 1"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(UserError, match=r"b\.toml: not valid TOML"):
        read_toml(tmp_path / "b.toml")
    with pytest.raises(UserError, match=r"c\.toml: No such file"):
        read_toml(tmp_path / "c.toml")


def test_configurations_cannot_be_changed_behind_their_hash():
    with pytest.raises(ValueError, match="frozen"):
        task().train.epochs = 3


# ---- small tools ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["3", "0.05", "true", '"a b"', "[0.1, 0.2]", "'x'", "{a = 1}", "1e-3"]
)
def test_set_values_are_toml_where_they_are_toml(text):
    assert parse_value(text) == tomllib.loads(f"v = {text}")["v"]


@pytest.mark.parametrize("text", ["8/255", "cosine", "post_conv1", ""])
def test_other_set_values_are_text(text):
    assert parse_value(text) == text


def test_set_path_makes_tables_and_refuses_to_replace_a_value_by_one():
    tree = {"a": {"b": 1}, "optional": None}
    set_path(tree, "a.c.d", 2)
    set_path(tree, "optional.x", 3)
    assert tree == {"a": {"b": 1, "c": {"d": 2}}, "optional": {"x": 3}}
    with pytest.raises(UserError, match=r"--set a\.b\.z: 'b' is a value"):
        set_path(tree, "a.b.z", 1)


def test_differing_fields_have_dotted_names():
    one = {"train": {"lr": 0.1, "epochs": 3}, "seed": 0, "only": 1}
    two = {"train": {"lr": 0.2, "epochs": 3}, "seed": 0, "new": None}
    assert differing(one, two) == ["only", "train.lr"]
    assert differing(one, one) == []


def test_shorten_keeps_one_line():
    assert shorten("a\n  b") == "a b"
    assert len(shorten("x" * 500)) == 60


def test_defaults_are_validated_like_given_values():
    assert Train(epochs=1, lr=1).lr == 1.0
    assert isinstance(Train(epochs=1, lr=1).lr, float)
