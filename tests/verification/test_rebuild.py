"""A model made again from what its entry says of it; what an entry must not get away with."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aal_bench import evaluate
from aal_bench.config import Normalisation, read_task
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard.findings import broken
from aal_bench.models import weights
from aal_bench.models.build import build
from aal_bench.registry import task_file
from aal_bench.toolkits import robustbench_import
from aal_bench.verification import levels
from aal_bench.verification.code import Typed
from aal_bench.verification.rebuild import rebuild


@pytest.fixture
def case(submitted):
    return submitted()


def refused(case, rule, match, checkpoint=None):
    """The rule is broken, it says why, and there is no model to go on with."""
    findings, rebuilt = rebuild(case.entry, checkpoint or case.checkpoint, None)
    assert rebuilt is None
    assert broken(findings) == 2
    (finding,) = [finding for finding in findings if not finding.ok]
    assert finding.rule == rule
    assert match in finding.text


def test_the_model_is_the_one_that_was_measured(case):
    findings, rebuilt = rebuild(case.entry, case.checkpoint, None)
    assert all(finding.ok and finding.level == 2 for finding in findings)
    assert [finding.rule for finding in findings] == [
        *("question", "checkpoint", "data", "rows", "model")
    ]
    state = weights.read(case.checkpoint)
    assert rebuilt.model.state_dict().keys() == state.keys()
    for name, value in rebuilt.model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    x = rebuilt.adapter.test.pixels(torch.arange(60)) / 255
    np.testing.assert_array_equal(rebuilt.model(x).argmax(1), rebuilt.evidence.clean_pred)
    assert not rebuilt.model.training
    assert not any(weight.requires_grad for weight in rebuilt.model.parameters())


def test_a_gated_model_gets_its_gate(case, network, save):
    """Surgery with its options, from the record; the weights of the gate go where they belong."""
    from aal_bench.methods.aal import AALFGSM
    from aal_bench.methods.base import Threat

    options = AALFGSM.Options(gate={"kernel_size": 5})  # pyright: ignore
    gated = AALFGSM(options, Threat(0.1, 0.1, 1)).build(network())
    save(gated, case.checkpoint, method="aal-fgsm", options=options.model_dump(mode="json"))
    case.edit(
        **{
            "model.checkpoint.sha256": sha256_file(case.checkpoint),
            "model.checkpoint.bytes": case.checkpoint.stat().st_size,
            "model.parameters": sum(weight.numel() for weight in gated.parameters()),
            "model.surgery": {"name": "aal-fgsm", "options": options.model_dump(mode="json")},
        }
    )
    _, rebuilt = rebuild(case.entry, case.checkpoint, None)
    x = rebuilt.adapter.test.pixels(torch.arange(8)) / 255
    torch.testing.assert_close(rebuilt.model(x), gated.eval()(x), rtol=0, atol=0)
    case.edit(**{"model.surgery.options.gate.kernel_size": 7})
    refused(case, "model", "shapes differ")
    case.edit(**{"model.surgery": None})
    refused(case, "model", "the file has")


def test_a_network_with_class_gates_gets_them_too(case, network, save):
    """They are part of what a run records of the network, as an attention gate is."""
    from aal_bench.again.heads import has_class_gates
    from aal_bench.methods.again import AGAINPGD
    from aal_bench.methods.base import Threat

    options = AGAINPGD.Options(last_only=True)  # pyright: ignore
    gated = AGAINPGD(options, Threat(0.1, 0.1, 1)).build(network())
    assert has_class_gates(gated)
    assert not has_class_gates(network())
    save(gated, case.checkpoint, method="again-pgd", options=options.model_dump(mode="json"))
    case.edit(
        **{
            "model.checkpoint.sha256": sha256_file(case.checkpoint),
            "model.checkpoint.bytes": case.checkpoint.stat().st_size,
            "model.parameters": sum(weight.numel() for weight in gated.parameters()),
            "model.surgery": {"name": "again-pgd", "options": options.model_dump(mode="json")},
        }
    )
    _, rebuilt = rebuild(case.entry, case.checkpoint, None)
    x = rebuilt.adapter.test.pixels(torch.arange(8)) / 255
    torch.testing.assert_close(rebuilt.model(x), gated.eval()(x), rtol=0, atol=0)
    case.edit(**{"model.surgery": None})
    refused(case, "model", "the file has")


def test_a_torch_file_under_any_name(case, tmp_path):
    """Format is what the content is; a foreign file says nothing of itself, the record does."""
    path = tmp_path / "download.bin"
    state = weights.read(case.checkpoint)
    torch.save({key: value for key, value in state.items() if "normalise" not in key}, path)
    case.edit(
        **{
            "model.checkpoint.sha256": sha256_file(path),
            "model.checkpoint.bytes": path.stat().st_size,
            "model.checkpoint.format": "torch",
        }
    )
    _, rebuilt = rebuild(case.entry, path, None)
    x = rebuilt.adapter.test.pixels(torch.arange(60)) / 255
    np.testing.assert_array_equal(rebuilt.model(x).argmax(1), rebuilt.evidence.clean_pred)


# ---- other weights, other numbers ---------------------------------------------------------------


def test_another_checkpoint_is_not_replayed(case, network, save):
    stated = case.entry.result.model.checkpoint.sha256
    save(network(seed=1), case.checkpoint)
    other = sha256_file(case.checkpoint)
    refused(case, "checkpoint", f"is {other[:8]}, the entry was measured on {stated[:8]}")


@pytest.mark.parametrize(
    ("changes", "rule", "match"),
    [
        ({"model.checkpoint.bytes": 5}, "checkpoint", "bytes, the entry says 5"),
        ({"model.checkpoint.format": "torch"}, "checkpoint", "safetensors, the entry says torch"),
        ({"model.parameters": 7}, "model", "parameters, the entry says 7"),
        ({"model.name": "cnn4-32"}, "model", "shapes differ"),
        ({"model.normalisation": None}, "model", "the file has normalise.mean"),
        (
            {"model.normalisation.mean": [0.5, 0.5, 0.5]},
            "model",
            "the file says that its normalisation is",
        ),
        (
            {"model.surgery": {"name": "aal-fgsm", "options": {}}},
            "model",
            "not weights of 'model.safetensors': the model has",
        ),
        ({"threat.eps": "1/255"}, "question", "the task file sixty asks another question"),
        ({"task.hash": "0" * 64}, "question", "the task file sixty asks another question"),
    ],
)
def test_what_the_record_says_must_be_so(case, changes, rule, match):
    case.edit(**changes)
    refused(case, rule, match)


def test_other_pixels_are_refused(case):
    tree = json.loads(case.path.read_text())
    fingerprint = tree["evidence"]["dataset_fingerprint"] | {"pixels": "0" * 64}
    question = read_task(task_file("sixty")).hash(fingerprint)
    case.edit(**{"evidence.dataset_fingerprint": fingerprint, "task.hash": question})
    refused(case, "data", "the entry was measured on 00000000: give those with --data-dir")


def test_a_table_about_other_images_is_refused(case):
    table = case.entry.evidence()
    other = Evidence(table.index, np.roll(table.label, 1))
    other.record("clean", np.arange(60), pred=other.label)
    other.save(case.entry.evidence_path)
    refused(case, "rows", "not about the test set's 60 images")


# ---- code and names -----------------------------------------------------------------------------


def test_no_record_has_code_run(case, tmp_path):
    proof, code = tmp_path / "ran", tmp_path / "evil.py"
    code.write_text(f"open({str(proof)!r}, 'w').close()\n")
    trust = "if you have that file and trust it, add"
    for changes, match in (
        ({"model.name": f"{code}:build"}, f"{trust} --model PATH/evil.py:build"),
        ({"model.loader": f"{code}:load"}, "no record has code run here"),
        (
            {"model.surgery": {"name": f"{code}:Method", "options": {}}},
            f"{trust} --method PATH/evil.py:Method",
        ),
    ):
        before = case.path.read_text()
        case.edit(**changes)
        with pytest.raises(UserError, match=match):
            rebuild(case.entry, case.checkpoint, None)
        case.path.write_text(before)
    assert not proof.exists()
    assert not any("evil" in name for name in sys.modules)


@pytest.fixture
def own(case, tmp_path):
    """The entry as one of a builder and a method of the submitter's, and the file with both."""
    path = tmp_path / "theirs" / "masked.py"
    path.parent.mkdir()
    path.write_text(THEIRS)
    model, method = f"{path}:build", f"{path}:Plain"
    network = build(model, 10, 16, Normalisation())
    described = {"model": model, "classes": 10, "size": 16, "method": method, "options": {}}
    normalisation = Normalisation().model_dump(mode="json")
    said = weights.Described(**described, normalisation=normalisation)
    weights.save(case.checkpoint, network.state_dict(), said)
    case.edit(
        **{
            "model.name": "masked.py:build",
            "model.surgery": {"name": "masked.py:Plain", "options": {}},
            "model.normalisation": None,
            "model.parameters": sum(weight.numel() for weight in network.parameters()),
            "model.checkpoint.sha256": sha256_file(case.checkpoint),
            "model.checkpoint.bytes": case.checkpoint.stat().st_size,
        }
    )
    return Typed(model, method), network.eval()


