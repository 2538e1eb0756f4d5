"""Training by MMEngine's Runner: killed and resumed, diverging, and in several processes."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from aal_bench.errors import RunFailed

TRAIN = 6
BATCH = 2


@pytest.fixture(scope="module")
def one_thread():
    """As in the processes started here: sums of floats depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(voc_folder, tmp_path):
    return voc_folder(tmp_path / "voc", {"train": TRAIN, "val": 2, "test": 2}, size=(96, 96))


def arguments(folder, out, method, *more, epochs=2):
    given = [
        *("voc-format", "--data-dir", folder, "--classes", "cat,dog", "--out", out),
        *("--method", method, "--epochs", epochs, "--batch-size", BATCH, "--device", "cpu"),
        *("--precision", "fp32", "--protocol", "detection-clean", "--set", "data.size=264"),
        *("--set", "train.validation=2", "--set", "detection.base_batch=2", *more),
    ]
    return [str(one) for one in given]


def finish(server, log, given):
    assert server.ended(server.begin(log, "run", *given)) == 0, log.read_text()


def kill_after_first_epoch(server, log, out, given):
    """SIGKILL in the second epoch, of which nothing is saved yet."""
    pid = server.begin(log, "run", *given)
    deadline = time.monotonic() + 120
    while not (out / "mmengine" / "last_checkpoint").exists():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert server.ended(pid) == -signal.SIGKILL


def rows(out):
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "seconds"} for row in found]


