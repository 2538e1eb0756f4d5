"""The result record: derived keys, agreement, hashes, atomic files; never half a record."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from aal_bench import results, schema
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.record import Record, Result
from aal_bench.schema import Failure, Flag, ModelBlock, StageRecord, ThreatBlock

MODEL_INFO = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "autoattack_acc": str,
    "unreliable": bool,
}
"""RobustBench's keys and the types that its own files have."""


def tree(result: Result) -> dict:
    return result.model_dump(mode="json")


def refused(changed: dict) -> str:
    from aal_bench.config import parse

    with pytest.raises(UserError) as caught:
        parse(Result, changed, "result.json")
    return str(caught.value)


class TestMetrics:
    def test_every_number_agrees_with_a_plain_loop_over_the_rows(self, make_result):
        made = make_result()
        stages = ("clean", "fgsm", "pgd-10", "apgd-ce", "apgd-t", "fab-t", "square")
        metrics = results.METRICS["classification"](made.evidence, stages)

        def share(names: tuple[str, ...]) -> float:
            standing = 0
            for row in range(len(made.evidence)):
                verdicts = [made.evidence.clean_pred[row] == made.evidence.label[row]]
                verdicts += [bool(made.evidence.column(name, "ok")[row]) for name in names]
                standing += all(verdicts)
            return standing / len(made.evidence)

        assert metrics["clean"]["value"] == share(())
        assert metrics["robust"]["value"] == share(stages[1:])
        assert metrics["autoattack"]["value"] == share(stages[3:])
        assert {name: m["value"] for name, m in metrics["stages"].items()} == {
            name: share((name,)) for name in stages[1:]
        }
        assert metrics["robust"]["value"] < min(m["value"] for m in metrics["stages"].values())

    def test_autoattack_is_a_number_only_where_all_four_ran(self, make_result):
        assert make_result(protocol="fast").result.metrics.autoattack is None

    def test_without_an_attack_nothing_is_robust(self, make_result):
        with pytest.raises(UserError, match="no robust accuracy"):
            results.METRICS["classification"](make_result().evidence, ["clean"])

    def test_an_unfinished_stage_is_an_error(self):
        evidence = Evidence([0, 1], [0, 0])
        evidence.record("clean", [0, 1], pred=0)
        evidence.record("fgsm", [0], pred=0)
        with pytest.raises(UserError, match="lacks 1 of 2"):
            results.METRICS["classification"](evidence, ["clean", "fgsm"])


class TestRobustBenchView:
    def test_the_keys_have_robustbenchs_types_and_come_first(self, make_result):
        record = tree(make_result().result)
        assert {key: type(record[key]) for key in MODEL_INFO} == MODEL_INFO
        assert next(iter(record)) == "link"
        assert list(record).index("unreliable") < list(record).index("schema_version")

    def test_the_values_are_those_of_the_typed_blocks(self, make_result):
        record = tree(make_result().result)
        assert record["clean_acc"] == f"{100 * record['metrics']['clean']['value']:.2f}"
        assert record["autoattack_acc"] == f"{100 * record['metrics']['autoattack']['value']:.2f}"
        assert (record["dataset"], record["eps"]) == ("digits", "24/255")
        assert record["architecture"] == record["model"]["architecture"] == "CNN-4-32"

    @pytest.mark.parametrize(
        ("model", "architecture"),
        [
            ("resnet18", "ResNet-18"),
            ("preactresnet18", "PreActResNet-18"),
            ("wrn-34-10", "WideResNet-34-10"),
            ("resnet50", "ResNet-50"),
            ("mine.py:build", "mine.py:build"),
        ],
    )
    def test_architectures_are_written_as_robustbench_writes_them(
        self, make_result, model, architecture
    ):
        assert make_result("cifar10", model=model).result.architecture == architecture

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("clean_acc", "99.99"),
            ("autoattack_acc", "99.99"),
            ("eps", "0.031"),
            ("dataset", "cifar10"),
            ("architecture", "WideResNet-28-10"),
            ("unreliable", True),
            ("additional_data", True),
            ("number_forward_passes", 2),
        ],
    )
    def test_a_record_that_disagrees_with_itself_is_refused(self, make_result, key, value):
        message = refused(tree(make_result().result) | {key: value})
        assert key in message
        assert "the typed blocks say" in message

    @pytest.mark.parametrize(
        "change",
        [{"limit": 100}, {"smoke": True}, {"protocol": "fast"}],
    )
    def test_autoattack_acc_is_absent_unless_it_is_the_whole_thing(self, make_result, change):
        record = tree(make_result(**change).result)
        assert "autoattack_acc" not in record
        assert "clean_acc" in record

    @pytest.mark.parametrize(
        ("stage", "params"),
        [
            ("apgd-ce", {"steps": 10}),
            ("apgd-t", {"targets": 8}),
            ("square", {"queries": 1000}),
            ("fab-t", {"eps": "16/255"}),
            ("apgd-ce", {"version": "rand"}),
        ],
    )
    def test_a_weaker_autoattack_is_not_called_so(self, make_result, stage, params):
        made = make_result()
        weaker = [
            record.model_copy(update={"params": record.params | params})
            if record.attack == stage
            else record
            for record in made.result.evaluation
        ]
        assert make_result(evaluation=weaker).result.autoattack_acc is None
        forged = tree(made.result)
        forged["evaluation"] = [stage.model_dump(mode="json") for stage in weaker]
        assert "autoattack_acc" in refused(forged)

    def test_torchattacks_autoattack_is_not_autoattack(self, make_result):
        made = make_result()
        other = [
            record.model_copy(
                update={
                    "implementation": record.implementation.model_copy(
                        update={"package": "torchattacks"}
                    )
                }
            )
            for record in made.result.evaluation
        ]
        assert make_result(evaluation=other).result.autoattack_acc is None

    def test_external_is_absent_when_unknown_and_null_is_refused(self, make_result):
        record = tree(make_result().result)
        assert "external" not in record
        assert "leave the key out" in refused(record | {"external": None})
        known = make_result(published={"external": "41.20"}).result
        assert tree(known)["external"] == "41.20"

    def test_a_flag_makes_the_entry_unreliable_by_its_severity_only(self, make_result):
        for severity, unreliable in (("note", False), ("warning", False), ("unreliable", True)):
            flag = Flag(code="mask", severity=severity)  # pyright: ignore[reportArgumentType]
            assert make_result(flags=[flag]).result.unreliable is unreliable

    def test_extra_or_synthetic_images_are_additional_data(self, make_result):
        made = make_result()
        for role, additional in (("train", False), ("extra", True), ("synthetic", True)):
            block = tree(made.result)["training"]
            block["data"].append({"name": "more", "role": role, "count": 10})
            again = make_result(training=schema.Training.model_validate(block)).result
            assert again.additional_data is additional


