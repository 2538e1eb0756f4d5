"""Whose configuration a folder holds and how far it got; what is refused, and in which words."""

import json

import pytest

from aal_bench.config import Choice, Run, read_task
from aal_bench.errors import UserError
from aal_bench.registry import task_file
from aal_bench.run_folder import RunFolder, checkpoint_block


def configuration(**changes):
    task = read_task(task_file("digits"))
    train = task.train.model_copy(update={"lr": changes.pop("lr", task.train.lr)})
    fields = {
        "task": task.model_copy(update={"train": train}),
        "method": Choice(name="pgd", options={"craft_bn": "eval"}),
        "model": Choice(name="cnn4"),
        "protocol": "full",
    }
    return Run.model_validate(fields | changes)


@pytest.fixture
def begun(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(configuration(), {"checkpoint": None, "data_dir": None, "fingerprint": {"a": "1"}})
    return folder


def inspect(path, run=None, checkpoint=None, data_dir=None):
    return RunFolder(path).inspect(run or configuration(), checkpoint, data_dir)


def test_a_folder_is_new_unfinished_or_finished(tmp_path, begun):
    assert inspect(tmp_path / "none") == "new"
    (tmp_path / "empty").mkdir()
    assert inspect(tmp_path / "empty") == "new"
    assert inspect(begun.path) == "unfinished"
    for status in ("cancelled", "error"):
        begun.update(status=status)
        assert inspect(begun.path) == "unfinished"
    begun.update(status="success")
    assert inspect(begun.path) == "finished"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.5}, "task.train.lr (0.1 there, 0.5 here)"),
        ({"seed": 3}, "seed (0 there, 3 here)"),
        ({"protocol": "fast"}, "protocol (full there, fast here)"),
        ({"ema": 0.9}, "ema (none there, 0.9 here)"),
        ({"limits": {"eval": 5}}, "limits.eval (none there, 5 here)"),
        (
            {"method": Choice(name="pgd", options={"craft_bn": "train"})},
            "method.options.craft_bn (eval there, train here)",
        ),
    ],
)
def test_another_configuration_is_refused_with_the_fields_and_both_values(begun, changes, named):
    with pytest.raises(UserError) as caught:
        inspect(begun.path, configuration(**changes))
    assert f"holds another configuration: {named}. Choose another --out" in str(caught.value)


def test_another_checkpoint_or_data_folder_is_another_configuration(begun, tmp_path):
    with pytest.raises(UserError, match="checkpoint"):
        inspect(begun.path, checkpoint="f" * 64)
    with pytest.raises(UserError, match="data_dir"):
        inspect(begun.path, data_dir=tmp_path)


def test_many_differing_fields_are_counted_not_listed(begun):
    other = read_task(task_file("cifar10"))
    with pytest.raises(UserError) as caught:
        inspect(begun.path, configuration(task=other))
    assert " more." in str(caught.value)
    assert len(str(caught.value)) < 500


def test_device_and_wording_may_differ(begun):
    task = configuration().task.model_copy(update={"title": "another title"})
    assert inspect(begun.path, configuration(device="cuda", task=task)) == "unfinished"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        inspect(tmp_path / "file")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(UserError, match="not empty, and not a run"):
        inspect(tmp_path / "thesis")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "success"}', "null"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: (cannot be read|not the record of a run)"):
        inspect(tmp_path)


def test_beginning_again_keeps_what_was_measured(begun):
    begun.account("pgd-10", 1.5, {"norm": 0.0, "box": 0.0})
    begun.update(status="error", error={"stage": "pgd-10"}, training={"steps": 3})
    created = begun.record["created"]

    again = RunFolder(begun.path)
    again.inspect(configuration(), None, None)
    again.begin(configuration(), {})
    saved = json.loads((begun.path / "run.json").read_text())
    assert saved["status"] == "started"
    assert saved["error"] is None
    assert saved["created"] == created
    assert saved["training"] == {"steps": 3}
    assert saved["stages"]["pgd-10"]["seconds"] == 1.5


def test_a_stage_adds_its_seconds_and_keeps_its_worst_violation(begun):
    begun.account("fgsm", 1.0, {"norm": 3e-8, "box": 0.0})
    begun.account("fgsm", 0.5, {"norm": 1e-8, "box": 2e-8})
    saved = json.loads((begun.path / "run.json").read_text())["stages"]["fgsm"]
    assert saved == {"seconds": 1.5, "violation": {"norm": 3e-8, "box": 2e-8}}


def test_other_images_than_at_the_start_are_refused(begun):
    begun.same_data({"a": "1"})
    with pytest.raises(UserError, match="begun on other test images"):
        begun.same_data({"a": "2"})


def test_a_checkpoint_is_identified_by_its_bytes(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    # The sha256 of nothing, as every table of test vectors has it.
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert checkpoint_block(path) == {"sha256": empty, "bytes": 0, "format": "safetensors"}
    assert checkpoint_block(path.rename(tmp_path / "model.pt"))["format"] == "torch"
