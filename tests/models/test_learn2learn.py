"""The few-shot networks as classifiers with features: shapes, gates, and what is saved of them."""

from __future__ import annotations

import math

import pytest
import torch

from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.attacks.linf import attacking
from aal_bench.config import Normalisation
from aal_bench.errors import UserError
from aal_bench.methods.aal import AALPGD
from aal_bench.methods.base import Threat
from aal_bench.models import weights
from aal_bench.models.build import Architecture, Classifier, build

CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("cnn4", 28, (64, 1, 1)),  # Omniglot: 64 features (Snell 2017)
        ("cnn4", 84, (64, 5, 5)),  # mini-ImageNet: 1,600 features
        ("cnn4-32", 32, (32, 2, 2)),
        ("resnet12", 28, (640, 1, 1)),
        ("resnet12", 84, (640, 1, 1)),
        ("wrn28-1", 32, (64, 1, 1)),
        ("wrn28-2", 20, (128, 1, 1)),
    ],
)
def test_logits_are_the_classifier_of_the_features(name, size, shape):
    model = build(name, 7, size, CIFAR).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        features = model.features(x)
        assert torch.equal(model.network.classifier(features), model(x))
        assert torch.equal(features, model.network.features(model.normalise(x)))
    assert model.feature_shape == shape
    assert features.shape == (2, math.prod(shape))


def test_wrn28_has_640_features():
    with torch.device("meta"):
        assert build("wrn28", 5, 32, CIFAR).feature_shape == (640, 1, 1)


def test_features_unflatten_to_the_last_map():
    """(C,h,w) is the order in which they were flattened."""
    model = build("cnn4-8", 5, 40, CIFAR).eval()
    x, maps = torch.rand(2, 3, 40, 40), []
    model.network.features[3].register_forward_hook(lambda _m, _x, output: maps.append(output))
    features = model.features(x)
    assert torch.equal(features.unflatten(1, model.feature_shape), maps[0])


def test_a_network_of_ones_own_may_give_maps():
    network = torch.nn.Module()
    network.features = torch.nn.Conv2d(3, 4, 3)
    model = Classifier(Architecture(network, {}, 0, (4, 2, 2)), Normalisation())
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(model.features(x), network.features(x).flatten(1))


@pytest.mark.parametrize("name", ["resnet18", "wrn-10-1"])
def test_a_network_without_features_says_which_have_some(name):
    model = build(name, 5, 32, CIFAR)
    match = f"^model {name} has no features for few-shot episodes: choose cnn4, resnet12 or wrn28$"
    with pytest.raises(UserError, match=match):
        model.features(torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match=match):
        _ = model.feature_shape


# ---- ResNet-12's gate: there is no stem, and one LeakyReLU runs three times -------------------


def test_the_gate_of_resnet12_is_between_conv1_and_conv2_and_bypassed_by_the_shortcut():
    model = build("resnet12", 5, 32, CIFAR).eval()
    x, seen = torch.rand(2, 3, 32, 32), []
    insert_gate(model, model.gate_sites["post_bn_relu"], channels=model.gate_channels)
    gate = gate_of(model)
    gate.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        half, shut = [], []
        for value, logits in ((0.5, half), (0.0, shut)):
            with gate.pinned(value):
                logits.extend([model(x), model(1 - x)])
    assert seen == [(2, 64, 32, 32)] * 4  # once in a pass, at the input's resolution
    assert not torch.equal(half[0], shut[0])
    assert not torch.equal(shut[0], shut[1])  # a shut gate leaves the shortcut


# ---- ResNet-12's DropBlock counters in our files ----------------------------------------------


def described():
    return weights.Described("resnet12", 5, 16, CIFAR.model_dump(mode="json"), "standard", {})


def blocks(model):
    return [layer[0] for layer in list(model.network.features.children())[:4]]


def test_dropblocks_counters_are_in_the_file_and_come_back(tmp_path):
    model = build("resnet12", 5, 16, CIFAR)
    x = torch.rand(2, 3, 16, 16)
    model(x)
    with attacking(model, bn="train"):
        model(x)
    model(x)
    path = tmp_path / "model.safetensors"
    weights.save(path, model.state_dict(), described())
    stored = weights.read(path)
    key = "network.features.layer{}.0.num_batches_tracked"
    assert [int(stored[key.format(layer)]) for layer in (1, 2, 3, 4)] == [2] * 4

    again = build("resnet12", 5, 16, CIFAR)
    weights.load_into(again, stored, path, "resnet12")
    assert [block.num_batches_tracked for block in blocks(again)] == [2] * 4
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items()
    )
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_a_gated_resnet12_counts_and_saves_as_well(tmp_path):
    def gated():
        model = build("resnet12", 5, 16, CIFAR)
        return AALPGD(AALPGD.Options(), Threat(8 / 255, 2 / 255, 10)).build(model)

    model, x = gated(), torch.rand(2, 3, 16, 16)
    model(x)
    path = tmp_path / "model.safetensors"
    weights.save(path, model.state_dict(), described())
    again = gated()
    weights.load_into(again, weights.read(path), path, "resnet12")
    assert [block.num_batches_tracked for block in blocks(again)] == [1] * 4
    assert torch.equal(again.eval()(x), model.eval()(x))