class TestStatus:
    def test_a_failed_run_has_an_error_and_no_numbers(self, make_result):
        failure = Failure(stage="train", type="RunFailed", message="loss is NaN at step 12")
        failed = make_result(
            status="error", error=failure, metrics=None, evidence=None, evaluation=[]
        ).result
        record = tree(failed)
        assert "clean_acc" not in record
        assert record["error"]["message"] == "loss is NaN at step 12"

    @pytest.mark.parametrize(
        "change",
        [
            {"status": "error"},
            {"metrics": None},
            {"evidence": None},
            {"error": Failure(stage="x", type="y", message="z")},
        ],
    )
    def test_success_is_complete_and_error_has_a_reason(self, make_result, change):
        with pytest.raises(UserError):
            make_result(**change)

    def test_a_stage_that_left_its_bounds_is_no_success(self, make_result):
        record = make_result().result.evaluation[1].model_dump(mode="json")
        record["max_violation"]["norm"] = 2e-6
        with pytest.raises(ValueError, match="left its bounds"):
            StageRecord.model_validate(record)
        record["status"] = "error"
        record["error"] = {"stage": "fgsm", "type": "RunFailed", "message": "left its bounds"}
        StageRecord.model_validate(record)

    def test_more_cannot_stand_after_an_attack_than_before(self, make_result):
        record = make_result().result.evaluation[1].model_dump(mode="json")
        with pytest.raises(ValueError, match="survive"):
            StageRecord.model_validate(record | {"n_out": record["n_in"] + 1})

    def test_a_stage_in_error_makes_no_successful_run(self, make_result):
        record = tree(make_result().result)
        record["evaluation"][1] |= {
            "status": "error",
            "error": {"stage": "fgsm", "type": "RuntimeError", "message": "out of memory"},
        }
        assert "did not succeed" in refused(record)

    def test_selection_on_the_test_split_is_refused(self, make_result):
        record = tree(make_result().result)
        record["training"]["selection"]["split"] = "test"
        assert "training.selection.split" in refused(record)


