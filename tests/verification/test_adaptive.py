"""A class-gated network from its evaluation to its place on a board.

Nothing is trained: convolutions are random, the gate's classifier and the head are least squares.
AutoAttack attacks its final logits; the stage `adaptive` what else it declares. Everything is real,
the budget of the adaptive attacks is small.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench import comparison, plugins, report, results
from aal_bench.adapters.method import build_method
from aal_bench.attacks.adaptive import budget as budgets
from aal_bench.attacks.adaptive import stage as adaptive
from aal_bench.config import Normalisation, read_task
from aal_bench.data import digits
from aal_bench.errors import UserError
from aal_bench.evaluate import Source, evaluate
from aal_bench.evidence import Evidence
from aal_bench.leaderboard import base, compare, entries, extend, pair, scores, submit, verify
from aal_bench.leaderboard.metadata import Metadata
from aal_bench.models import weights
from aal_bench.models.build import build
from aal_bench.record import percent
from aal_bench.registry import ADAPTIVE, AUTOATTACK, task_file
from aal_bench.resolve import Request, resolve
from aal_bench.verification import reattack
from aal_bench.verification.levels import Options, verify_entry

COUNT = 16
TASK = f"""
name = "few"
title = "sixteen digits"
model = "cnn4-32"
[data]
name = "digits"
classes = 10
size = 16
subset = {{ count = {COUNT}, seed = 1 }}
[threat]
eps = "2/255"
[attack]
step = "1/510"
[train]
epochs = 1
lr = 0.1
[paper]
robustbench = "cifar10"
[evaluation]
batch_size = 16
"""
NORMALISATION = Normalisation(mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
BRIEF = budgets.QUICK._replace(name="brief", steps=20, apgd_steps=20, betas=(1.0,), lambdas=(1.0,))


@pytest.fixture(scope="module", autouse=True)
def few(installed, tmp_path_factory):
    """The task, as an installed package's, and adaptive attacks that take seconds."""
    site = tmp_path_factory.mktemp("few")
    (site / "few_tasks" / "tasks").mkdir(parents=True)
    (site / "few_tasks" / "__init__.py").touch()
    (site / "few_tasks" / "tasks" / "few.toml").write_text(TASK)
    info = site / "few_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: few-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aal_bench.tasks]\nfew = few_tasks.tasks\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        plugins._every_entry_point.cache_clear()
        for module in (budgets, adaptive):
            patch.setattr(module, "FULL", BRIEF)
            patch.setattr(module, "QUICK", BRIEF)
        yield
    plugins._every_entry_point.cache_clear()


