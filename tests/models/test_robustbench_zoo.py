"""RobustBench's zoo from weights on the disk, and what is said when they are not there."""

from __future__ import annotations

import pytest
import torch

from aal_bench.errors import UserError
from aal_bench.models.robustbench_zoo import load
from aal_bench.toolkits import robustbench_import, robustbench_overwritten

ENTRY = "Sehwag2021Proxy_R18"
"""A ResNet-18."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the entry's weights belong, in a cache of this test's own; no way to the network."""
    monkeypatch.setenv("AAL_BENCH_CACHE", str(tmp_path / "cache"))
    for scheme in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(scheme.upper(), raising=False)
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    return tmp_path / "cache" / "robustbench" / "cifar10" / "Linf"


@pytest.fixture(scope="module")
def network():
    """The entry's own architecture, with weights of ours."""
    robustbench_import.repair()
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.model_zoo.models import model_dicts

    torch.manual_seed(0)
    row = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf][ENTRY]
    return row["model"]().eval()


def put(folder, content, name=ENTRY):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


def test_weights_on_the_disk_make_the_entrys_model(folder, network):
    path = put(folder, network.state_dict())
    put(folder, b"of another entry", name=f"{ENTRY}_larger")
    model, files = load(ENTRY, "cifar10", "Linf")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), network(x))
    assert files == [path]
    assert not model.training


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<html>Quota exceeded</html>", "no file of tensors"),
        (b"", ""),
        (b"PK\x03\x04 cut short", ""),
        ({"conv1.weight": torch.ones(2)}, r"Missing key\(s\) in state_dict"),
        ([1, 2], ""),
    ],
    ids=["page", "empty", "cut", "another", "list"],
)
def test_a_file_that_is_not_its_weights_is_named_and_kept(folder, content, match):
    """It is the user's file: only what a failed download leaves is taken away."""
    path = put(folder, content)
    with pytest.raises(UserError, match=rf"{ENTRY}\.pt is not its weights: .*{match}") as refused:
        load(ENTRY, "cifar10", "Linf")
    assert "\n" not in str(refused.value)
    assert path.exists()


def test_without_a_network_the_error_says_what_to_put_where(folder, capsys):
    with pytest.raises(UserError, match="could not be downloaded") as refused:
        load(ENTRY, "cifar10", "Linf")
    assert f"Put them at {folder / ENTRY}.pt" in str(refused.value)
    assert not (folder / f"{ENTRY}.pt").exists()


def test_an_unknown_entry_names_the_nearest(folder):
    with pytest.raises(
        UserError, match=r"no cifar10 Linf entry 'Wong2021Fast'\. Did you mean Wong2020Fast"
    ) as refused:
        load("Wong2021Fast", "cifar10", "Linf")
    # Where torchattacks' wheel overwrote the zoo, newer entries are missing, and this says why.
    overwritten = robustbench_overwritten.fault_present()
    assert ("pip install --force-reinstall" in str(refused.value)) == overwritten
    with pytest.raises(UserError, match="has no imagenet L2 entry"):
        load("Wong2020Fast", "imagenet", "L2")
    assert not folder.exists()
