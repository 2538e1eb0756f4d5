"""Weights that describe themselves, and whatever others call a checkpoint."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from aal_bench.config import Normalisation
from aal_bench.errors import UserError
from aal_bench.methods.aal import AALPGD
from aal_bench.methods.base import Threat
from aal_bench.models import weights
from aal_bench.models.build import build

PLAIN = Normalisation()
GREY = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture
def model():
    """A small network whose every number, batch norm's included, is its own."""
    torch.manual_seed(0)
    found = build("cnn4", 5, 16, GREY)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked += 17
    return found.eval()


def fresh(classes=5, normalisation=GREY, seed=1):
    torch.manual_seed(seed)
    return build("cnn4", classes, 16, normalisation).eval()


def same(one, two):
    x = torch.rand(4, 3, 16, 16)
    pairs = zip(one.state_dict().items(), two.state_dict().items(), strict=True)
    return all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs) and torch.equal(
        one(x), two(x)
    )


# ---- our own files --------------------------------------------------------------------------


def described(**changes):
    values = {
        "model": "cnn4",
        "classes": 5,
        "size": 16,
        "normalisation": GREY.model_dump(mode="json"),
        "method": "standard",
        "options": {},
    }
    return weights.Described(**(values | changes))


def test_our_file_says_what_it_holds_and_rebuilds_it_bit_by_bit(model, tmp_path):
    path = tmp_path / "model.safetensors"
    weights.save(path, model.state_dict(), described())
    found = weights.describe(path)
    assert found == described()
    again = build(found.model, found.classes, found.size, Normalisation(**found.normalisation))
    weights.load_into(again, weights.read(path), path, found.model)
    assert same(again.eval(), model)


def test_a_gated_model_is_rebuilt_with_its_gate(tmp_path):
    def gated(seed):
        method = AALPGD(AALPGD.Options(), Threat(8 / 255, 2 / 255, 10))
        return method.build(fresh(seed=seed)).eval(), method

    model, method = gated(0)
    path = tmp_path / "model.safetensors"
    options = method.options.model_dump(mode="json")
    weights.save(path, model.state_dict(), described(method="aal-pgd", options=options))
    found = weights.describe(path)
    assert AALPGD.Options(**found.options) == method.options
    again, _ = gated(1)
    assert not same(again, model)
    weights.load_into(again, weights.read(path), path, "cnn4")
    assert same(again, model)
    with pytest.raises(UserError, match=r"not weights of 'cnn4': .*the file has .*max_pool"):
        weights.load_into(fresh(), weights.read(path), path, "cnn4")


@pytest.mark.parametrize("text", ["{", "[1]", '{"model": "cnn4"}', '{"model": 1, "colour": 2}'])
def test_a_description_of_another_version_is_not_guessed_at(model, tmp_path, text):
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path, metadata={weights.METADATA: text})
    with pytest.raises(UserError, match="describes itself in a way that this version"):
        weights.describe(path)


def test_files_of_others_describe_nothing(model, tmp_path):
    safe, torch_file = tmp_path / "theirs.safetensors", tmp_path / "theirs.pt"
    save_file(model.state_dict(), safe)
    torch.save(model.state_dict(), torch_file)
    assert weights.describe(safe) is None
    assert weights.describe(torch_file) is None
    assert weights.describe(tmp_path / "absent.safetensors") is None


def test_a_failed_write_leaves_the_old_file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    weights.save(path, model.state_dict(), described())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="non contiguous"):
        weights.save(path, {"w": torch.rand(3, 4).t()}, described())
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


# ---- files of others ------------------------------------------------------------------------


def prefixed(state, *prefixes):
    return OrderedDict((f"{''.join(prefixes)}{key}", value) for key, value in state.items())