THEIRS = """
from torch import nn

from aal_bench.methods.standard import Standard


class Plain(Standard):
    pass


def build(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))
"""


def test_code_that_the_verifier_types_takes_the_place_of_what_the_record_names(case, own):
    typed, network = own
    findings, rebuilt = rebuild(case.entry, case.checkpoint, None, typed)
    told = {finding.rule: finding.text for finding in findings if finding.ok}
    assert rebuilt is not None, findings
    digest = sha256_file(Path(typed.model.partition(":")[0]))[:8]
    assert told["model code"] == f"masked.py:build, typed; sha256 {digest}"
    assert told["method code"] == f"masked.py:Plain, typed; sha256 {digest}"
    x = rebuilt.adapter.test.pixels(torch.arange(8)) / 255
    torch.testing.assert_close(rebuilt.model(x), network(x), rtol=0, atol=0)
    case.edit(**{"model.parameters": 7})
    findings, rebuilt = rebuild(case.entry, case.checkpoint, None, typed)
    assert rebuilt is None
    assert findings[-1].text.endswith("7,690 parameters, the entry says 7")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": None}, "names the code 'masked.py:build'; if you have that file and trust it"),
        ({"method": None}, "add --method PATH/masked.py:Plain"),
        (
            {"model": "other.py:build"},
            "--model other.py:build: the entry names the code",
        ),
        ({"method": "masked.py:Other"}, "--method masked.py:Other: the entry names the code"),
    ],
)
def test_only_the_code_that_the_record_names_and_only_where_it_is_typed(case, own, changes, match):
    with pytest.raises(UserError, match=match):
        rebuild(case.entry, case.checkpoint, None, own[0]._replace(**changes))


