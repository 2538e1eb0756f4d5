import copy
from shutil import which

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aal_bench.aal.attention import SpatialGate, gate_of, has_gate, insert_gate
from aal_bench.aal.options import Gate


def varied_gate(**options) -> SpatialGate:
    torch.manual_seed(0)
    return SpatialGate(Gate(bn_weight_init=1, **options), channels=4).double()


def test_the_mask_is_cbams_formula():
    gate, f = varied_gate().train(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    both = torch.cat([f.max(1, keepdim=True).values, f.mean(1, keepdim=True)], 1)
    response = F.conv2d(F.pad(both, (3, 3, 3, 3)), gate.conv.weight)
    standard = (response - response.mean()) / (response.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(gate(f), f * torch.sigmoid(standard))


def test_cbams_initial_gate_is_one_half_everywhere():
    f = torch.randn(2, 4, 6, 6)
    assert torch.equal(SpatialGate()(f), f / 2)


def test_the_channel_gate_comes_first():
    gate, f = varied_gate(channel_gate=True).eval(), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert gate.channel is not None
    scores = gate.channel.mlp(f.mean((2, 3))) + gate.channel.mlp(f.flatten(2).max(2).values)
    scaled = f * torch.sigmoid(scores).view(2, 4, 1, 1)
    torch.testing.assert_close(gate(f), scaled * gate.mask(scaled))
    with pytest.raises(ValueError, match="number of channels"):
        SpatialGate(Gate(channel_gate=True))


def test_a_readings_gradient_is_the_finite_difference_over_a_pinned_mask(gated, batch):
    net, (x, y) = gated(), batch
    gate = gate_of(net)
    with gate.reading() as reading:
        loss = F.cross_entropy(net(x), y, reduction="sum")
    (g_mask,) = torch.autograd.grad(loss, reading.M)

    def at(mask: torch.Tensor) -> float:
        with gate.pinned(mask), torch.no_grad():
            return float(F.cross_entropy(net(x), y, reduction="sum"))

    mask = reading.M.detach()
    assert at(mask) == pytest.approx(loss.item(), abs=1e-12)
    for place in [(0, 0, 0, 0), (1, 0, 4, 3), (2, 0, 7, 7)]:
        nudge = torch.zeros_like(mask)
        nudge[place] = 1e-5
        slope = (at(mask + nudge) - at(mask - nudge)) / 2e-5
        assert slope == pytest.approx(float(g_mask[place]), rel=1e-6, abs=1e-10)


def test_reading_yields_the_latest_mask_and_needs_a_forward_pass(gated, batch):
    net, (x, _) = gated(), batch
    gate = gate_of(net)
    with gate.reading() as reading:
        with pytest.raises(RuntimeError, match="before a forward"):
            _ = reading.M
        net(x)
        first = reading.M
        net(1 - x)
        assert not torch.equal(reading.M, first)
    kept = reading.M
    net(x)
    assert reading.M is kept


def test_pinning_takes_numbers_and_tensors_and_ends_with_its_context(gated, batch):
    net, (x, _) = gated(), batch
    gate, plain = gate_of(net), net(x)
    mean = gate.train().bn.running_mean.clone()
    with gate.pinned(0.5), gate.reading() as reading:
        half = net(x)
    assert reading.M.shape == (3, 1, 8, 8)
    assert (reading.M == 0.5).all()
    assert torch.equal(gate.eval().bn.running_mean, mean)
    with gate.pinned(torch.full((3, 1, 8, 8), 0.5, dtype=torch.float64)):
        assert torch.equal(net(x), half)
    with pytest.raises(KeyError), gate.pinned(0.0):
        raise KeyError
    assert torch.equal(net(x), plain)


def test_the_mask_is_float32_under_autocast():
    gate, f = SpatialGate(Gate(bn_weight_init=1)), torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16), gate.reading() as reading:
        out = gate(f.bfloat16())
    assert (reading.M.dtype, out.dtype) == (torch.float32, torch.bfloat16)


def test_inserting_a_gate_multiplies_the_modules_input_and_nothing_else(gated, batch):
    net, (x, _) = gated(), batch
    gate, body = net.body
    f = net.act(net.conv(x))
    torch.testing.assert_close(net(x), net.head(net.flat(net.pool(net.out(body(gate(f)))))))
    assert gate.conv.weight.dtype == torch.float64


def test_insertion_inside_a_sequential_keeps_frozen_modes():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4).eval()))
    net[1].training = True
    insert_gate(net, "1", Gate())
    assert isinstance(net[1][0], SpatialGate)
    assert net[1][0].training
    assert not net[1][1][1].training
    assert net(torch.rand(2, 3, 4, 4)).shape == (2, 4, 4, 4)


def test_exactly_one_gate():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert not has_gate(net)
    with pytest.raises(ValueError, match="this one 0"):
        gate_of(net)
    for wrong in ["2", "relu", ""]:
        with pytest.raises(ValueError, match="module"):
            insert_gate(net, wrong, Gate())
    insert_gate(net, "1", Gate())
    assert has_gate(net)
    with pytest.raises(ValueError, match="already"):
        insert_gate(net, "0", Gate())
    with pytest.raises(ValueError, match="this one 2"):
        gate_of(nn.Sequential(net, copy.deepcopy(net)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
def test_a_compiled_network_gives_the_same_gradients_and_honours_pins(gated, batch):
    net, (x, y) = gated(), batch
    gate, compiled = gate_of(net), torch.compile(net, backend="aot_eager")

    def gradients(network):
        z = x.clone().requires_grad_()
        with gate.reading() as reading:
            loss = F.cross_entropy(network(z), y, reduction="sum")
        return torch.autograd.grad(loss, (z, reading.M))

    for ours, eager in zip(gradients(compiled), gradients(net), strict=True):
        torch.testing.assert_close(ours, eager)
    with gate.pinned(0.5):
        torch.testing.assert_close(compiled(x), net(x))
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.skipif(which("g++") is None, reason="torch.compile writes C++ and no compiler is here")
def test_a_compiled_bfloat16_gate_gives_finite_gradients():
    """Compiled, the features may be formed twice in two precisions: their maximum must not be
    found again by comparison, or the gradient is 0/0."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    net = nn.Sequential(stem, SpatialGate()).train()
    x = torch.rand(4, 3, 8, 8)
    compiled = torch.compile(net)
    with torch.autocast("cpu", torch.bfloat16):
        loss = compiled(x).float().square().sum()
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())
