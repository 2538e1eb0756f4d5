"""Level 0: each rule holds for a real entry, and each is broken by what it is there for."""

import json
from typing import Any

import pytest

from aal_bench import registry, results
from aal_bench.leaderboard import wellformed
from aal_bench.record import SCHEMA_VERSION, Result
from aal_bench.schema import Event


def stage(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in tree["evaluation"] if stage["attack"] == name)


def test_a_committed_entry_holds_and_every_rule_says_so_in_one_line(copied):
    findings = copied.findings(0)
    assert [found.rule for found in findings if not found.ok] == []
    assert {found.level for found in findings} == {0}
    rules = [found.rule for found in findings]
    assert len(rules) == len(set(rules)) > 25
    assert all(found.text and "\n" not in found.text for found in findings)


def test_a_changed_file_breaks_its_seal_and_a_renewed_one_is_believed(copied):
    copied.change(lambda tree: tree["environment"].update(threads=99), seal=False)
    assert copied.broken(0) == {"0 seal"}
    copied.write(copied.tree())
    assert copied.broken(0) == set()


def test_an_entry_without_a_seal_is_refused(copied):
    copied.change(lambda tree: tree.update(seal=None), seal=False)
    assert copied.broken(0) == {"0 seal"}
    assert "missing" in copied.said("seal")


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        ("schema", "created", 5),
        ("schema", "surplus", 5),
        ("schema", "status", "error"),
        ("robustbench", "clean_acc", "99.99"),
        ("robustbench", "dataset", "cifar10"),
        ("robustbench", "eps", "8/255"),
        ("robustbench", "architecture", "WideResNet-70-16"),
        ("robustbench", "additional_data", True),
        ("robustbench", "number_forward_passes", 2),
        ("robustbench", "unreliable", True),
        ("robustbench", "external", None),
        ("name", "submission_id", "another"),
        ("protocol", "protocol", "standard"),
        ("protocol", "protocol", "nonsense"),
        ("protocol", "protocol", "clean," * 200),
        ("external", "external", "1.00"),
        ("characters", "footnote", "a\x1b[2Jb"),
        ("characters", "authors", "a\nb"),
        ("characters", "name", "evil\u202egnp.exe"),
        ("addresses", "link", "javascript:alert(1)"),
        ("addresses", "link", "https://"),
        ("addresses", "link", "https://[broken"),
        ("addresses", "link", 'https://a.example/" onclick="x'),
        ("reported", "reported", "about 50"),
        ("reported", "reported", "100.01"),
        ("reported", "reported", "-1"),
        ("reported", "reported", "50 %"),
        ("reported", "reported", "nan"),
        ("dates", "created", "2026-01-02 03:04"),
        ("dates", "created", "2026-01-02T03:04:05"),
        ("dates", "created", "2026-02-30T03:04:05Z"),
        ("written", "schema_version", "1.0"),
        ("written", "schema_version", "1.99"),
    ],
)
def test_a_key_at_the_top(copied, rule, key, value):
    copied.change(lambda tree: tree.update({key: value}))
    assert f"0 {rule}" in copied.broken(0)


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        ("schema", "metrics.clean.value", 1.5),
        ("schema", "evaluation.1.n_out", 10**6),
        ("schema", "threat.eps", f"{'9' * 4000}/7"),
        ("written", "threat.eps", "48/510"),
        ("written", "model.parameters", 29226.0),
        ("folder", "task.id", "cifar10-1k"),
        ("folder", "threat.norm", "L2"),
        ("task", "task.version", "2.0"),
        ("task", "task.classes", 11),
        ("task", "task.examples", 361),
        ("task", "task.examples", 10**400),
        ("task", "threat.eps", "1e999"),
        ("task", "threat.box", [0.0, 0.5]),
        ("task", "threat.targeted", True),
        ("task", "evidence.dataset_fingerprint", {"pixels": "0", "count": "360"}),
        ("evidence file", "evidence.path", "../../other.npz"),
        ("evidence file", "evidence.path", None),
        ("evidence file", "evidence.rows", 361),
        ("evidence file", "evidence.format", "another"),
        ("evidence file", "evidence.columns", ["index"]),
        ("evidence file", "adversarials.path", "../adversarials.npz"),
        ("hashes", "task.hash", "0" * 64),
        ("hashes", "run_hash", "0" * 64),
        ("hashes", "training.config_hash", "0" * 64),
        ("hashes", "model.checkpoint.sha256", "0" * 64),
        ("parameters", "evaluation.2.params.steps", 9),
        ("parameters", "evaluation.2.params.alpha", "1/255"),
        ("parameters", "evaluation.2.params.note", "more"),
        ("parameters", "evaluation.3.params.steps", 10),
        ("parameters", "evaluation.3.params.steps", "100"),
        ("parameters", "evaluation.3.implementation.package", "torchattacks"),
        ("parameters", "evaluation.3.implementation.version", "9.9"),
        ("arithmetic", "evaluation.3.seed", 1),
        ("arithmetic", "evaluation.3.batch_size", 256),
        ("arithmetic", "evaluation.3.partition", "clean-correct-in-index-order"),
        ("arithmetic", "evaluation.3.dtype", "float16"),
        ("arithmetic", "evaluation.3.tf32", True),
        ("arithmetic", "evaluation.0.max_violation.norm", 1e-9),
        ("order", "evaluation.0.n_in", 359),
        ("order", "evaluation.4.n_in", 300),
        ("counts", "evaluation.1.n_out", 300),
        ("counts", "metrics.clean.n", 359),
        ("counts", "metrics.robust.ci95", [0.0, 1.0]),
        ("counts", "metrics.stages.fgsm.ci95", [0.0, 1.0]),
        ("budget", "evaluation.6.forwards", 4999.0),
        ("budget", "evaluation.5.backwards", 901.0),
        ("budget", "evaluation.4.forwards", 10.0),
        ("model", "model.name", "wrn-34-10"),
        ("model", "environment.gpu_count", 3),
        ("training", "training.epochs", 31),
        ("training", "training.steps", 601),
        ("training", "training.data.0.count", 1000),
        ("training", "training.data.0.name", "cifar10"),
        ("training", "training.method", "trades"),
        ("training", "training.selection.size", 100),
        ("training", "training.selection.split", "validation"),
        ("training", "training.gpu_count", 1),
        ("training", "training.code.commit", "another"),
        ("training", "training.method_version", "9.9"),
        ("training", "training.config.seed", 3),
        ("training", "training.config.task", 3),
        ("training", "training.config.smoke", True),
        ("training", "training.config.task.threat.eps", "8/255"),
        ("training", "training.config.task.train.lr", "0.1"),
        ("training", "training.config.task.normalisation.std", [0.2, 0.2, 0.2]),
        ("training", "model.surgery", {"name": "pgd", "options": {}}),
        ("siblings", "training.siblings", ["another-entry"]),
        ("seed", "training.seeds", [9]),
        ("seed", "training.seeds", [0, 1]),
        ("level", "verification.level", 2),
        ("level", "verification.level", 0),
        ("dates", "verification.history.0.at", "yesterday"),
        ("history", "verification.history.0.run_hash", "0" * 64),
        ("history", "verification.history.0.stage", "challenge-1"),
        ("addresses", "model.checkpoint.url", "ftp://a.example/x"),
        ("addresses", "environment.aal_bench.origin", "file:///etc/passwd"),
    ],
)
def test_a_value_within(copied, rule, path, value):
    def edit(tree):
        *parents, leaf = path.split(".")
        node = tree
        for part in parents:
            node = node[int(part) if isinstance(node, list) else part]
        node[int(leaf) if isinstance(node, list) else leaf] = value
        if rule != "schema":
            copied.rederive(tree)

    copied.change(edit)
    assert f"0 {rule}" in copied.broken(0)


