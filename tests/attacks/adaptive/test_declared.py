"""A network declares a gate or heads by what it offers, whoever wrote it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aal_bench.attacks.adaptive.declared import count_heads, declares, every_logits, gates, heads
from aal_bench.attacks.counting import Counted


def test_a_spatial_gate_is_a_gate_and_class_gates_are_heads(gated, headed):
    assert [type(gate).__name__ for gate in gates(gated)] == ["SpatialGate"]
    assert (heads(gated), gates(headed)) == (None, [])
    assert heads(headed) is headed
    assert declares(gated)
    assert declares(headed)


def test_they_are_found_inside_whatever_wraps_them(gated, headed):
    assert gates(Counted(gated)) == gates(gated)
    assert heads(nn.Sequential(nn.Identity(), headed)) is headed


def test_a_network_of_somebodys_own_declares_them_by_offering_the_same(lab):
    gate = lab.OwnGate()
    assert gates(nn.Sequential(nn.Conv2d(3, 2, 1), gate)) == [gate]
    own = lab.Own()
    assert heads(nn.Sequential(nn.BatchNorm2d(3), own)) is own


def test_a_plain_network_declares_nothing():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    assert not declares(model)
    assert (gates(model), heads(model), count_heads(model)) == ([], None, 0)
    with pytest.raises(ValueError, match="declares no auxiliary heads"):
        every_logits(model, torch.rand(1, 3, 8, 8))


class TestEveryLogits:
    def test_come_from_one_pass_of_a_headed_network(self, headed, images):
        model = Counted(headed).eval()
        model.watch(images[0])
        final, auxiliary = every_logits(model, images[0])
        assert set(model.counts()[0].tolist()) == {1}
        torch.testing.assert_close(final, headed(images[0]), rtol=0, atol=0)
        torch.testing.assert_close(auxiliary, headed.auxiliary_logits(images[0])[0])

    def test_of_another_network_do_not_forget_what_stands_before_it(self, lab, images):
        """A normalisation in front, as every network of the zoo has it."""
        torch.manual_seed(0)
        own, before = lab.Own().double(), nn.BatchNorm2d(3).double().eval()
        before.running_mean.fill_(0.4)  # pyright: ignore
        x = images[0].clone().requires_grad_()
        found = every_logits(nn.Sequential(before, own), x)
        expected = [own.logits(before(x)), *own.auxiliary_logits(before(x))]
        assert len(found) == 3
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
            gradients = [
                torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (one, other)
            ]
            torch.testing.assert_close(*gradients)

    def test_are_counted(self, headed, lab, images):
        assert count_heads(headed) == 1
        assert count_heads(lab.Own().double(), images[0]) == 2
        with pytest.raises(ValueError, match="an image is needed"):
            count_heads(lab.Own())

    def test_of_a_part_that_the_forward_goes_around_are_an_error(self, lab, images):
        class Around(nn.Module):
            def __init__(self):
                super().__init__()
                self.part = lab.Own().double()

            def forward(self, x):
                return self.part.logits(x)

        with pytest.raises(ValueError, match="does not call it"):
            every_logits(Around(), images[0])
