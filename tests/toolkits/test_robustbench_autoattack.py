"""robustbench's own `load_model` and `benchmark()`, run through the bridged `autoattack`."""

import json
import subprocess
import sys

import pyautoattack
import pytest
import torch
from torch import nn

from aal_bench.toolkits import (
    robustbench_autoattack,
    robustbench_import,
    robustbench_overwritten,
    robustbench_state,
)


@pytest.fixture
def robustbench():
    robustbench_overwritten.repair()  # names the command, if the installation is at fault
    robustbench_autoattack.repair()
    robustbench_import.repair()
    robustbench_state.repair()
    import robustbench

    return robustbench


@pytest.fixture
def zoo(robustbench, tmp_path):
    """A model folder as robustbench lays it out, with one entry's weights: nothing to download."""
    from robustbench.model_zoo.architectures.resnet import ResNet18

    torch.manual_seed(0)
    weights = ResNet18().state_dict()
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    torch.save({"state_dict": weights}, folder / "Sehwag2021Proxy_R18.pt")
    return tmp_path, weights


@pytest.fixture
def images(monkeypatch, robustbench):
    """Replace robustbench's CIFAR-10 loader by a function that fills it from memory."""
    from robustbench.data import _clean_dataset_loaders
    from robustbench.model_zoo.enums import BenchmarkDataset

    def serve(x, y):
        def load(n, folder, transform):
            return x[:n], y[:n]

        monkeypatch.setitem(_clean_dataset_loaders, BenchmarkDataset.cifar_10, load)

    return serve


def test_benchmark_attacks_a_loaded_model_and_keeps_its_state(robustbench, zoo, images, tmp_path):
    folder, weights = zoo
    model = robustbench.load_model("Sehwag2021Proxy_R18", model_dir=folder, threat_model="Linf")
    assert not model.training
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)

    # right on one image of three; at eps 0.5 APGD-CE turns it over, whatever seed the clock gives
    x = torch.rand(3, 3, 32, 32)
    y = model(x).argmax(1)
    y[1:] = (y[1:] + 1) % 10
    images(x, y)
    log, state = tmp_path / "attack.log", tmp_path / "state.json"
    clean, robust = robustbench.benchmark(
        model, n_examples=3, eps=0.5, batch_size=3, log_path=log, aa_state_path=state
    )

    assert clean == pytest.approx(1 / 3)
    assert robust == 0.0
    assert json.loads(state.read_text())["_robust_flags"] == [False, False, False]
    assert "robust accuracy after APGD-CE: 0.00%" in log.read_text()


def test_benchmark_counts_the_survivors_of_all_four_attacks(robustbench, images, capsys):
    """A model that hardly looks at its input survives: robust accuracy is clean accuracy."""

    class Steadfast(nn.Module):
        def forward(self, x):
            return torch.arange(10.0) + 1e-3 * x.flatten(1)[:, :10]

    images(torch.rand(4, 3, 4, 4), torch.tensor([9, 9, 9, 0]))
    clean, robust = robustbench.benchmark(Steadfast().eval(), n_examples=4, eps=1e-3, batch_size=4)
    assert (clean, robust) == (0.75, 0.75)
    printed = capsys.readouterr().out
    for attack in ("APGD-CE", "APGD-T", "FAB-T", "SQUARE"):
        assert f"robust accuracy after {attack}: 75.00%" in printed


def linear(classes=5):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, classes)).eval()


