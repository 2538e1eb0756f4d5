"""Every registered network: its size, its shapes, and where a gate sits in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import leaky_relu

from aal_bench import registry
from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.again.class_gate import ClassGate
from aal_bench.again.heads import all_logits, insert_class_gates
from aal_bench.config import Normalisation
from aal_bench.errors import UserError
from aal_bench.models.build import Architecture, Classifier, build

PLAIN = Normalisation()
CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
ROWS = {
    # row: (a name of it, side of its images, channels and side of the map at the gate)
    "resnet18": ("resnet18", 32, 64, 32),
    "preactresnet18": ("preactresnet18", 32, 64, 32),
    "wrn-D-W": ("wrn-10-2", 32, 16, 32),
    "resnet50": ("resnet50", 64, 64, 32),
    "cnn4": ("cnn4", 20, 64, 20),
    "cnn4-W": ("cnn4-32", 16, 32, 16),
    "resnet12": ("resnet12", 16, 64, 16),
    "wrn28": ("wrn28", 8, 16, 8),
    "wrn28-W": ("wrn28-1", 12, 16, 12),
}


def test_no_registered_network_is_left_out():
    detectors = {name for name, row in registry.MODELS.items() if row.families == ("detection",)}
    assert set(ROWS) == set(registry.MODELS) - detectors


@pytest.mark.parametrize("row", ROWS)
def test_pixels_in_logits_out(row):
    name, size, *_ = ROWS[row]
    model = build(name, 7, size, CIFAR).eval()
    with torch.no_grad():
        logits = model(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "classes", "size", "parameters"),
    [
        ("resnet18", 10, 32, 11_173_962),
        ("preactresnet18", 10, 32, 11_171_146),
        ("wrn-28-10", 10, 32, 36_479_194),
        ("wrn-34-10", 10, 32, 46_160_474),
        ("resnet50", 1000, 224, 25_557_032),
        # conv, batch norm; three times 64 to 64; the head on a 1x1 map
        ("cnn4", 5, 16, (3 * 9 + 3) * 64 + 3 * (64 * 9 + 3) * 64 + 65 * 5),
        ("resnet12", 64, 84, 12_424_320 + 641 * 64),
        # the wrn-28-10 above with biases in its convolutions
        ("wrn28", 64, 84, 36_479_194 - 641 * 10 + 16 + 9 * (160 + 320 + 640) + 641 * 64),
    ],
)
def test_a_network_has_the_parameters_that_the_literature_gives_it(name, classes, size, parameters):
    """Without its memory: on the meta device."""
    with torch.device("meta"):
        model = build(name, classes, size, PLAIN)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def stem(model, x, position):
    """The map that design and paper place the gate on, from the network's own modules."""
    network = model.network
    kind = type(network).__name__
    first = getattr(network, "features", network)
    if kind in {"CNN4", "ResNet12"}:
        first = first[0] if kind == "CNN4" else first.layer1[0]
    f = (first.conv if kind == "CNN4" else first.conv1)(model.normalise(x))
    if position == "post_conv1" or kind not in {"CNN4", "ResNet12", "ResNet"}:
        return f
    f = (first.normalize if kind == "CNN4" else first.bn1)(f)
    return leaky_relu(f, 0.1) if kind == "ResNet12" else f.relu()


@pytest.mark.parametrize("position", ["post_bn_relu", "post_conv1"])
@pytest.mark.parametrize("row", ROWS)
def test_the_gate_sees_the_first_convolution_and_what_follows_it(row, position):
    """After BN and ReLU where they follow conv1; of pre-activation networks after conv1 itself."""
    name, size, channels, side = ROWS[row]
    torch.manual_seed(0)
    model = build(name, 4, size, CIFAR)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    model.eval()
    x, seen = torch.rand(2, 3, size, size), []
    with torch.no_grad():
        expected = stem(model, x, position)
        ungated = model(x)
        insert_gate(model, model.gate_sites[position], channels=model.gate_channels)
        gate = gate_of(model)
        gate.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
        with gate.pinned(1.0):
            open_gate = model(x)
        gated = model(x)
    assert expected.shape == (2, channels, side, side)
    assert model.gate_channels == channels
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-6)
    # Everything downstream passes the gate: an open one changes nothing, a working one all logits.
    torch.testing.assert_close(open_gate, ungated, rtol=0, atol=1e-6)
    assert (gated != ungated).any(1).all()


