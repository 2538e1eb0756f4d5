"""Somebody's checkpoint, evaluated as a run of our own would be: small networks, real digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from aal_bench import registry
from aal_bench.adapters.attack_stage import Victim, run_stage
from aal_bench.adapters.classification import limited, make_stage
from aal_bench.config import Normalisation, read_task
from aal_bench.data.load import load
from aal_bench.errors import RunFailed, UserError
from aal_bench.evaluate import Source, evaluate
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.models import weights
from aal_bench.models.build import build
from aal_bench.resolve import Request, resolve
from aal_bench.runner import build_method
from aal_bench.toolkits import robustbench_import

COUNT, STAGES = 24, ("clean", "fgsm", "pgd-2")
NORMALISED = Normalisation(mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
EPS = ("threat.eps=1/255", "attack.step=1/510")


@pytest.fixture(scope="module")
def task():
    return resolve(request()).task


@pytest.fixture(scope="module")
def data():
    return load(read_task(registry.task_file("digits")), None)


def request(**options: Any) -> Request:
    values: dict[str, Any] = {
        "task": "digits",
        "protocol": ",".join(STAGES),
        "limit_eval": COUNT,
        "device": "cpu",
        "precision": "fp32",
        "settings": (*EPS, "evaluation.batch_size=10"),
    }
    return Request(**(values | options))


def source(checkpoint=None, robustbench=None, normalise=None) -> Source:
    return Source(checkpoint, robustbench, normalise)


def fit_head(network: nn.Module, head: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> None:
    """Solve the last layer in closed form on what reaches it: a fair classifier, no training."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(x)
        handle.remove()
        f = torch.cat([seen[0], torch.ones(len(x), 1)], 1).double()
        ridge = f.T @ f + 1e-3 * torch.eye(f.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(ridge, f.T @ nn.functional.one_hot(y, 10).double()).float()
        head.weight.copy_(20 * solved[:-1].T)
        head.bias.copy_(20 * solved[-1])


def classifier(data, method="standard", normalisation=NORMALISED) -> nn.Module:
    torch.manual_seed(0)
    run = resolve(request(method=method))
    model = build_method(run).build(build("cnn4-32", 10, 16, normalisation)).eval()
    order = torch.arange(1000)
    x, y = data.train.pixels(order) / 255, data.train.labels[order]
    fit_head(model, model.network.classifier, x, y)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def plain(data):
    """An ungated classifier of digits."""
    torch.set_num_threads(1)
    return classifier(data)


def save_ours(path, model, method="standard", **changes):
    described = {
        "model": "cnn4-32",
        "classes": 10,
        "size": 16,
        "normalisation": NORMALISED.model_dump(mode="json"),
        "method": method,
        "options": resolve(request(method=method)).method.options,
    }
    weights.save(path, model.state_dict(), weights.Described(**(described | changes)))
    return path


def attacked(model, task, data) -> Evidence:
    """The same stages on the model itself, without file, folder or runner."""
    split = limited(data.test, COUNT)
    evidence = Evidence(split.origin.numpy(), split.labels.numpy())
    for name in STAGES:
        victim = Victim(model, split, torch.device("cpu"), 10)
        run_stage(make_stage(name, task), victim, evidence, lambda *_: None, lambda *_: None)
    return evidence


def assert_evidence(folder, expected: Evidence):
    found = Evidence.load(folder / "evidence.npz")
    np.testing.assert_array_equal(found.clean_pred, expected.clean_pred)
    for stage in expected.stages:
        for column in ("pred", "ok", "norm", "forwards", "backwards"):
            np.testing.assert_array_equal(
                found.column(stage, column), expected.column(stage, column), err_msg=stage
            )
    assert 0 < expected.robust().sum() < expected.clean_correct().sum()


# ---- what can be evaluated --------------------------------------------------------------------


def test_our_checkpoint_needs_no_word_about_itself(data, task, tmp_path):
    """Gate, normalisation and options come out of the file."""
    model = classifier(data, "aal-fgsm")
    path = save_ours(tmp_path / "model.safetensors", model, "aal-fgsm")
    evaluate(request(), source(path), tmp_path / "out")
    assert_evidence(tmp_path / "out", attacked(model, task, data))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "success"
    assert record["identity"]["method"]["name"] == "aal-fgsm"
    block = json.loads((tmp_path / "out" / "result.json").read_text())["model"]
    assert block["checkpoint"]["sha256"] == sha256_file(path)
    assert block["normalisation"]["mean"] == [0.3, 0.3, 0.3]
    assert block["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert (tmp_path / "out" / "report.md").exists()


def test_a_foreign_checkpoint_is_what_model_and_normalise_say(plain, data, task, tmp_path):
    path = tmp_path / "theirs.pt"
    state = {f"module.{key}": value for key, value in plain.network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    evaluate(request(model="cnn4-32"), source(path, normalise="0.3/0.4"), tmp_path / "out")
    assert_evidence(tmp_path / "out", attacked(plain, task, data))


BUILDER = """
import torch
from aal_bench.config import Normalisation
from aal_bench.models.build import build as registered

def build(classes, size):
    torch.rand(3)  # builders draw numbers
    model = registered("cnn4-32", classes, size, Normalisation(mean=[.3] * 3, std=[.4] * 3))
    model.load_state_dict(torch.load({path!r}, weights_only=True))
    return model
"""


def test_a_builder_of_ones_own_brings_its_weights(plain, data, task, tmp_path, capsys):
    state, out = tmp_path / "state.pt", tmp_path / "out"
    torch.save(plain.state_dict(), state)
    (tmp_path / "mine.py").write_text(BUILDER.replace("{path!r}", repr(str(state))))
    asked = request(model=f"{tmp_path / 'mine.py'}:build")
    evaluate(asked, source(), out)
    assert_evidence(out, attacked(plain, task, data))
    capsys.readouterr()
    evaluate(asked, source(), out)
    assert "finished earlier, nothing to do" in capsys.readouterr().out
    # Other weights under the same name are another model, and never the old result.
    torch.save({key: value * 2 for key, value in plain.state_dict().items()}, state)
    with pytest.raises(UserError, match=r"holds another configuration: .*checkpoint"):
        evaluate(asked, source(), out)


def test_the_command_line_on_two_threads_gives_the_same_evidence(plain, data, task, tmp_path):
    path = save_ours(tmp_path / "model.safetensors", plain)
    settings = [part for setting in request().settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "aal_bench.cli", "evaluate", "digits", "--checkpoint", path]
    command += ["--protocol", ",".join(STAGES), "--limit-eval", COUNT, "--out", tmp_path / "out"]
    done = subprocess.run(
        [str(part) for part in [*command, "--device", "cpu", *settings]],
        env=os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_evidence(tmp_path / "out", attacked(plain, task, data))


def test_by_default_the_folder_is_named_after_the_file_and_its_hash(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_ours(tmp_path / "champion.safetensors", plain)
    evaluate(request(protocol="clean,fgsm", limit_eval=10), source(path))
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert folder.name == "evaluate-champion"
    assert [run.name[:8] for run in folder.iterdir()] == [sha256_file(path)[:8]]


# ---- what is bad input: one line, and nothing written -----------------------------------------


def refused(match, out, *arguments, lines=1):
    with pytest.raises(UserError, match=match) as error:
        evaluate(*arguments, out)
    assert len(str(error.value).splitlines()) <= lines
    assert not out.exists()


def test_what_is_to_be_evaluated_must_be_clear(plain, tmp_path):
    out, path = tmp_path / "out", save_ours(tmp_path / "model.safetensors", plain)
    refused(
        "give --checkpoint FILE, --robustbench NAME or --model module:builder",
        out,
        request(model="cnn4"),
        source(),
    )
    refused("give --checkpoint FILE", out, request(), source())
    whole = "Wong2020Fast is a whole model, its normalisation included: omit"
    refused(f"{whole} --checkpoint", out, request(), source(path, "Wong2020Fast"))
    refused(
        f"{whole} --model and --normalise",
        out,
        request(model="cnn4"),
        source(robustbench="Wong2020Fast", normalise="task"),
    )
    refused(
        "task digits: RobustBench has no models for it",
        out,
        request(),
        source(robustbench="Wong2020Fast"),
    )
    refused(r"absent\.pt: no such checkpoint", out, request(), source(tmp_path / "absent.pt"))


def test_a_foreign_file_must_be_described(plain, tmp_path):
    path, out = tmp_path / "theirs.pt", tmp_path / "out"
    torch.save(plain.network.state_dict(), path)
    refused("does not describe itself; say what it is with --model", out, request(), source(path))
    refused(r"unknown model 'cnn5'\. Did you mean cnn4", out, request(model="cnn5"), source(path))
    refused(
        r"shapes differ: features\S+ \(32,\) in the file, \(16,\) in the model",
        out,
        request(model="cnn4-16"),
        source(path),
    )
    refused(
        r"not weights of 'resnet50': the model has bn1\.bias, .*the file has",
        out,
        request(model="resnet50"),
        source(path),
    )
    path.write_text("<!doctype html><title>Quota exceeded</title>")
    refused("an HTML page, not weights", out, request(), source(path))
    refused("an HTML page, not weights", out, request(model="cnn4-32"), source(path))


def test_a_file_that_describes_itself_is_believed_and_not_overruled(plain, tmp_path):
    out, path = tmp_path / "out", save_ours(tmp_path / "model.safetensors", plain)
    refused(
        "says its own normalisation: omit --normalise",
        out,
        request(),
        source(path, normalise="none"),
    )
    refused("shapes differ", out, request(model="cnn4-64"), source(path))
    refused("says that its method is 'standard'", out, request(method="trades"), source(path))
    refused(
        "says its own method options: omit their --set",
        out,
        request(settings=("method.craft_bn=train",)),
        source(path),
    )
    five = save_ours(tmp_path / "five.safetensors", plain, classes=5)
    refused(
        "a model of 5 classes and 16 px, task digits has 10 and 16 px", out, request(), source(five)
    )
    large = save_ours(tmp_path / "large.safetensors", plain, size=32)
    refused("a model of 10 classes and 32 px, task digits", out, request(), source(large))
    odd = save_ours(tmp_path / "odd.safetensors", plain, "aal-fgsm", options={"xi3": 1})
    refused(r"odd\.safetensors: method aal-fgsm: unknown key 'xi3'", out, request(), source(odd))
    lost = save_ours(tmp_path / "lost.safetensors", plain)
    content = lost.read_bytes().replace(b'\\"standard\\"', b'\\"slandard\\"')
    lost.write_bytes(content)
    refused(r"unknown method 'slandard'\. Did you mean standard", out, request(), source(lost))


def test_a_file_cannot_have_code_imported_that_nobody_typed(plain, tmp_path):
    proof = tmp_path / "ran"
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(proof)!r}, 'w').close()\n")
    path = tmp_path / "model.safetensors"
    for kind in ("method", "model"):
        said = {"method": "standard", "model": "cnn4-32"} | {kind: f"{code}:Evil"}
        normalisation = NORMALISED.model_dump(mode="json")
        stated = weights.Described(
            **said, classes=10, size=16, normalisation=normalisation, options={}
        )
        weights.save(path, plain.state_dict(), stated)
        refused(f"if you trust that code, add --{kind}", tmp_path / "out", request(), source(path))
    assert not proof.exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("imagenet", "write none, task or MEAN/STD"),
        ("0.5", "write none, task or MEAN/STD"),
        ("0.5/0.2/0.1", "write none, task or MEAN/STD"),
        ("a,b,c/1,1,1", "write none, task or MEAN/STD"),
        ("nan/0.2", "write none, task or MEAN/STD"),
        ("0.5/inf", "write none, task or MEAN/STD"),
        ("/", "write none, task or MEAN/STD"),
        ("0.5/0", "std must be positive"),
        ("0.5,0.5/0.2", "--normalise 0.5,0.5/0.2: mean"),
    ],
)
def test_a_normalisation_that_is_none(plain, tmp_path, text, match):
    path = tmp_path / "theirs.pt"
    torch.save(plain.network.state_dict(), path)
    refused(match, tmp_path / "out", request(model="cnn4-32"), source(path, normalise=text))


@pytest.mark.parametrize(("text", "mean"), [("task", 0.4914), ("none", 0.0), (None, 0.0)])
def test_the_tasks_normalisation_and_none(tmp_path, text, mean):
    """Of cifar10, whose task names one; the layer is seen before any image is read."""
    from aal_bench.evaluate import _resolved

    run = _resolved(request(task="cifar10", model="resnet18"), source(normalise=text), None)
    assert run.task.normalisation.mean[0] == mean


def test_near_chance_names_what_is_usually_wrong(plain, tmp_path):
    """Labels in another order: a fair classifier of other names."""
    state = plain.network.state_dict()
    state["classifier.weight"] = state["classifier.weight"].roll(1, 0)
    state["classifier.bias"] = state["classifier.bias"].roll(1, 0)
    path, out = tmp_path / "theirs.pt", tmp_path / "out"
    torch.save(state, path)
    asked = request(model="cnn4-32"), source(path, normalise="0.3/0.4"), out
    with pytest.raises(UserError, match=r"near chance .10\.0%.: wrong --normalise .*label order"):
        evaluate(*asked)
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["error"]["stage"]) == ("error", "clean")
    assert Evidence.load(out / "evidence.npz").stages == ()  # nothing was attacked
    with pytest.raises(UserError, match="near chance"):
        evaluate(*asked, resume=True)