class TestRunHash:
    def hash(self, stages: list[StageRecord], **change: Any) -> str:
        task_hash, limit = change.pop("task_hash", "a" * 64), change.pop("limit", None)
        checkpoint = {"sha256": "b" * 64, "bytes": 1, "format": "safetensors"}
        plain = {"name": "m", "architecture": "M", "loader": "m:f", "checkpoint": checkpoint}
        model = ModelBlock.model_validate(plain | change)
        threat = ThreatBlock.model_validate({"norm": "Linf", "eps": "8/255"})
        return results.run_hash(task_hash, threat, model, stages, limit)

    def test_two_honest_machines_agree(self, make_result):
        stages = make_result().result.evaluation
        slower = [
            stage.model_copy(update={"wall_seconds": 99.0, "forwards": 11.0}) for stage in stages
        ]
        assert self.hash(stages) == self.hash(slower)

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"batch_size": 64},
            {"partition": "all"},
            {"dtype": "bfloat16"},
            {"tf32": True},
            {"compiled": True},
            {"memory_format": "channels_last"},
            {"params": {"steps": 9}},
            {"attack": "pgd-9"},
        ],
    )
    def test_whatever_changes_a_number_changes_the_hash(self, make_result, change):
        stages = make_result().result.evaluation
        changed = [stages[0].model_copy(update=change), *stages[1:]]
        assert self.hash(stages) != self.hash(changed)

    @pytest.mark.parametrize(
        "change",
        [
            {"task_hash": "f" * 64},
            {"loader": "m:g"},
            {"name": "n"},
            {"checkpoint": {"sha256": "f" * 64, "bytes": 1, "format": "safetensors"}},
            {"normalisation": {"mean": (0.5,) * 3, "std": (0.2,) * 3}},
            {"surgery": {"name": "aal-pgd", "options": {"gate": {"position": "post_conv1"}}}},
            {"limit": 32},
        ],
    )
    def test_question_model_weights_and_what_was_evaluated_are_in_it(self, make_result, change):
        stages = make_result().result.evaluation
        assert self.hash(stages) != self.hash(stages, **change)

    def test_the_record_carries_it_and_the_entry_is_named_by_it(self, make_result):
        result = make_result().result
        assert result.run_hash is not None
        assert result.submission_id == f"aal-pgd-cnn4-32-seed0-{result.run_hash[:8]}"


class TestFiles:
    def test_written_and_read_records_are_equal(self, make_result, tmp_path):
        result = make_result().result
        results.write(tmp_path / "result.json", result)
        assert results.read(tmp_path / "result.json") == result

    def test_the_file_is_plain_json_with_fractions_and_no_floats_for_eps(
        self, make_result, tmp_path
    ):
        results.write(tmp_path / "result.json", make_result().result)
        record = json.loads((tmp_path / "result.json").read_text())
        assert record["threat"] == {
            "norm": "Linf",
            "eps": "24/255",
            "box": [0.0, 1.0],
            "targeted": False,
        }
        assert record["schema_version"] == "1.1"
        assert record["created"] == "2026-01-02T00:00:00+00:00"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "not a JSON record"),
            ("{", "not a JSON record"),
            ("[]", "result.json"),
            ("<html></html>", "not a JSON record"),
            ('{"limit": NaN}', "NaN is no number"),
            ("{}", "result.json"),
        ],
    )
    def test_other_files_are_a_clear_error(self, tmp_path, content, message):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            results.read(tmp_path / "result.json")
        assert len(str(caught.value).splitlines()) == 1

    def test_a_missing_file_is_a_clear_error(self, tmp_path):
        with pytest.raises(UserError, match="No such file"):
            results.read(tmp_path / "result.json")

    def test_unknown_keys_are_named(self, make_result):
        assert "clean_accuracy" in refused(tree(make_result().result) | {"clean_accuracy": "1"})

    def test_a_process_killed_while_writing_leaves_the_old_record(self, make_result, tmp_path):
        path = tmp_path / "result.json"
        result = make_result().result
        results.write(path, result)
        # json.dumps is done before the file is opened; so the write itself is made to stop halfway.
        script = """
import os, sys, time
from pathlib import Path
from aal_bench import results
def stop(descriptor):
    print("written, not yet in place", flush=True)
    time.sleep(60)
result = results.read(Path(sys.argv[1]))
os.fsync = stop
results.write(Path(sys.argv[1]), result.model_copy(update={"command": ["changed"]}))
"""
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline().startswith("written")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert results.read(path) == result

    def test_the_evidence_block_describes_the_file(self, make_result, tmp_path):
        import hashlib

        evidence = make_result().evidence
        path = tmp_path / "evidence.npz"
        evidence.save(path)
        block = results.evidence_file(path, evidence, {"pixels": "d" * 64})
        assert block.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (block.path, block.rows) == ("evidence.npz", 360)
        assert "pgd-10.ok" in block.columns
        with np.load(path, allow_pickle=False) as arrays:
            assert str(arrays["format"]) == block.format