CLASS_GATES = {
    # row: the maps whose channels are gated, as (channels, side), the last one pooled afterwards
    "resnet18": ((512, 4), (512, 4)),
    "preactresnet18": ((512, 4), (512, 4)),
    "wrn-D-W": ((64, 16), (128, 8)),
    "resnet50": ((2048, 2), (2048, 2)),
    "cnn4": ((64, 2), (64, 1)),
    "cnn4-W": ((32, 2), (32, 1)),
    "resnet12": ((320, 2), (640, 1)),
    "wrn28": ((640, 2), (640, 2)),
    "wrn28-W": ((64, 3), (64, 3)),
}


def gates_for(model, alpha=1.0):
    return {path: ClassGate(4, channels, alpha) for path, channels in model.class_sites}


@pytest.mark.parametrize("row", ROWS)
def test_class_gates_scale_the_last_two_maps_on_the_way_to_the_logits(row):
    name, size, *_ = ROWS[row]
    torch.manual_seed(0)
    model = build(name, 4, size, CIFAR).eval()
    x = torch.rand(2, 3, size, size)
    ungated = model(x).detach()
    headed = insert_class_gates(model, gates_for(model))
    shapes, gates = [], headed.gates
    for gate in gates:
        gate.register_forward_pre_hook(lambda _module, inputs: shapes.append(inputs[0].shape))
        torch.nn.init.ones_(gate.fc.weight)
    torch.testing.assert_close(headed(x), ungated, rtol=1e-5, atol=1e-6)
    sizes = tuple((c, h) for _, c, h, w in shapes if h == w)
    assert sizes == CLASS_GATES[row]
    for gate in gates:  # nothing of either map reaches the logits but through its gate
        with torch.no_grad():
            gate.fc.weight.mul_(2)
            moved = headed(x)
            gate.fc.weight.fill_(1)
        assert (moved - ungated).abs().max() > 1e-6, row
    with torch.no_grad():
        gates[-1].fc.weight.zero_()
        blank = headed(x)
    torch.testing.assert_close(blank[0], blank[1])  # the image is gone


@pytest.mark.parametrize("row", [row for row in ROWS if row not in {"wrn28", "resnet50"}])
def test_gradients_come_through_class_gates_and_in_place_activations(row):
    """Beside an attention gate in the same network, in training mode."""
    name, size, *_ = ROWS[row]
    torch.manual_seed(0)
    model = build(name, 4, size, CIFAR)
    headed = insert_class_gates(model, gates_for(model, alpha=0.6)).train()
    insert_gate(headed, headed.gate_sites["post_bn_relu"], channels=headed.gate_channels)
    with headed.labelled(torch.tensor([0, 3])):
        logits = all_logits(headed, torch.rand(2, 3, size, size))
    sum(each.square().sum() for each in logits).backward()
    assert gate_of(headed).bn.bias.grad.abs().max() > 0
    for name, weight in headed.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


@pytest.mark.parametrize(("depth", "width", "first"), [(10, 3, 96), (16, 3, 192)])
def test_the_last_block_of_a_wide_resnet_is_gated_at_its_activated_input(depth, width, first):
    """Its identity shortcut is not; at depth 10 that block widens, and its shortcut is."""
    model = build(f"wrn-{depth}-{width}", 4, 32, PLAIN)
    assert model.class_sites[0].channels == first
    last = model.network.block3.layer[-1]
    relu = last.relu1
    insert_class_gates(model, gates_for(model))
    assert last.relu1.map is relu
    assert last.equalInOut == (depth > 10)


def test_normalisation_is_a_layer_inside_the_model():
    torch.manual_seed(0)
    model = build("cnn4", 4, 16, CIFAR).eval()
    x = torch.rand(3, 3, 16, 16)
    mean, std = (torch.tensor(side).view(1, 3, 1, 1) for side in (CIFAR.mean, CIFAR.std))
    assert torch.equal(model(x), model.network((x - mean) / std))
    assert not dict(model.named_parameters()).keys() & {"normalise.mean", "normalise.std"}


