"""A network with class gates: its logits, its labels, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.again.class_gate import ClassGate
from aal_bench.again.fusion import HFF
from aal_bench.again.heads import Headed, all_logits, heads_of, insert_class_gates

K = 5
Y = torch.tensor([0, 3, 1, 4])


class Network(nn.Module):
    """Two stages whose in-place ReLUs are like a WideResNet's; says where attention belongs."""

    gate_sites = {"post_bn_relu": "stage"}  # noqa: RUF012
    gate_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.stage = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(True))
        self.fc = nn.Linear(6, K)

    def forward(self, x):
        return self.fc(self.stage(self.relu(self.stem(x))).mean((2, 3)))


@pytest.fixture
def headed():
    """headed(fused=False, alpha=1.0) -> gates after both ReLUs, in training mode, float64."""

    def build(fused: bool = False, **options) -> Headed:
        torch.manual_seed(0)
        model = Network().double().train()
        gates = {"relu": ClassGate(K, 4, **options), "stage.2": ClassGate(K, 6, **options)}
        return insert_class_gates(model, gates, {"relu": HFF()} if fused else None)

    return build


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 6, 6, dtype=torch.float64, generator=generator)


def by_hand(net, x, y=None):
    """[final, auxiliary...] with both gates written out; y None: by their own argmax."""
    model, out = net.model, []

    def gated(f, fc):
        out.append(f.mean((2, 3)) @ fc.weight.T + fc.bias)
        rows = fc.weight[out[-1].argmax(1) if y is None else y]
        return f * rows[:, :, None, None]

    f = gated(F.relu(model.stem(x)), model.relu.gate.fc)
    f = gated(F.relu(model.stage[1](model.stage[0](f))), model.stage[2].gate.fc)
    return [model.fc(f.mean((2, 3))), *out]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_final_and_auxiliary_logits_and_gradients_are_those_of_the_formula(headed, x, mode):
    """In-place ReLUs before a gate do not spoil what its backward pass needs."""
    net = headed().train(mode == "train")
    y = Y if mode == "train" else None

    def gradients(logits):
        loss = sum(
            (each * torch.linspace(-1, 2, each.numel()).view_as(each)).sum() for each in logits
        )
        return torch.autograd.grad(loss, list(net.parameters()))

    if y is None:
        found = all_logits(net, x)
    else:
        with net.labelled(y):
            found = all_logits(net, x)
    expected = by_hand(net, x, y)
    assert len(found) == 3
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients(found), gradients(expected), rtol=1e-9, atol=1e-12)


def test_evaluated_it_gives_final_and_auxiliary_logits_without_labels(headed, x):
    net = headed().eval()
    expected = by_hand(net, x)
    torch.testing.assert_close(net.logits(x), expected[0])
    torch.testing.assert_close(net(x), expected[0])
    torch.testing.assert_close(net.auxiliary_logits(x), expected[1:])


def test_in_training_mode_it_is_not_evaluated(headed, x):
    net = headed()
    for refused in (net.logits, net.auxiliary_logits):
        with pytest.raises(RuntimeError, match="in training mode"):
            refused(x)
    with pytest.raises(RuntimeError, match="needs the labels"):
        net(x)
    with net.labelled(Y), pytest.raises(RuntimeError, match="in training mode"):
        net.logits(x)


def test_evaluated_it_takes_no_labels(headed, x):
    net = headed().eval()
    with pytest.raises(RuntimeError, match="labels are for training"), net.labelled(Y):
        pass
    with pytest.raises(TypeError):
        net(x, Y)
    with pytest.raises(TypeError):
        net.logits(x, Y)
    net.train()
    with net.labelled(Y):
        net.eval()  # within the context, too
        with pytest.raises(RuntimeError, match="eval mode takes no labels"):
            net(x)
    net(x)


def test_features_are_not_fused_at_test(headed, x):
    net = headed(fused=True).eval()
    with pytest.raises(RuntimeError, match="eval mode"), net.attacked_pass():
        pass
    torch.testing.assert_close(net(x), by_hand(net, x)[0])
    net.train()
    with net.labelled(Y):
        plain = net(x)
        with net.attacked_pass():
            fused = net(x)
    assert (plain - fused).abs().max() > 1e-4


def test_the_labels_leave_with_their_context_whatever_happens(headed, x):
    net = headed()
    with pytest.raises(KeyboardInterrupt), net.labelled(Y), net.attacked_pass():
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="needs the labels"):
        net(x)