class TestSchema:
    def test_every_field_is_documented(self):
        def blocks(model: type[BaseModel]) -> list[type[BaseModel]]:
            return [model, *(deep for sub in model.__subclasses__() for deep in blocks(sub))]

        undocumented = [
            f"{block.__name__}.{name}"
            for block in blocks(schema.Block)
            for name, field in block.model_fields.items()
            if not field.description
        ]
        assert undocumented == []

    def test_the_json_schema_can_be_made(self):
        assert "external" in Result.model_json_schema(mode="validation")["properties"]

    def test_the_environment_that_the_package_describes_fits(self):
        from aal_bench import environment

        block = schema.Environment.model_validate(environment.describe())
        assert block.python.startswith("3.")

    def test_a_record_needs_no_robustbench_keys(self, make_result):
        record = tree(make_result().result)
        typed = {key: record[key] for key in Record.model_fields if key in record}
        assert Record.model_validate(typed).task.id == "digits"

    def test_an_update_is_part_of_the_methods_name(self, make_result):
        from aal_bench.config import Choice

        run = make_result(method="pgd").run.model_copy(update={"update": Choice(name="awp")})
        assert results.method_name(run) == "pgd-awp"

    @pytest.mark.parametrize("name", ["awp", "trades-awp", "again-awp"])
    def test_a_method_that_says_its_update_says_it_once(self, make_result, name):
        from aal_bench.config import Choice

        update = {"method": Choice(name=name), "update": Choice(name="awp")}
        assert results.method_name(make_result().run.model_copy(update=update)) == name


class TestFewShot:
    def test_the_task_block_is_that_of_the_episodes(self, make_episodes):
        made = make_episodes(shots=5)
        block = made.result.task
        assert (block.id, block.classes, block.examples) == ("mini-imagenet-5w5s", 5, 600)
        assert block.episodes == made.task.episodes
        assert (block.rows, block.queries, block.unit) == (45_000, 75, "episodes")
        assert made.result.name == "rfs on mini-ImageNet, 5-way 5-shot"
        assert tree(made.result)["dataset"] == "mini-imagenet-5w5s"

    def test_the_evidence_block_is_that_of_its_table(self, make_episodes):
        made = make_episodes()
        block = made.result.evidence
        assert (block.format, block.rows) == (made.evidence.format, len(made.evidence))
        assert block.columns == ["episode", "index", "label", "clean_pred"]

    def test_it_is_selected_by_validation_episodes(self, make_episodes):
        chosen = make_episodes(train={"select": "best"}).result.training.selection
        assert (chosen.metric, chosen.size) == ("val_clean", 200)

    def test_without_attack_no_number_is_called_robust(self, make_episodes):
        record = tree(make_episodes().result)
        assert {*record["metrics"]} == {"clean", "stages", "autoattack", "episodes"}
        assert record["metrics"]["autoattack"] is None
        assert "autoattack_acc" not in record

    def test_full_autoattack_on_every_query_is_autoattack(self, make_episodes):
        made = make_episodes(protocol="robust-episodes")
        assert made.result.autoattack_acc == results.percent(made.result.metrics.autoattack.value)
        assert made.result.evaluation[3].params["targets"] == 4

    def test_images_have_none_of_it(self, make_result):
        record = tree(make_result().result)
        assert "episodes" not in record["task"]
        assert "episodes" not in record["metrics"]

    def test_a_record_can_be_read_again(self, make_episodes, tmp_path):
        made = make_episodes(protocol="robust-episodes")
        assert results.read(tmp_path / "run" / "result.json") == made.result

    @pytest.mark.parametrize(
        ("block", "change", "message"),
        [
            ("task", {"episodes": None}, "go together"),
            ("task", {"family": "classification"}, "go together"),
            ("task", {"classes": 20}, "5 ways"),
            ("task", {"examples": 800}, "600 episodes"),
            ("metrics", {"episodes": None}, "robust is missing"),
            ("metrics", {"stages": {"pgd-20": {"value": 0, "n": 1, "ci95": [0, 1]}}}, "robust"),
            ("metrics", {"episodes": {"n": 9, "queries": 75, "sd": {}}}, "9 episodes"),
        ],
    )
    def test_blocks_that_contradict_each_other_are_refused(
        self, make_episodes, block, change, message
    ):
        record = tree(make_episodes().result)
        record[block] |= change
        assert message in refused(record)

    def test_images_without_a_robust_number_are_refused(self, make_result):
        record = tree(make_result().result)
        del record["metrics"]["robust"]
        assert "robust is missing" in refused(record)

    @pytest.mark.parametrize(
        ("model", "architecture"),
        [("resnet12", "ResNet-12"), ("wrn28", "WRN-28-10"), ("cnn4", "CNN-4")],
    )
    def test_networks_are_written_as_the_papers_write_them(
        self, make_episodes, model, architecture
    ):
        assert make_episodes(model=model).result.architecture == architecture