@pytest.mark.parametrize("method", ["aal-fgsm", "free"])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(server, folder, tmp_path, method):
    """Weights, metrics and the best epoch, bit for bit: order, augmentation, perturbations."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log = tmp_path / "log"
    finish(server, log, arguments(folder, whole, method))
    kill_after_first_epoch(server, log, killed, arguments(folder, killed, method))
    assert not (killed / "model.safetensors").exists()
    finish(server, log, arguments(folder, killed, method, "--resume"))
    expected, found = (load_file(out / "model.safetensors") for out in (whole, killed))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert [row["epoch"] for row in rows(killed)] == [1, 2]
    assert rows(killed) == rows(whole)
    assert all("val_map" in row for row in rows(whole))
    records = [json.loads((out / "run.json").read_text()) for out in (whole, killed)]
    for key in ("steps", "images", "passes", "best_epoch"):
        assert records[0]["training"][key] == records[1]["training"][key], key
    assert records[0]["training"]["steps"] == 2 * TRAIN // BATCH
    passes = {"aal-fgsm": [2, 2], "free": [4, 4]}[method]
    assert records[0]["training"]["passes"] == passes


@pytest.mark.parametrize("method", ["fgsm", "free"])
def test_two_processes_train_one_detector_and_leave_one_record(server, folder, tmp_path, method):
    out = tmp_path / "run"
    logs = [tmp_path / "first", tmp_path / "second"]
    server.launch(logs, "run", *arguments(folder, out, method, "--limit-train", 4, epochs=1))
    assert "mAP" in logs[0].read_text()
    assert "mAP" not in logs[1].read_text()
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "success"
    assert record["training"]["steps"] == 1  # four images, two at a time in each of two
    assert rows(out)[0]["epoch"] == 1
    assert (out / "result.json").exists()


@pytest.fixture
def fit(small, small_networks, one_thread, folder, tmp_path, monkeypatch):
    """``fit("fgsm", settings)``: train in this process; returns what an adapter returns."""
    from yapf.yapflib import yapf_api

    monkeypatch.setattr(yapf_api, "FormatCode", small.unformatted)

    def train(method, *settings, epochs=1, out=tmp_path / "run", **request):
        from aal_bench.adapters.detection import ObjectDetection
        from aal_bench.resolve import Request, resolve
        from aal_bench.runner import build_method, build_update

        given = ("data.size=264", "detection.base_batch=2", *settings)
        run = resolve(
            Request(
                "voc-format",
                method=method,
                classes="cat,dog",
                epochs=epochs,
                batch_size=BATCH,
                device="cpu",
                precision="fp32",
                settings=given,
                **request,
            )
        )
        adapter, chosen = ObjectDetection(run, folder), build_method(run)
        out.mkdir(exist_ok=True)
        return adapter.fit(chosen, build_update(run), chosen.build(adapter.build()), out)

    return train


def test_a_diverging_run_stops_with_the_step_and_saves_nothing(fit, tmp_path):
    with pytest.raises(RunFailed) as caught:
        fit("standard", "train.lr=1e12", "train.grad_clip=1e30", "train.warmup_epochs=0")
    told = str(caught.value)
    assert told.startswith("the loss is not finite at step ")
    assert f"of {TRAIN // BATCH} (epoch 1; no epoch is saved)" in told
    assert "lower train.lr, or train.grad_clip, or raise train.warmup_epochs" in told
    assert not list(tmp_path.rglob("epoch_*.pth"))
    assert not list(tmp_path.rglob("best.pt"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_weights_that_broke_in_the_last_step_are_not_saved_either(fit, tmp_path, monkeypatch):
    """The loss of a step is of the weights before it."""
    from aal_bench.detection.hooks import StopOnBadLoss

    last = TRAIN // BATCH - 1
    before = StopOnBadLoss.after_train_iter

    def broken(self, runner, batch_idx, data_batch=None, outputs=None):
        before(self, runner, batch_idx, data_batch, outputs)
        if batch_idx == last:
            with torch.no_grad():
                runner.model.backbone.conv1.weight[0] = torch.nan

    monkeypatch.setattr(StopOnBadLoss, "after_train_iter", broken)
    with pytest.raises(RunFailed, match=f"the weights are not finite at step {last + 1} of 3"):
        fit("standard")
    assert not list(tmp_path.rglob("epoch_*.pth"))


def test_a_remainder_of_one_is_dropped(fit, tmp_path):
    """Batch norm on the 1 x 1 map needs two images; 5 are 2 + 2 + 1."""
    for count, steps in ((5, 2), (4, 2), (3, 1)):
        record = fit("standard", limit_train=count, out=tmp_path / str(count)).record
        assert (record["images"], record["steps"]) == (count, steps)


def test_the_rate_follows_batch_warm_up_and_the_method_knows_it(fit, monkeypatch):
    """A16: AAL's xi1 is the optimiser's rate of this very step, scaled by the batch."""
    from aal_bench.methods.aal import AALFGSM

    seen, attack = [], AALFGSM.attack

    def noted(self, model, batch, objective):
        seen.append(batch._replace(x=None, targets=None))
        return attack(self, model, batch, objective)

    monkeypatch.setattr(AALFGSM, "attack", noted)
    fit(
        "aal-fgsm",
        "train.lr=0.004",
        "train.warmup_epochs=1",
        "train.milestones=[0.5]",
        "detection.base_batch=4",
        epochs=2,
    )
    scaled = 0.004 * BATCH / 4
    rates = [0.001 * scaled, scaled / 2, scaled, *[scaled / 10] * 3]
    assert [batch.lr for batch in seen] == pytest.approx(rates, rel=0.01)
    assert [batch.epoch for batch in seen] == [0, 0, 0, 1, 1, 1]
    assert [batch.progress for batch in seen] == pytest.approx([i / 6 for i in range(6)])


def test_the_seed_decides_and_nothing_else(fit, tmp_path):
    ends = []
    for name, seed, drawn in (("a", 0, 5), ("b", 0, 6), ("c", 1, 5)):
        torch.manual_seed(drawn)
        ends.append(
            fit("pgd", "attack.steps=1", seed=seed, out=tmp_path / name, limit_train=2).last
        )
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not torch.equal(ends[0]["backbone.conv1.weight"], ends[2]["backbone.conv1.weight"])