def test_a_smoke_run_is_not_eligible(copied):
    copied.change(lambda tree: (tree.update(smoke=True), copied.rederive(tree)))
    assert "0 eligible" in copied.broken(0)


def test_a_limit_is_not_eligible_even_with_renewed_hashes(copied):
    copied.change(lambda tree: (tree.update(limit=360), copied.rehash(tree)))
    assert {"0 eligible", "0 autoattack"} <= copied.broken(0)


class TestAConsistentForgeryOfHashes:
    """With every hash renewed, what is asked must still be what the task file asks."""

    def test_other_parameters(self, copied):
        copied.change(
            lambda tree: (stage(tree, "pgd-10")["params"].update(steps=2), copied.rehash(tree))
        )
        assert copied.broken(0) == {"0 parameters", "0 seed"}

    def test_fewer_iterations_of_autoattack(self, copied):
        def edit(tree):
            for name in registry.AUTOATTACK[:3]:
                stage(tree, name)["params"]["steps"] = 10
            copied.rehash(tree)

        copied.change(edit)
        assert {"0 parameters", "0 autoattack"} <= copied.broken(0)

    def test_another_configuration(self, copied):
        def edit(tree):
            tree["training"]["config"]["task"]["train"]["epochs"] = 31
            copied.rehash(tree)

        copied.change(edit)
        assert copied.broken(0) == {"0 training"}
        assert "epochs" in copied.said("training", 0)

    def test_a_dropped_stage(self, copied):
        def edit(tree):
            tree["evaluation"] = [s for s in tree["evaluation"] if s["attack"] != "pgd-10"]
            copied.rehash(tree)

        copied.change(edit)
        assert "0 protocol" in copied.broken(0)

    def test_stages_in_another_order(self, copied):
        copied.change(
            lambda tree: (
                tree["evaluation"].insert(1, tree["evaluation"].pop()),
                copied.rehash(tree),
            )
        )
        assert "0 protocol" in copied.broken(0)

    def test_a_protocol_without_full_autoattack(self, copied):
        def edit(tree):
            tree["protocol"] = tree["training"]["config"]["protocol"] = "paper"
            tree["evaluation"] = tree["evaluation"][:3]
            tree["metrics"]["autoattack"] = None
            copied.rehash(tree)

        copied.change(edit)
        assert "0 autoattack" in copied.broken(0)