def test_hard_soft_and_pinned_gates_are_contexts_of_every_gate(headed, x):
    net = headed().eval()
    hard = net(x)
    with net.gating("soft"):
        assert {gate.test_gate for gate in net.gates} == {"soft"}
        soft = net(x)
    with net.gating("straight"):
        torch.testing.assert_close(net(x), hard)
    assert (hard - soft).abs().max() > 1e-4
    with net.pinned(Y):
        torch.testing.assert_close(net(x), by_hand(net, x, Y)[0])
    assert torch.equal(net(x), hard)


def test_one_pass_gives_all_logits(headed, x):
    net, calls = headed().eval(), []
    net.model.stem.register_forward_hook(lambda *_: calls.append(1))
    all_logits(net, x)
    net.auxiliary_logits(x)
    assert len(calls) == 2
    copy.deepcopy(net)  # nothing with a graph stays behind


def test_the_state_is_loaded_into_a_network_that_is_built_again(headed, x):
    """With or without fusion, which has no weights and leaves the names as they are."""
    net = headed()
    with torch.no_grad(), net.labelled(Y):
        net(x)  # running statistics move
        for weight in net.parameters():
            weight.add_(0.1)
    for fused in (False, True):
        again = headed(fused=fused)
        again.load_state_dict(net.state_dict())
        assert torch.equal(again.eval()(x), copy.deepcopy(net).eval()(x))


def test_an_attention_gate_goes_into_the_same_network(headed, x):
    """Where the network said, under the name it has now."""
    net = headed().eval()
    before = net(x)
    assert net.gate_sites == {"post_bn_relu": "model.stage"}
    assert insert_gate(net, net.gate_sites["post_bn_relu"], channels=net.gate_channels) is net
    with gate_of(net).pinned(1.0):
        torch.testing.assert_close(net(x), before)
    assert (net(x) - before).abs().max() > 1e-6
    assert len(net.auxiliary_logits(x)) == len(net.gates) == 2
    net.train()
    with net.labelled(Y):
        all_logits(net, x)[0].sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
def test_a_compiled_network_gives_the_same_logits_and_gradients(headed, x):
    torch._dynamo.reset()
    net = headed(fused=True, alpha=0.6)
    compiled = torch.compile(net, backend="aot_eager")
    assert heads_of(compiled) is net

    def passed(network):
        torch.manual_seed(2)
        with net.labelled(Y), net.attacked_pass():
            logits = all_logits(network, x)
        loss = sum(each.square().mean() for each in logits)
        return [*logits, *torch.autograd.grad(loss, list(net.parameters()))]

    state = copy.deepcopy(net.state_dict())
    found = passed(compiled)
    net.load_state_dict(state)
    torch.testing.assert_close(found, passed(net), rtol=1e-9, atol=1e-12)
    net.eval()
    torch.testing.assert_close(all_logits(compiled, x), by_hand(net, x))
    with pytest.raises(RuntimeError, match="needs the labels"):
        compiled.train()(x)


def test_a_forward_that_was_wrapped_from_outside_is_the_one_that_runs(headed, x):
    """As accelerate wraps it: the heads are cast like the rest of the network."""
    net = headed().float()
    inner = net.forward

    def cast(images):
        with torch.autocast("cpu", torch.bfloat16):
            return inner(images)

    net.forward = cast  # type: ignore[method-assign]
    with net.labelled(Y):
        logits = all_logits(net, x.float())
    assert [each.dtype for each in logits] == [torch.bfloat16] * 3
    assert net.eval().auxiliary_logits(x.float())[0].dtype == torch.bfloat16
    sum(each.float().sum() for each in logits).backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())


def test_heads_are_found_in_what_wraps_the_network_and_nowhere_else(headed):
    net = headed()
    assert heads_of(net) is net
    assert heads_of(nn.Sequential(net)) is net
    with pytest.raises(ValueError, match="this one 0"):
        heads_of(Network())
    with pytest.raises(ValueError, match="this one 2"):
        heads_of(nn.Sequential(net, headed()))


def test_a_gate_is_put_after_a_module_and_has_the_network_s_mode_and_type():
    net = Network().double().train()
    net.relu.eval()
    built = insert_class_gates(net, {"relu": ClassGate(K, 4)}, {"relu": HFF()})
    assert [name for name, _ in built.model.relu.named_children()] == ["map", "fusion", "gate"]
    frozen = [name for name, module in built.named_modules() if not module.training]
    assert frozen == ["model.relu.map"]
    assert built.gates[0].fc.weight.dtype == torch.float64
    assert not any(
        module.training
        for module in insert_class_gates(Network().eval(), {"relu": ClassGate(K, 4)}).modules()
    )
    with pytest.raises(ValueError, match="no module 'layer9' to gate"):
        insert_class_gates(Network(), {"layer9": ClassGate(K, 4)})
