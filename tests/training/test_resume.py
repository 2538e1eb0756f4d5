"""Killed with SIGKILL at any moment and resumed, training ends bit for bit where it would have."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from aal_bench.training import checkpoint

CASES: dict[str, dict[str, Any]] = {
    "pgd-ema": {"method": "pgd", "ema": 0.8},
    "aal-pgd": {"method": "aal-pgd"},
    "trades-awp": {"method": "trades", "update": "awp"},
    "free": {"method": "free", "settings": ["replays=3"]},
    "lbgat": {"method": "lbgat", "settings": ["beta=6"]},
    "iaat": {"method": "iaat", "settings": ["warmup=0.3"]},
    "atta": {"method": "atta", "settings": ["reset=2"]},
    "again-mart": {"method": "again-mart", "settings": ["attack.steps=1"]},
    "las-at": {"method": "las-at", "settings": ["interval=3", "strategy_momentum=0.9"]},
    "ier": {"task": "glyphs", "method": "ier"},
    "protonet": {
        "task": "glyphs",
        "method": "protonet",
        "batch_size": 1,
        "settings": ["episodes_per_epoch=8", "train_ways=5", "train_queries=2"],
    },
    "aal-rfs-F3": {
        "task": "glyphs",
        "method": "aal-rfs",
        "settings": ["reading=F3", "finetune=0.4", "finetune_queries=2"],
    },
}
KILLS = 4


@pytest.fixture(scope="module")
def server(toy):
    """A process that trains in processes of its own, one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, toy.__file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def begin(server, **arguments) -> int:
    print(json.dumps(arguments), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())["pid"]


def ended(server) -> int:
    return json.loads(server.stdout.readline())["status"]


def kill_while_training(server, folder: Path, moment: float, **arguments) -> bool:
    """Kill the process `moment` seconds after its first checkpoint; False: it was over by then."""
    path = folder / "checkpoints" / "state.pt"
    before = path.stat().st_mtime_ns if path.exists() else None
    pid = begin(server, folder=str(folder), **arguments)
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.001)
    time.sleep(moment)
    with suppress(ProcessLookupError):  # it was over already
        os.kill(pid, signal.SIGKILL)
    return ended(server) == signal.SIGKILL


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list | tuple):
        return [without_seconds(part) for part in value]
    return value


def assert_identical(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_identical(one, other, f"{where}[{number}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def everything(folder: Path) -> dict:
    """Weights, optimiser, average, best, generators and metrics, but for the seconds they took."""
    state = checkpoint.load(folder / "checkpoints" / "state.pt")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert json.loads(state.pop("rows")) == rows
    return without_seconds({**state, "metrics": rows})


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_where_an_uninterrupted_one_does(server, tmp_path, case):
    settings = ["train.checkpoint_every=2", "train.validate_every=2"]
    arguments = {**CASES[case], "settings": [*settings, *CASES[case].get("settings", ())]}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begin(server, folder=str(whole), **arguments)
    assert ended(server) == 0
    expected = everything(whole)
    assert expected["step"] == 3 * 8
    assert len(expected["metrics"]) == 3

    moments, steps = random.Random(case), []
    training = checkpoint.load(whole / "checkpoints" / "state.pt")["seconds"]
    for _ in range(KILLS):
        # Within about two of the 24 steps, were it as busy a machine as a moment ago.
        moment = moments.uniform(0, training / 12)
        if not kill_while_training(server, killed, moment, **arguments):
            break
        steps.append(checkpoint.load(killed / "checkpoints" / "state.pt")["step"])
    assert len(steps) >= 2, "the run was over before it could be killed twice"
    assert steps == sorted(set(steps)), "every process continued where the one before was killed"
    begin(server, folder=str(killed), **arguments)
    assert ended(server) == 0
    assert_identical(everything(killed), expected)
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["state.pt"]


REMEMBERING = """
import pathlib
import torch
from aal_bench.methods.fgsm import FGSM

class Remembering(FGSM):
    def __init__(self, options, threat):
        super().__init__(options, threat)
        self.seen = torch.zeros(200)
        self.teacher = torch.nn.Linear(10, 10)

    def extra_modules(self):
        return {"teacher": self.teacher}

    def loss(self, model, batch, x_adv, objective):
        taught = self.teacher(model(batch.x))
        weight = 1 + self.seen[batch.idx, None]
        return objective(x_adv, batch.targets) + (weight * taught.square()).mean()

    def after_step(self, batch, x_adv):
        self.seen[batch.idx] += torch.rand(len(batch.idx))
        if batch.progress > 0.6 and pathlib.Path("interrupt").exists():
            raise KeyboardInterrupt

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
"""


def test_per_sample_state_and_extra_networks_continue_too(toy, tmp_path, monkeypatch):
    """A method of one's own, stopped by Ctrl-C in the middle of an epoch."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(REMEMBERING)
    arguments = {"method": "mine.py:Remembering", "settings": ["train.checkpoint_every=3"]}
    torch.manual_seed(0)
    toy.train(folder=tmp_path / "whole", **arguments)
    Path("interrupt").touch()
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        toy.train(folder=tmp_path / "stopped", **arguments)
    Path("interrupt").unlink()
    stopped = everything(tmp_path / "stopped")
    assert stopped["step"] == 15
    assert stopped["method"]["seen"].count_nonzero() == 118
    assert stopped["extra"].keys() == {"teacher"}
    toy.train(folder=tmp_path / "stopped", **arguments)
    expected = everything(tmp_path / "whole")
    assert_identical(everything(tmp_path / "stopped"), expected)
    assert expected["method"]["seen"].max() > 1


def test_the_seed_decides_and_nothing_else(toy, tmp_path):
    """The comparison above can fail: another seed gives other weights, the same one the same."""
    runs = [
        toy.train(folder=tmp_path / name, method="pgd", epochs=1, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for key in runs[0].last:
        assert torch.equal(runs[0].last[key], runs[1].last[key])
    assert not torch.equal(runs[0].last["network.0.weight"], runs[2].last["network.0.weight"])


def test_a_finished_run_trains_no_more_and_mends_its_metrics(toy, tmp_path):
    """Killed between the last checkpoint and the metrics, the last row must not be lost."""
    arguments = {"method": "fgsm", "epochs": 2}
    first = toy.train(folder=tmp_path, **arguments)
    metrics = tmp_path / "metrics.jsonl"
    rows = metrics.read_text()
    metrics.write_text(rows.splitlines()[0] + "\n")
    (tmp_path / "checkpoints" / ".state.pt.abc.tmp").write_bytes(
        b"half"
    )  # a process killed writing
    again = toy.train(folder=tmp_path, **arguments)
    assert metrics.read_text() == rows
    assert again.record | {"peak_memory_bytes": 0} == first.record | {"peak_memory_bytes": 0}
    assert all(torch.equal(again.last[key], first.last[key]) for key in first.last)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 4}, {"ema": 0.9}, {"settings": ["train.lr=0.05"]}, {"method": "fgsm"}],
    ids=str,
)
def test_a_checkpoint_of_another_configuration_is_refused(make_loop, tmp_path, change):
    from aal_bench.errors import UserError

    make_loop(method="standard", epochs=1).fit()
    path = tmp_path / "checkpoints" / "state.pt"
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"state\.pt belongs to another configuration.*--out"):
        make_loop(**{"method": "standard", "epochs": 1, **change}).fit()
    assert path.read_bytes() == before
    shutil.rmtree(tmp_path / "checkpoints")
    make_loop(**{"method": "standard", "epochs": 1, **change}).fit()