class TestLevels:
    """A submitter may claim level 1; more needs a name, a date, an event and known code."""

    def verified(self, tree: dict[str, Any], level: int = 2) -> None:
        at = "2027-01-01T00:00:00+00:00"
        event = Event(
            at=at, by="a maintainer", event="verified", level=level, run_hash=tree["run_hash"]
        )
        tree["verification"]["history"].append(event.model_dump(mode="json"))
        tree["verification"] |= {"level": level, "by": "a maintainer", "date": at}
        tree["verification"] |= {"seed": 5 if level > 2 else None, "report_sha256": "0" * 64}

    @pytest.mark.parametrize("level", [2, 3])
    def test_a_verified_entry(self, copied, level):
        copied.change(lambda tree: self.verified(tree, level))
        assert copied.broken(0) == set()

    def test_no_verification_alone_reaches_level_4(self, copied):
        copied.change(lambda tree: self.verified(tree, 4))
        assert copied.broken(0) == {"0 level"}
        assert "event 2, verified, lifts the entry from 1 to 4" in copied.said("level")

    @pytest.mark.parametrize(("level", "missing"), [(3, "seed"), (3, "report_sha256")])
    def test_level_3_can_be_repeated(self, copied, level, missing):
        def edit(tree):
            self.verified(tree, level)
            tree["verification"][missing] = None

        copied.change(edit)
        assert copied.broken(0) == {"0 level"}

    @pytest.mark.parametrize("missing", ["by", "date", "report_sha256", "history"])
    def test_a_level_that_nobody_answers_for(self, copied, missing):
        def edit(tree):
            self.verified(tree)
            block = tree["verification"]
            block[missing] = block["history"][:1] if missing == "history" else None

        copied.change(edit)
        assert copied.broken(0) == {"0 level"}

    @pytest.mark.parametrize("code", [{"commit": None}, {"dirty": True}, {"dirty": None}])
    def test_code_that_nobody_can_look_up_is_capped(self, copied, code):
        def edit(tree):
            tree["environment"]["aal_bench"] |= code
            tree["training"]["code"] |= code

        copied.change(edit)
        assert copied.broken(0) == set()
        copied.change(self.verified)
        assert copied.broken(0) == {"0 level"}

    def test_events_have_an_order(self, copied):
        copied.change(self.verified)
        copied.change(lambda tree: tree["verification"]["history"].reverse())
        assert "0 history" in copied.broken(0)