WRAPPINGS = {
    "the whole model": lambda net: net.state_dict(),
    "the bare network": lambda net: net.network.state_dict(),
    "of DataParallel": lambda net: prefixed(net.network.state_dict(), "module."),
    "of torch.compile": lambda net: prefixed(net.network.state_dict(), "_orig_mod."),
    "of both": lambda net: prefixed(net.network.state_dict(), "module.", "_orig_mod."),
    "of both, the other way": lambda net: prefixed(
        net.network.state_dict(), "_orig_mod.", "module."
    ),
    "with its epoch": lambda net: {
        "epoch": 7,
        "state_dict": prefixed(net.network.state_dict(), "module."),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "nested": lambda net: {"net": {"state_dict": net.network.state_dict()}, "acc": 0.9},
    "of Lightning": lambda net: {"model_state_dict": net.network.state_dict()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_torch_files_load_however_they_are_wrapped(model, tmp_path, wrapping, legacy):
    path = tmp_path / "theirs.pt"
    torch.save(WRAPPINGS[wrapping](model), path, _use_new_zipfile_serialization=not legacy)
    again = fresh()
    weights.load_into(again, weights.read(path), path, "cnn4")
    assert same(again, model)


@pytest.mark.parametrize("name", ["theirs.safetensors", "theirs.bin", "theirs.pt"])
def test_safetensors_are_known_by_their_content(model, tmp_path, name):
    path = tmp_path / name
    save_file(prefixed(model.network.state_dict(), "module."), path)
    again = fresh()
    weights.load_into(again, weights.read(path), path, "cnn4")
    assert same(again, model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would take the tensors")
def test_weights_saved_on_a_gpu_load_without_one(model, tmp_path, monkeypatch):
    path = tmp_path / "cuda.pt"
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")
        torch.save(model.state_dict(), path)
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(path, weights_only=True)
    again = fresh()
    weights.load_into(again, weights.read(path), path, "cnn4")
    assert same(again, model)


def test_half_precision_weights_become_those_of_the_model(model, tmp_path):
    path = tmp_path / "half.pt"
    torch.save(
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.state_dict().items()},
        path,
    )
    again = fresh()
    weights.load_into(again, weights.read(path), path, "cnn4")
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    x = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(again(x), model(x), rtol=0.05, atol=0.05)


def test_the_normalisation_is_given_and_need_not_be_in_the_file(model, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save(model.network.state_dict(), path)
    again = fresh(normalisation=PLAIN)
    weights.load_into(again, weights.read(path), path, "cnn4")
    x = torch.rand(4, 3, 16, 16)
    assert torch.equal(again((x - 0.5) / 0.25), model(x))


# ---- what is no checkpoint ------------------------------------------------------------------


class Bomb:
    """What a pickle may do: run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["torch", "torch, legacy", "in a wrapper", "plain pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, form):
    path, fuse = tmp_path / "bomb.pt", tmp_path / "exploded"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(fuse)}, protocol=2))
    elif form == "in a wrapper":
        torch.save({"state_dict": {"w": torch.ones(2)}, "extra": Bomb(fuse)}, path)
    else:
        torch.save(Bomb(fuse), path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(UserError, match=r"posix\.system, which would run code .* state_dict\(\)"):
        weights.read(path)
    assert not fuse.exists()
    # The bomb is live: the ordinary way of loading sets it off.
    pickle.loads(pickle.dumps(Bomb(fuse)))
    assert fuse.exists()


def test_objects_beyond_tensors_are_named(tmp_path):
    """A whole model, or the arguments of a training script: what people most often save."""
    path = tmp_path / "whole.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"holds torch\.nn\.modules\.linear\.Linear"):
        weights.read(path)


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html><body>Quota exceeded</body></html>",
        b"\n\n  <html lang='en'>",
        b"\xef\xbb\xbf<!doctype html>",
        b"<!-- moved --><html>",
        b"<?xml version='1.0'?><Error/>",
        b"<HEAD><TITLE>Sign in</TITLE></HEAD>",
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_web_page_saved_as_weights_is_called_one(tmp_path, page, name):
    path = tmp_path / name
    path.write_bytes(page)
    with pytest.raises(UserError, match="an HTML page, not weights"):
        weights.read(path)


def cut(model, tmp_path, form, share):
    path = tmp_path / ("cut.safetensors" if form == "safetensors" else "cut.pt")
    if form == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_download_cut_short_is_one_line(model, tmp_path, form, share):
    path = cut(model, tmp_path, form, share)
    with pytest.raises(UserError, match=r"cut\.\w+: (damaged, or )?not a ") as refused:
        weights.read(path)
    assert "\n" not in str(refused.value)


def test_whatever_the_bytes_are_the_error_is_ours(model, tmp_path):
    """Files with flipped bytes and files of noise: read, or refused, never another exception."""
    generator = torch.Generator().manual_seed(0)
    originals = []
    for legacy in (False, True):
        path = tmp_path / "small.pt"
        torch.save({"a": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=not legacy)
        originals.append(path.read_bytes())
    refused = 0
    for trial in range(300):
        if trial % 3 == 2:
            content = bytes(torch.randint(0, 256, (trial,), generator=generator).tolist())
        else:
            mutable = bytearray(originals[trial % 3])
            for place in torch.randint(0, len(mutable), (4,), generator=generator).tolist():
                mutable[place] = (mutable[place] + 1 + trial) % 256
            content = bytes(mutable)
        path = tmp_path / "noise.pt"
        path.write_bytes(content)
        try:
            weights.read(path)
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.ones(2)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict .looked for state_dict, model_state_dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ({0: torch.ones(2)}, "holds no state dict"),
        (torch.ones(2), "holds no state dict"),
    ],
)
def test_tensors_that_are_no_state_dict(tmp_path, content, match):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=match):
        weights.read(path)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(UserError, match="no such checkpoint"):
            weights.read(path)


# ---- weights of something else --------------------------------------------------------------


def test_another_architecture_is_refused_by_its_first_keys(tmp_path):
    path = tmp_path / "vgg.pt"
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 5)).state_dict(), path)
    with pytest.raises(UserError) as refused:
        weights.load_into(fresh(), weights.read(path), path, "cnn4")
    text = str(refused.value)
    assert (
        f"{path}: not weights of 'cnn4': the model has classifier.bias, classifier.weight" in text
    )
    assert "; the file has 0.bias, 0.weight and 2 more" in text
    assert "\n" not in text


def test_another_number_of_classes_names_both_shapes(model, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save(model.network.state_dict(), path)
    with pytest.raises(
        UserError,
        match=r"shapes differ: classifier.weight \(5, 64\) in the file, \(7, 64\) in the model",
    ):
        weights.load_into(fresh(classes=7), weights.read(path), path, "cnn4")


def test_a_refused_file_leaves_the_model_as_it_was(model, tmp_path):
    before = fresh()
    after = fresh()
    state = model.state_dict()
    state.pop("network.classifier.bias")
    with pytest.raises(UserError, match=r"the model has classifier\.bias$"):
        weights.load_into(after, state, tmp_path / "x.pt", "cnn4")
    assert same(after, before)


# ---- who a model without a file is ----------------------------------------------------------


def test_without_a_file_it_is_the_file_that_it_would_make(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "would.safetensors")
    content = (tmp_path / "would.safetensors").read_bytes()
    assert weights.checkpoint_block(model) == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "format": "safetensors",
    }


def test_any_other_weight_is_another_model(model):
    digests = {weights.checkpoint_block(model)["sha256"]}
    for change in (
        lambda m: m.network.classifier.bias.data.add_(1e-6),
        lambda m: m.network.classifier.bfloat16(),
        lambda m: m.register_buffer("more", torch.zeros(())),
        lambda m: m.network.features[0].normalize.num_batches_tracked.add_(1),
    ):
        change(model)
        digests.add(weights.checkpoint_block(model)["sha256"])
    assert len(digests) == 5


def test_tied_weights_have_a_hash_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert len(weights.checkpoint_block(model)["sha256"]) == 64
