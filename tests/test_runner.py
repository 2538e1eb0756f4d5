"""A run from the command line to its record: finished, killed, cancelled, failed, and continued.

The network is a linear one of our own, so that a run takes a second; everything else is real.
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from aal_bench.cli import main
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.registry import task_file

# The network does to its process what TROUBLE says: "SIGKILL pgd-3 path/to/run.json" sends the
# signal in the second batch of stage pgd-3, "raise train path/to/run.json" raises in training.
MODEL = """
import json, os, signal
from pathlib import Path
from torch import nn

class Linear(nn.Sequential):
    def forward(self, x):
        what, _, where = os.environ.get("TROUBLE", "").partition(" ")
        stage, _, path = where.partition(" ")
        if what and Path(path).exists():
            record = json.loads(Path(path).read_text())
            begun = stage == "train" or stage in record["stages"]
            if record.get("stage") == stage and begun:
                if what == "raise":
                    raise RuntimeError("mat1 and mat2 cannot be multiplied")
                os.kill(os.getpid(), getattr(signal, what))
        return super().forward(x)

def build(classes, size):
    return Linear(nn.Flatten(), nn.Linear(3 * size * size, classes))
"""
OPTIONS = (
    *("--method", "pgd", "--epochs", "3", "--limit-train", "512", "--limit-eval", "48"),
    *("--protocol", "clean,fgsm,pgd-3", "--precision", "fp32", "--device", "cpu"),
    *("--set", "evaluation.batch_size=8", "--set", "train.validation=20"),
    *("--set", "threat.eps=2/255", "--set", "attack.step=1/255"),
)
STAGES = ("clean", "fgsm", "pgd-3")


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes started here: sums of floats depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "linear.py"
    path.write_text(MODEL)
    return f"{path}:build"


def arguments(model, out, *more):
    return ["run", "digits", "--model", model, "--out", str(out), *OPTIONS, *more]


def invoke(*args):
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def record(out):
    return json.loads((out / "run.json").read_text())


def contents(folder):
    """Every file with its bytes' hash and its time of change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (sha256_file(path), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that nobody disturbed, and what it printed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, invoke(*arguments(model, out))


def assert_same_result(out, reference):
    """Equal rows, weights, adversarials and numbers; only times may differ."""
    with np.load(out / "evidence.npz") as one, np.load(reference / "evidence.npz") as two:
        assert one.files == two.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], two[name])
    with np.load(out / "adversarials.npz") as one, np.load(reference / "adversarials.npz") as two:
        for name in ("index", "stage", "x"):
            np.testing.assert_array_equal(one[name], two[name])
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (out, reference))
    assert one["metrics"] == two["metrics"]
    assert one["run_hash"] == two["run_hash"]
    assert one["model"]["checkpoint"] == two["model"]["checkpoint"]
    for stages in (one["evaluation"], two["evaluation"]):
        for stage in stages:
            stage.pop("wall_seconds")
    assert one["evaluation"] == two["evaluation"]


# ---- a finished run ------------------------------------------------------------------------------


def test_a_run_leaves_everything_that_the_design_names(whole):
    out, done = whole
    assert done.exit_code == 0
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found >= {
        *("run.json", "metrics.jsonl", "model.safetensors", "evidence.npz", "result.json"),
        *("adversarials.npz", "report.md", "figures/training.png", "figures/accuracy_eps.png"),
        *("checkpoints/last.safetensors", "checkpoints/best.safetensors"),
    }
    assert not [name for name in found if name.endswith(".tmp")]