@pytest.mark.parametrize("kind", ["model", "method"])
def test_nothing_takes_the_place_of_what_is_registered(case, kind):
    with pytest.raises(UserError, match=f"no code: omit --{kind}"):
        rebuild(case.entry, case.checkpoint, None, Typed(**{kind: "masked.py:build"}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model.name": "cnn5"}, r"unknown model 'cnn5'. Did you mean cnn4"),
        ({"model.surgery": {"name": "aal-new", "options": {}}}, "unknown method 'aal-new'"),
        ({"model.surgery": {"options": {}}}, "model.surgery names no method"),
        (
            {"model.surgery": {"name": "aal-fgsm", "options": {"xi3": 1}}},
            "model.surgery: unknown key 'xi3'",
        ),
        ({"task.id": "sixtyone"}, "task 'sixtyone' is not known here"),
        ({"model.checkpoint": None}, "the entry names no checkpoint"),
    ],
)
def test_what_is_not_known_here_is_said(case, changes, match):
    case.edit(**changes)
    with pytest.raises(UserError, match=match):
        rebuild(case.entry, case.checkpoint, None)


def test_a_task_is_found_by_name_never_by_a_path_that_the_record_states(case, tmp_path):
    path = tmp_path / "sixty.toml"
    path.write_bytes(task_file("sixty").read_bytes())
    case.edit(**{"task.id": str(path)})
    with pytest.raises(UserError, match="is not known here"):
        rebuild(case.entry, case.checkpoint, None)


def test_a_missing_checkpoint(case, tmp_path):
    with pytest.raises(UserError, match=r"gone\.pt: no such checkpoint"):
        rebuild(case.entry, tmp_path / "gone.pt", None)


# ---- RobustBench's zoo --------------------------------------------------------------------------

ENTRY = "Sehwag2021Proxy_R18"


@pytest.fixture
def zoo(case, tmp_path, monkeypatch):
    """The entry as one of the zoo's, whose weights lie where its loader looks."""
    monkeypatch.setenv("AAL_BENCH_CACHE", str(tmp_path / "cache"))
    robustbench_import.repair()
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.model_zoo.models import model_dicts

    torch.manual_seed(0)
    network = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf][ENTRY]["model"]()
    path = tmp_path / "cache" / "robustbench" / "cifar10" / "Linf" / f"{ENTRY}.pt"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    case.edit(
        **{
            "model.name": f"robustbench:{ENTRY}",
            "model.architecture": ENTRY,
            "model.loader": evaluate.ZOO,
            "model.normalisation": None,
            "model.parameters": None,
            "model.checkpoint.sha256": sha256_file(path),
            "model.checkpoint.bytes": path.stat().st_size,
            "model.checkpoint.format": "torch",
        }
    )
    return network.eval()


def test_an_entry_of_the_zoo_is_loaded_by_its_loader(case, zoo):
    findings, rebuilt = rebuild(case.entry, None, None)
    assert broken(findings) is None
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rebuilt.model(x), zoo(x), rtol=0, atol=0)
    with pytest.raises(UserError, match="come from RobustBench's zoo: omit --checkpoint"):
        rebuild(case.entry, case.checkpoint, None)


def test_other_weights_in_the_zoo_are_not_the_entrys(case, zoo):
    case.edit(**{"model.checkpoint.sha256": "0" * 64})
    findings, rebuilt = rebuild(case.entry, None, None)
    assert rebuilt is None
    assert "the entry says 00000000" in findings[-1].text


def test_the_zoos_loader_has_one_name():
    assert levels.ZOO == evaluate.ZOO