def test_a_step_of_eps_at_the_input_is_eps_over_std_inside():
    """eps is in pixels: what attacks measure does not depend on the normalisation."""
    model = Classifier(Architecture(nn.Flatten(), {}, 0), CIFAR)
    x, eps = torch.rand(1, 3, 2, 2), 8 / 255
    moved = (model(x + eps) - model(x)).view(3, 4)
    torch.testing.assert_close(moved, eps / torch.tensor(CIFAR.std)[:, None].expand(3, 4))


def test_without_normalisation_the_network_gets_the_pixels():
    model = Classifier(Architecture(nn.Flatten(), {}, 0), PLAIN)
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(model(x), x.flatten(1))
    assert not model.state_dict()


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("resnet18", 16, r"resnet18 .* takes 32 px images, not 16 px: choose cnn4 or resnet50"),
        ("preactresnet18", 64, "takes 32 px images, not 64 px"),
        ("wrn-28-10", 224, r"wrn-28-10 .* takes 32 px images, not 224 px"),
        ("wrn-30-10", 32, r"wrn-30-10: the depth of a WideResNet is 10, 16, 22, 28, 34"),
        ("wrn-4-1", 32, "the depth of a WideResNet is 10"),
        ("cnn4", 15, "takes >= 16 px, not 15 px"),
        ("resnet12", 15, "model resnet12 .* takes >= 16 px, not 15 px"),
        ("resnet12-2", 32, r"unknown model 'resnet12-2'\. Did you mean resnet12"),
        ("wrn28-", 32, r"unknown model 'wrn28-'\. Did you mean wrn28"),
        ("resnet19", 32, r"unknown model 'resnet19'\. Did you mean .*resnet18"),
        ("wrn-34", 32, r"unknown model 'wrn-34'\. Did you mean .*wrn-D-W"),
        ("wrn-28-0", 32, "unknown model 'wrn-28-0'"),
    ],
)
def test_what_cannot_be_built_is_said_on_one_line(name, size, match):
    with pytest.raises(UserError, match=match) as refused:
        build(name, 10, size, PLAIN)
    assert "\n" not in str(refused.value)


@pytest.fixture
def own(tmp_path):
    """own(body): a file with builders of a user."""

    def write(body: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(f"from torch import nn\n{body}\n")
        return str(path)

    return write


def test_a_builder_of_ones_own_is_called_with_classes_and_size(own):
    path = own(
        "def tiny(classes, size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))"
    )
    model = build(f"{path}:tiny", 6, 5, CIFAR)
    assert model(torch.rand(2, 3, 5, 5)).shape == (2, 6)
    assert model.gate_sites == {}


def test_a_builder_may_say_where_its_gates_belong(own):
    path = own(
        "from aal_bench.models.build import Architecture, ClassSite\n"
        "def tiny(classes, size):\n"
        "    layers = [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, classes)]\n"
        "    sites = (ClassSite('0', 4),)\n"
        "    return Architecture(nn.Sequential(*layers), {'post_conv1': '1'}, 4, None, sites)"
    )
    model = build(f"{path}:tiny", 6, 5, PLAIN)
    assert model.gate_sites == {"post_conv1": "network.1"}
    assert (model.class_sites, model.classes) == ((("network.0", 4),), 6)
    insert_gate(model, model.gate_sites["post_conv1"], channels=model.gate_channels)
    assert model(torch.rand(2, 3, 5, 5)).shape == (2, 6)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("def tiny(): ...", r"is called as builder\(classes, size\), but tiny\(\) takes 0"),
        ("def tiny(classes, size): return {'net': 1}", "builds a dict, not a torch.nn.Module"),
        ("tiny = 3", r"called as builder\(classes, size\), but 'int' object is not callable"),
        ("def tinny(): ...", r"has no 'tiny'\. Did you mean tinny"),
    ],
)
def test_a_builder_that_builds_nothing_is_bad_input(own, body, match):
    with pytest.raises(UserError, match=match):
        build(f"{own(body)}:tiny", 6, 5, PLAIN)