@pytest.mark.parametrize("reported", [None, "", "0", "100", "57.3", "57.30"])
def test_what_the_authors_claim_is_a_percentage_or_nothing(copied, reported):
    copied.change(lambda tree: tree.update(reported=reported))
    assert "0 reported" not in copied.broken(0)


@pytest.mark.parametrize("pixels", ["known", "0" * 64])
def test_the_size_of_a_known_test_set_is_not_the_submitters_to_state(copied, pixels):
    """Whatever the pixels: the digits have 360 test images."""
    copied.rename("Large2026Set")

    def edit(tree):
        tree["task"]["examples"] = tree["evidence"]["rows"] = 30_000_000
        tree["evidence"]["dataset_fingerprint"]["count"] = "30000000"
        if pixels != "known":
            tree["evidence"]["dataset_fingerprint"]["pixels"] = pixels
        copied.rehash(tree)

    copied.change(edit)
    assert "0 task" in copied.broken()
    assert "30000000, the task's 360" in copied.said("task")
    assert not [found for found in copied.findings() if found.level == 1]


class TestFlags:
    """A model that has not learnt its task cannot leave that out."""

    def near_chance(self, tree: dict[str, Any]) -> None:
        flag = {"code": "near-chance", "severity": "warning", "value": 0.9861, "threshold": 0.2}
        tree["flags"] = [{**flag, "note": "near chance"}]

    def test_a_flag_without_its_reason(self, copied):
        copied.change(self.near_chance)
        assert copied.broken(0) == {"0 flags"}


def test_an_own_architecture_needs_no_registered_name(copied):
    copied.change(lambda tree: (tree["model"].update(name="mine:build"), copied.rehash(tree)))
    assert "0 model" not in copied.broken(0)


def test_somebody_elses_checkpoint_has_no_training(copied):
    copied.change(lambda tree: tree.update(training=None))
    assert copied.broken(0) == set()
    assert copied.said("training") == "somebody else's checkpoint"


def test_what_a_forger_writes_cannot_steer_the_terminal(copied):
    copied.change(lambda tree: tree.update(submission_id="\x1b[31m\n" * 100))
    for found in copied.findings(0):
        assert found.text.isprintable()
        assert len(found.text) < 300


def test_numbers_of_thousands_of_digits_are_answered_wherever_they_stand(copied):
    """Python refuses to print them, and floats to hold them."""
    original = copied.tree()
    tree = copied.tree()
    config = tree["training"]["config"]["task"]["train"]
    config["epochs"] = tree["training"]["epochs"] = 10**4200
    tree["training"]["data"][0]["count"] = 10**4200
    copied.write(tree)
    assert "out of all bounds" in copied.said("training", 0)
    for version in (f"1.{'9' * 5000}", "1.\u0661"):
        copied.write(original | {"schema_version": version})
        assert "0 written" in copied.broken(0)
    for place in range(len(original["evaluation"])):
        tree = copied.tree() | {"schema_version": "1.1"}
        tree["evaluation"][place] |= {"n_in": 10**4200, "n_out": 10**4200 - 1}
        copied.write(tree)
        assert copied.broken(0)


def test_the_known_versions_end_with_the_one_that_is_written():
    assert wellformed.KNOWN_VERSIONS[-1] == SCHEMA_VERSION


def test_a_record_of_a_younger_minor_version_is_not_half_understood(copied):
    copied.change(lambda tree: tree.update(schema_version="1.9"))
    assert "newer" in copied.said("written")


def test_the_example_reads_as_the_file_is_written(copied):
    text = copied.path.read_text("utf-8")
    assert results.dumps(Result.model_validate(json.loads(text))) == text