def test_bridge_finds_the_adversarials_that_pyautoattack_finds(robustbench):
    from autoattack import AutoAttack

    model, x = linear(), torch.rand(6, 3, 6, 6)
    y = model(x).argmax(1)
    chosen = ["apgd-ce", "square"]
    bridged = AutoAttack(model, "Linf", 0.02, 0, False, chosen, "custom", device="cpu")
    plain = pyautoattack.AutoAttack(
        model, norm="Linf", eps=0.02, seed=0, attacks=chosen, version="custom", device="cpu"
    )
    bridged.square.n_queries = plain.square.n_queries = 20  # the attacks are reached by name

    expected, labels = plain.run_standard_evaluation(x, y, batch_size=4)
    found = bridged.run_standard_evaluation(x, y, bs=4)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    pair = bridged.run_standard_evaluation(x, y, bs=4, return_labels=True)
    assert torch.equal(pair[1], labels)
    assert (expected != x).any()  # the comparison is not of two failures

    alone = bridged.run_standard_evaluation_individual(x, y, bs=6)
    assert list(alone) == chosen
    assert bridged.attacks_to_run == chosen


def test_bridge_keeps_the_original_constructor(robustbench):
    from autoattack import AutoAttack

    attack = AutoAttack(linear(), eps=0.1, device="cpu", verbose=False)
    assert attack.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    attack.set_version("rand")
    assert attack.attacks_to_run == ["apgd-ce", "apgd-dlr"]
    with pytest.raises(ValueError, match="custom"):
        AutoAttack(linear(), attacks_to_run=["apgd-ce"], device="cpu")
    with pytest.raises(NotImplementedError, match="PyTorch models only"):
        AutoAttack(linear(), is_tf_model=True)


def test_verbose_prints_and_logs_like_the_original(robustbench, tmp_path, capsys):
    from autoattack import AutoAttack

    model, x = linear(), torch.rand(2, 3, 6, 6)
    y = model(x).argmax(1)
    for verbose in (True, False):
        log = tmp_path / f"{verbose}.log"
        attack = AutoAttack(
            *(model, "Linf", 0.5, 0, verbose, ["apgd-ce"], "custom"), device="cpu", log_path=log
        )
        attack.run_standard_evaluation(x, y)
        printed = capsys.readouterr().out
        assert ("initial accuracy: 100.00%" in printed) == verbose
        assert ("initial accuracy: 100.00%" in log.read_text()) == verbose


def test_state_of_a_finished_evaluation_is_read_and_an_unfinished_one_refused(
    robustbench, tmp_path
):
    from autoattack import AutoAttack
    from autoattack.state import EvaluationState

    model, x = linear(), torch.rand(3, 3, 6, 6)
    y = model(x).argmax(1)
    attack = AutoAttack(model, "Linf", 1e-6, 0, False, ["apgd-ce"], "custom", device="cpu")
    done = tmp_path / "done.json"
    attack.run_standard_evaluation(x, y, state_path=done)
    flags = EvaluationState.from_disk(done).robust_flags
    assert flags is not None
    assert flags.tolist() == [True] * 3

    assert torch.equal(attack.run_standard_evaluation(x, y, state_path=done), x)
    attack.attacks_to_run = ["apgd-ce", "square"]
    with pytest.raises(NotImplementedError, match="cannot resume an unfinished evaluation"):
        attack.run_standard_evaluation(x, y, state_path=done)


def test_repair_steps_aside_for_the_original(tmp_path, monkeypatch):
    for name in ("autoattack", "autoattack.state"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert robustbench_autoattack.fault_present()

    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text("AutoAttack = 'the original'")
    monkeypatch.syspath_prepend(tmp_path)
    assert not robustbench_autoattack.fault_present()
    robustbench_autoattack.repair()
    assert "autoattack" not in sys.modules
    from autoattack import AutoAttack

    assert AutoAttack == "the original"
    monkeypatch.delitem(sys.modules, "autoattack")


def test_fault_is_real_and_the_import_is_quiet_after_repair():
    broken = subprocess.run(
        [sys.executable, "-c", "import autoattack"], capture_output=True, text=True, check=False
    )
    assert "No module named 'autoattack'" in broken.stderr
    code = (
        "from aal_bench.toolkits import robustbench_import as r; assert r.fault_present();"
        "r.repair(); assert not r.fault_present(); r.repair();"
        "import robustbench; robustbench.benchmark"
    )
    mended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (mended.returncode, mended.stderr) == (0, "")