def test_its_record_is_the_resolved_configuration_with_status_and_environment(whole):
    out, _ = whole
    saved = record(out)
    assert (saved["status"], saved["error"], saved["seed"]) == ("success", None, 0)
    assert saved["identity"]["task"]["train"]["epochs"] == 3
    assert saved["identity"]["model"]["name"] == "linear.py:build"
    assert len(saved["identity"]["model"]["source"]) == 64
    assert saved["environment"]["torch"] == torch.__version__
    assert saved["command"][0] == "aal-bench"
    result = json.loads((out / "result.json").read_text())
    assert result["task"]["hash"] == saved["task_hash"]
    assert result["training"]["config_hash"] == saved["config_hash"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert saved["training"]["final"] == rows[-1]


def test_the_numbers_are_those_of_the_evidence(whole):
    out, done = whole
    evidence = Evidence.load(out / "evidence.npz")
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    assert len(evidence) == 48
    clean = float((evidence.clean_pred == evidence.label).mean())
    standing = evidence.clean_pred == evidence.label
    for stage in ("fgsm", "pgd-3"):
        standing = standing & (evidence.column(stage, "pred") == evidence.label)
    assert 0 < standing.mean() < clean < 1
    assert metrics["clean"]["value"] == pytest.approx(clean)
    assert metrics["robust"]["value"] == pytest.approx(standing.mean())
    assert f"{clean:.1%}" in done.stdout


def test_it_prints_what_it_does_and_not_more(whole):
    out, done = whole
    lines = done.stdout.splitlines()
    assert "task digits (Linf 2/255, 360 test images of which 48, embedded)" in lines[0]
    assert "method pgd" in lines[0]
    saved = record(out)
    expected = f"task {saved['task_hash'][:8]}  config {saved['config_hash'][:8]}  ->  {out}"
    assert lines[1] == expected
    assert lines[2].startswith("train      epoch 3/3  00:")
    assert [line.split()[1] for line in lines if line.startswith("evaluate")] == list(STAGES)
    assert "q/s" in lines[-1] + "".join(lines[3:6])
    assert str(out / "report.md") in lines[-1]
    assert len(lines) < 20
    assert done.stderr == ""  # no minute has passed


def test_an_identical_run_prints_the_table_again_and_changes_nothing(whole, model):
    out, first = whole
    before = contents(out)
    again = invoke(*arguments(model, out))
    assert again.exit_code == 0
    assert again.stdout.startswith("finished earlier, nothing to do")
    table = [line for line in first.stdout.splitlines() if line.startswith("LIMITED")]
    assert table
    assert [line for line in again.stdout.splitlines() if line.startswith("LIMITED")] == table
    assert invoke(*arguments(model, out, "--resume")).exit_code == 0
    assert contents(out) == before


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_another_configuration_in_its_folder_is_refused_with_the_fields(whole, model, resume):
    out, _ = whole
    before = contents(out)
    done = invoke(*arguments(model, out, "--set", "train.lr=0.05", "--seed", "1", *resume))
    assert done.exit_code == 2
    assert "seed (0 there, 1 here), task.train.lr (0.1 there, 0.05 here)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert contents(out) == before


# ---- killed, cancelled, failed -------------------------------------------------------------------


def test_killed_in_the_middle_of_a_stage_it_continues_to_the_same_numbers(whole, model, tmp_path):
    out = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-m", "aal_bench.cli", *arguments(model, out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TROUBLE": f"SIGKILL pgd-3 {out}/run.json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (record(out)["status"], record(out)["stage"]) == ("started", "pgd-3")
    half = Evidence.load(out / "evidence.npz")
    assert 0 < half.done("pgd-3").sum() < len(half)
    measured = half.column("pgd-3", "attacked").sum()
    assert 0 < measured <= 8

    refused = invoke(*arguments(model, out))
    assert refused.exit_code == 2
    assert "begun and not finished (status started). Add --resume" in refused.stderr

    done = invoke(*arguments(model, out, "--resume"))
    assert done.exit_code == 0
    assert "(done earlier)" in done.stdout
    assert record(out)["status"] == "success"
    assert_same_result(out, whole[0])


@pytest.mark.parametrize(
    ("trouble", "stage"), [("SIGINT", "train"), ("SIGTERM", "fgsm"), ("SIGINT", "pgd-3")]
)
def test_cancelled_it_says_how_to_continue_and_does(
    whole, model, tmp_path, monkeypatch, request, trouble, stage
):
    out = tmp_path / "run"
    # As in a terminal: a shell starts what it puts in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setenv("TROUBLE", f"{trouble} {stage} {out}/run.json")
    done = invoke(*arguments(model, out))
    assert done.exit_code == 130
    assert done.stderr == "cancelled: the same command with --resume continues\n"
    saved = record(out)
    assert (saved["status"], saved["stage"], saved["error"]) == ("cancelled", stage, None)
    assert not (out / "result.json").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    monkeypatch.delenv("TROUBLE")
    assert invoke(*arguments(model, out, "--resume")).exit_code == 0
    assert record(out)["status"] == "success"
    assert_same_result(out, whole[0])


def test_an_attack_that_raises_is_an_error_and_never_robust(whole, model, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("TROUBLE", f"raise pgd-3 {out}/run.json")
    done = invoke(*arguments(model, out))
    assert done.exit_code == 1
    message = "stage pgd-3 raised RuntimeError: mat1 and mat2 cannot be multiplied"
    assert done.stderr == f"error: {message}\n"
    saved = record(out)
    assert saved["status"] == "error"
    assert saved["error"] == {"stage": "pgd-3", "type": "RunFailed", "message": message}
    assert not (out / "result.json").exists()
    assert not (out / "report.md").exists()

    monkeypatch.delenv("TROUBLE")
    assert invoke(*arguments(model, out, "--resume")).exit_code == 0
    assert (record(out)["status"], record(out)["error"]) == ("success", None)
    assert_same_result(out, whole[0])


def test_an_error_of_ours_keeps_its_traceback_and_is_recorded(model, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("TROUBLE", f"raise train {out}/run.json")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        invoke(*arguments(model, out))
    saved = record(out)
    assert saved["status"] == "error"
    assert saved["error"]["stage"] == "train"
    assert saved["error"]["type"] == "RuntimeError"


def test_a_loss_that_is_no_number_ends_the_run_with_the_step(model, tmp_path):
    out = tmp_path / "run"
    done = invoke(*arguments(model, out, "--set", "train.lr=1e38"))
    assert done.exit_code == 1
    assert "error: the loss is not finite at step" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    saved = record(out)
    assert (saved["status"], saved["error"]["stage"]) == ("error", "train")
    assert "not finite at step" in saved["error"]["message"]
    assert not (out / "model.safetensors").exists()


# ---- smoke, own methods, other data --------------------------------------------------------------


def test_a_smoke_run_cannot_be_taken_for_a_result(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("run", "digits", "--model", model, "--smoke", "--device", "cpu")
    assert done.exit_code == 0
    (out,) = (tmp_path / "runs" / "digits" / "standard").iterdir()
    result = json.loads((out / "result.json").read_text())
    assert result["smoke"] is True
    assert result["protocol"] == "smoke"
    assert result["limit"] == result["evidence"]["rows"] == 32
    assert result["training"]["epochs"] == 1
    assert result["training"]["data"][0]["count"] <= 256
    assert "SMOKE" in (out / "report.md").read_text().splitlines()[0]
    rows = [line for line in done.stdout.splitlines() if "%" in line and "[" in line]
    assert len(rows) == 4
    assert all(line.startswith("SMOKE") for line in rows)
    assert done.stdout.startswith("SMOKE")
    again = invoke("run", "digits", "--model", model, "--smoke", "--device", "cpu")
    assert [line for line in again.stdout.splitlines() if "%" in line and "[" in line] == rows


METHOD = """
from aal_bench.methods.base import Method, Options

class Mixed(Method):
    '''Half the loss of the clean batch, half that of a shifted one.'''

    class Options(Options):
        shift: float = 0.1

    attacks = False

    def loss(self, model, batch, x_adv, objective):
        moved = (batch.x + self.options.shift).clamp(0, 1)
        return (objective(batch.x, batch.targets) + objective(moved, batch.targets)) / 2
"""


def test_a_method_of_ones_own_is_trained_and_recorded(model, tmp_path):
    (tmp_path / "mixed.py").write_text(METHOD)
    out = tmp_path / "run"
    done = invoke(
        *("run", "digits", "--model", model, "--method", f"{tmp_path}/mixed.py:Mixed", "--smoke"),
        *("--set", "shift=0.2", "--out", out, "--device", "cpu"),
    )
    assert done.exit_code == 0
    assert record(out)["identity"]["method"]["options"]["shift"] == 0.2
    assert "mixed.py:Mixed" in done.stdout
    result = json.loads((out / "result.json").read_text())
    # One pass for each of the two losses, and one backward through both.
    assert result["training"]["passes"]["forward"] == 2


def images(folder, seed):
    rng = np.random.default_rng(seed)
    for split, count in (("train", 6), ("test", 3)):
        for label in range(4):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")


def test_a_run_does_not_continue_on_other_images(model, tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "run"
    images(data, seed=0)
    text = task_file("digits").read_text()
    text = text.replace('name = "digits"', 'name = "four"').replace("classes = 10", "classes = 4")
    text = text.replace("validation = 200", "validation = 0")
    (tmp_path / "four.toml").write_text(text)
    args = ["run", tmp_path / "four.toml", "--data-dir", data, "--model", model, "--out", out]
    args += ["--epochs", "1", "--device", "cpu", "--protocol", "clean,pgd-3"]
    monkeypatch.setenv("TROUBLE", f"SIGTERM train {out}/run.json")
    assert invoke(*args).exit_code == 130
    monkeypatch.delenv("TROUBLE")

    changed = data / "test" / "class0" / "0.png"
    kept = changed.read_bytes()
    Image.new("RGB", (16, 16)).save(changed)
    done = invoke(*args, "--resume")
    assert done.exit_code == 2
    assert "begun on other test images" in done.stderr
    changed.write_bytes(kept)
    assert invoke(*args, "--resume").exit_code == 0
    assert record(out)["identity"]["task"]["name"] == "four"


def test_the_gates_of_a_network_are_on_record(tmp_path):
    """Or nobody could rebuild it from its weights: those of classes as that of attention."""
    for method in ("cas", "aal-fgsm", "fgsm"):
        arguments = ["run", "digits", "--method", method, "--model", "cnn4-8", "--smoke"]
        done = invoke(*arguments, "--limit-train", "32", "--out", str(tmp_path / method))
        assert done.exit_code == 0, done.output
        surgery = json.loads((tmp_path / method / "result.json").read_text())["model"]["surgery"]
        assert (surgery or {}).get("name") == (None if method == "fgsm" else method)