def test_weights_that_are_no_numbers_fail_the_run(plain, tmp_path):
    state = plain.network.state_dict()
    state["classifier.bias"] = state["classifier.bias"] * torch.nan
    path, out = tmp_path / "theirs.pt", tmp_path / "out"
    torch.save(state, path)
    with pytest.raises(RunFailed, match="stage clean: the model's logits are not finite"):
        evaluate(request(model="cnn4-32"), source(path, normalise="0.3/0.4"), out)
    assert json.loads((out / "run.json").read_text())["status"] == "error"
    assert not (out / "result.json").exists()


# ---- RobustBench ------------------------------------------------------------------------------

ENTRY = "Sehwag2021Proxy_R18"


@pytest.fixture
def pictures(tmp_path):
    """Two test images and one for training of each of ten classes, 32 px of noise."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 1), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "pictures" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_an_entry_of_robustbench_with_weights_on_the_disk(pictures, tmp_path, monkeypatch):
    """Put where RobustBench looks, they are loaded and attacked; these know nothing, and it shows.

    The clean predictions are those of the zoo's own architecture with the same weights.
    """
    monkeypatch.setenv("AAL_BENCH_CACHE", str(tmp_path / "cache"))
    robustbench_import.repair()
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.model_zoo.models import model_dicts

    torch.manual_seed(0)
    network = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf][ENTRY]["model"]().eval()
    path = tmp_path / "cache" / "robustbench" / "cifar10" / "Linf" / f"{ENTRY}.pt"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)

    out, asked = tmp_path / "out", request(task="cifar10", settings=(), protocol="clean,fgsm")
    with pytest.raises(UserError, match="near chance"):
        evaluate(asked, source(robustbench=ENTRY), out, pictures)
    evidence = Evidence.load(out / "evidence.npz")
    test = load(resolve(asked).task, pictures).test
    predicted = network(test.pixels(torch.arange(20)) / 255).argmax(1)
    np.testing.assert_array_equal(evidence.clean_pred, predicted)
    record = json.loads((out / "run.json").read_text())
    assert record["identity"]["model"]["name"] == f"robustbench:{ENTRY}"
    assert record["checkpoint"] == sha256_file(path)


def test_an_unknown_entry_of_robustbench(pictures, tmp_path):
    refused(
        r"no cifar10 Linf entry 'Wong2021Fast'\. Did you mean Wong2020Fast",
        tmp_path / "out",
        request(task="cifar10"),
        source(robustbench="Wong2021Fast"),
        lines=2,
    )