def least_squares(model: nn.Module, layer: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> None:
    """Fit a linear layer to what it sees of the images."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(x)
    handle.remove()
    f = torch.cat([seen[0], torch.ones(len(x), 1)], 1).double()
    ridge = f.T @ f + 1e-3 * torch.eye(f.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(ridge, f.T @ nn.functional.one_hot(y, 10).double()).float()
    layer.weight.copy_(20 * solved[:-1].T)
    layer.bias.copy_(20 * solved[-1])


@pytest.fixture(scope="module")
def checkpoint(few, tmp_path_factory):
    """A file of a network with a class gate, as a run of method cas leaves it."""
    torch.manual_seed(0)
    asked = Request(task="few", method="cas", settings=("method.last_only=true",))
    run = resolve(asked)
    model = build_method(run).build(build("cnn4-32", 10, 16, NORMALISATION)).eval()
    model.requires_grad_(False)
    train = digits.read(16).train
    x, y = torch.from_numpy(train.images[:1000]) / 255, torch.from_numpy(train.labels[:1000])
    least_squares(model, model.gates[0].fc, x, y)  # pyright: ignore
    least_squares(model, model.model.network.classifier, x, y)  # pyright: ignore
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    described = weights.Described(
        model="cnn4-32",
        classes=10,
        size=16,
        normalisation=NORMALISATION.model_dump(mode="json"),
        method="cas",
        options=run.method.options,
    )
    weights.save(path, model.state_dict(), described)
    return path


def evaluated(checkpoint: Path, folder: Path) -> Path:
    asked = Request(task="few", protocol="standard", device="cpu", precision="fp32")
    evaluate(asked, Source(checkpoint, None, None), folder)
    return folder


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """The folder of the finished evaluation."""
    return evaluated(checkpoint, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(scope="module")
def before(run, tmp_path_factory):
    """The same as it would have been before there was the stage."""
    folder = tmp_path_factory.mktemp("before") / "run"
    shutil.copytree(run, folder)
    table = Evidence.load(run / "evidence.npz")
    old = Evidence(table.index, table.label)
    old.record("clean", np.arange(len(table)), pred=table.clean_pred)
    for stage in AUTOATTACK:
        held = table.column(stage, "attacked")
        columns = ("pred", "norm", "forwards", "backwards")
        given = {name: table.column(stage, name)[held] for name in columns}
        old.record(stage, np.flatnonzero(held), **given)
        old.skip(stage, np.flatnonzero(~held))
    old.save(folder / "evidence.npz")
    fallen = kept(run)["stage"] != ADAPTIVE
    np.savez(folder / "adversarials.npz", **{key: each[fallen] for key, each in kept(run).items()})
    result = results.read(run / "result.json")
    tree = result.model_dump(mode="json")
    tree["evaluation"] = [each for each in tree["evaluation"] if each["attack"] != ADAPTIVE]
    tree["metrics"] = results.METRICS["classification"](old, list(AUTOATTACK))
    fingerprint = tree["evidence"]["dataset_fingerprint"]
    path = folder / "evidence.npz"
    tree["evidence"] = results.evidence_file(path, old, fingerprint).model_dump(mode="json")
    tree["adversarials"] |= {
        "count": int(fallen.sum()),
        "sha256": results.sha256_file(folder / "adversarials.npz"),
    }
    del tree["external"]
    stages = [each for each in result.evaluation if each.attack != ADAPTIVE]
    tree["run_hash"] = results.run_hash(result.task.hash, result.threat, result.model, stages)
    tree["submission_id"] = tree["submission_id"].replace(
        (result.run_hash or "")[:8], tree["run_hash"][:8]
    )
    results.write(folder / "result.json", results.Result.model_validate(tree))
    return folder


def kept(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "adversarials.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture
def boards(tmp_path):
    return tmp_path / "boards"


def about(**fields):
    return Metadata(**{"entry": "theirs", **fields})


class TestTheRecord:
    def test_has_the_stage_after_the_protocols_and_the_worst_case_as_external(self, run):
        result = results.read(run / "result.json")
        assert [stage.attack for stage in result.evaluation] == ["clean", *AUTOATTACK, ADAPTIVE]
        assert result.protocol == "standard"
        table = Evidence.load(run / "evidence.npz")
        left, worst = table.robust(AUTOATTACK), table.robust()
        assert 0 < worst.sum() < left.sum()
        assert result.autoattack_acc == percent(left.mean())
        assert result.external == percent(worst.mean())
        assert float(result.external) < float(result.autoattack_acc)

    def test_states_what_the_stage_did(self, run):
        stage = results.read(run / "result.json").evaluation[-1]
        task = read_task(task_file("few"))
        table = Evidence.load(run / "evidence.npz")
        assert (stage.seed, stage.batch_size) == (task.evaluation.seed, COUNT)
        assert stage.partition == "survivors-in-index-order"
        assert stage.n_in == int(table.robust(AUTOATTACK).sum())
        assert stage.n_out == int(table.robust().sum())
        assert stage.implementation.package == "aal-bench"
        assert stage.params["heads"]["budget"] == "brief"
        assert stage.backwards > 100

    def test_keeps_the_adversarials_that_the_network_errs_on(self, run, checkpoint):
        held = kept(run)
        assert (held["stage"] == ADAPTIVE).sum() > 0
        table = Evidence.load(run / "evidence.npz")
        assert len(held["index"]) == int((table.clean_correct() & ~table.robust()).sum())

    def test_says_so_in_the_report(self, run, before):
        result = results.read(run / "result.json")
        task = read_task(task_file("few"))
        text = report.markdown(result, task)
        stage = result.evaluation[-1]
        felled = stage.n_in - (stage.n_out or 0)
        told = f"stage `adaptive` attacks its auxiliary heads and felled {felled} of {stage.n_in}"
        assert told in " ".join(text.replace("> ", "").split())
        assert f"**Worst case**: {result.external} %. AutoAttack alone leaves" in text
        assert (run / "report.md").read_text().startswith(text.rstrip())
        older = report.markdown(results.read(before / "result.json"), task)
        assert "no stage here attacks its auxiliary heads" in older
        assert "Worst case" not in older

    def test_shows_the_worst_case_below_autoattack(self, run):
        result, task = results.read(run / "result.json"), read_task(task_file("few"))
        labels = [line.label for line in comparison.lines(result, task)]
        assert labels == ["clean", "autoattack", "adaptive  2/255", "all of them"]
        assert any(
            f"external {result.external} %" in row for row in comparison.captions(result, task)
        )

    def test_of_a_part_of_the_test_set_has_no_external(self, run):
        asked = resolve(Request(task="few", method="cas", protocol="standard", limit_eval=COUNT))
        table = Evidence.load(run / "evidence.npz")
        metrics = results.METRICS["classification"](table, table.stages)
        assert results.lowered(asked, table, metrics) is None
        whole = resolve(Request(task="few", method="cas", protocol="standard"))
        assert results.lowered(whole, table, metrics) == percent(table.robust().mean())

    def test_finished_is_finished(self, run, checkpoint, capsys):
        record = (run / "result.json").read_bytes()
        evaluated(checkpoint, run)
        assert "finished earlier" in capsys.readouterr().out
        assert (run / "result.json").read_bytes() == record


class TestTheEntry:
    def test_holds_at_levels_0_and_1(self, run, boards):
        entry = submit.submit(run, boards, about())
        (verdict,) = verify.verify(entry.path)
        assert verdict.ok, [finding for finding in verdict.findings if not finding.ok]
        assert (verdict.level_held, entry.result.external) == (
            1,
            results.read(run / "result.json").external,
        )

    def test_is_ranked_by_its_worst_case(self, run, boards):
        entry = submit.submit(run, boards, about())
        table = entry.evidence()
        assert scores.measure(entry).value == table.robust().mean()
        np.testing.assert_array_equal(scores.verdicts([entry])[entry.path], table.robust())

    def test_may_be_submitted_again_with_other_words(self, run, boards):
        submit.submit(run, boards, about())
        again = submit.submit(run, boards, about(venue="NeurIPS 2020"), replace=True)
        assert [event.event for event in again.result.verification.history] == [
            "submitted",
            "amended",
        ]
        assert verify.verify(again.path)[0].ok

    @pytest.mark.parametrize(
        ("change", "rule"),
        [
            (lambda tree: tree.pop("external"), "external"),
            (lambda tree: tree.update(external="99.00"), "external"),
            (lambda tree: tree["evaluation"][-1]["params"].update(eps="1/255"), "parameters"),
            (
                lambda tree: tree["evaluation"][-1]["params"]["heads"].update(steps=1),
                "parameters",
            ),
            (lambda tree: tree["evaluation"].insert(1, tree["evaluation"].pop()), "protocol"),
            (lambda tree: tree["evaluation"][-1].update(seed=3), "arithmetic"),
            (lambda tree: tree["evaluation"][-1].update(attack="adaptive-2"), "protocol"),
        ],
        ids=["no external", "another", "eps", "steps", "order", "seed", "name"],
    )
    def test_is_broken_where_it_says_otherwise(self, run, boards, change, rule):
        entry = submit.submit(run, boards, about())
        tree = json.loads(entry.path.read_text())
        change(tree)
        tree["seal"] = results.seal(tree)
        entry.path.write_text(json.dumps(tree, indent=1) + "\n")
        broken = {found.rule for found in verify.verify(entry.path)[0].findings if not found.ok}
        assert rule in broken

    def test_is_broken_where_the_stage_did_not_attack_all_that_stood(self, run, boards):
        """A forger who spares an image, and makes every figure follow."""
        entry = submit.submit(run, boards, about())
        table = entry.evidence()
        spared = Evidence(table.index, table.label)
        spared.record("clean", np.arange(len(table)), pred=table.clean_pred)
        for stage in table.stages:
            held = table.column(stage, "attacked")
            if stage == ADAPTIVE:
                held[np.flatnonzero(held & table.column(stage, "ok"))[0]] = False
            columns = ("pred", "norm", "forwards", "backwards")
            given = {name: table.column(stage, name)[held] for name in columns}
            spared.record(stage, np.flatnonzero(held), **given)
            if stage != ADAPTIVE:
                spared.skip(stage, np.flatnonzero(~held))
        block = spared._blocks[ADAPTIVE]
        block["recorded"] = True
        spared.save(entry.evidence_path)
        tree = json.loads(entry.path.read_text())
        tree["evidence"]["sha256"] = results.sha256_file(entry.evidence_path)
        tree["seal"] = results.seal(tree)
        entry.path.write_text(json.dumps(tree, indent=1) + "\n")
        broken = {found.rule for found in verify.verify(entry.path)[0].findings if not found.ok}
        assert "attacked" in broken


class TestAnOlderEntry:
    """The same weights, submitted before there was the stage."""

    def test_still_holds_and_is_ranked_by_autoattack(self, before, boards):
        entry = submit.submit(before, boards, about())
        assert verify.verify(entry.path)[0].ok
        assert entry.result.external is None
        assert scores.measure(entry).value == entry.evidence().robust(AUTOATTACK).mean()

    def test_is_another_run_that_may_be_replaced_by_the_new_one(
        self, before, run, boards, tmp_path
    ):
        old = submit.submit(before, boards, about())
        shutil.copytree(boards, tmp_path / "main")
        new = submit.submit(run, boards, about(), replace=True)
        assert old.result.run_hash != new.result.run_hash
        event = new.result.verification.history[-1]
        assert (event.event, event.run_hash) == ("replaced", old.result.run_hash)
        assert verify.verify(new.path)[0].ok
        assert all(found.ok for found in base.findings(boards, tmp_path / "main"))

    def test_does_not_come_back_once_the_worst_case_is_known(self, before, run, boards):
        new = submit.submit(run, boards, about())
        with pytest.raises(UserError, match=f"brought down to {new.result.external} %"):
            submit.submit(before, boards, about(), replace=True)

    def test_is_compared_by_what_ranks_each(self, before, run):
        found = compare.compare(before, run)
        assert found.basis == "external"
        line = next(line for line in found.lines if line.verdict == "external")
        assert (line.a, line.b) == (
            Evidence.load(before / "evidence.npz").robust(AUTOATTACK).mean(),
            Evidence.load(run / "evidence.npz").robust().mean(),
        )
        assert line.pair.only_b == 0


class TestVerification:
    @pytest.fixture
    def entry(self, run, boards):
        """As clean code would have made it: anybody may verify it to any level."""
        entry = submit.submit(run, boards, about())
        tree = json.loads(entry.path.read_text())
        commit = {"commit": "c0ffee" * 6 + "c0de", "dirty": False}
        tree["environment"]["aal_bench"] |= commit
        tree["seal"] = results.seal(tree)
        results.write(entry.path, results.Result.model_validate(tree))
        return entries.read(entry.path)

    def test_levels_2_and_3_attack_again_with_the_stage(self, entry, run, checkpoint, monkeypatch):
        ran, again = [], reattack.reattack
        monkeypatch.setattr(
            reattack, "reattack", lambda *given: ran.append(again(*given)) or ran[0]
        )
        options = Options(
            checkpoint=checkpoint,
            adversarials=run / "adversarials.npz",
            public_string="commit 4f2a",
            by="somebody",
        )
        verdict = verify_entry(entry.path, 3, options)
        assert verdict.ok, [finding for finding in verdict.findings if not finding.ok]
        assert verdict.level_held == 3
        assert ran[0].attacked.params["stages"] == [*AUTOATTACK, ADAPTIVE]
        now = entries.read(entry.path)
        assert now.result.verification.level == 3
        assert verify.verify(entry.path)[0].ok

    def test_a_challenge_after_it_lowers_external_further(self, entry):
        table = entry.evidence()
        stood = np.flatnonzero(table.robust())
        attacked = extend.Attacked(
            kind="challenge",
            implementation={"package": "submitted adversarials"},
            params={"eps": "2/255", "sha256": "0" * 64},
            rows=stood[:1],
            pred=(table.label[stood[:1]] + 1) % 10,
            norm=2 / 255,
        )
        done = extend.extend(entry, attacked, extend.Verified(by="somebody", level=4))
        assert done.result.external == percent((len(stood) - 1) / COUNT)
        event = done.result.verification.history[-1]
        assert event.external == entry.result.external
        pair.write(entry.path, done.result, done.evidence)
        (verdict,) = verify.verify(entry.path)
        assert verdict.ok, [finding for finding in verdict.findings if not finding.ok]

    def test_what_a_challenge_felled_is_not_washed_off_by_the_same_run(self, entry, run, boards):
        self.test_a_challenge_after_it_lowers_external_further(entry)
        with pytest.raises(UserError, match="brought down"):
            submit.submit(run, boards, about(), replace=True)
