"""T8: where the network's own gradients say nothing, another network's do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aal_bench.attacks.adaptive.plain import pgd
from aal_bench.attacks.adaptive.transfer import transferred_apgd, transferred_pgd


class Band(nn.Module):
    """Class 0 as long as the image's mean is below 0.5."""

    def forward(self, x):
        lead = 200 * (0.5 - x.mean((1, 2, 3)))
        return torch.stack([lead, -lead], 1)


class Steps(Band):
    """The same on rounded pixels, whose gradient is zero."""

    def forward(self, x):
        return super().forward((x * 1000).round() / 1000)


@pytest.fixture
def greys(lab):
    """Grey images that need 0.25 to 2.05 eps to be brightened beyond one half."""
    lead = lab.EPS * torch.linspace(0.25, 2.05, 10, dtype=torch.float64)
    x = (0.5 - lead)[:, None, None, None].expand(10, 3, 8, 8).contiguous()
    return x, torch.zeros(10, dtype=torch.long), lead > lab.EPS


@pytest.mark.parametrize("transferred", [transferred_pgd, transferred_apgd])
def test_adversarials_of_a_surrogate_fell_what_a_network_without_gradients_hides(
    greys, lab, transferred
):
    x, y, stands = greys
    target, setting = Steps().eval(), lab.SETTING._replace(classes=2)
    own = lab.attacked(pgd(setting, lab.ONCE, "ce"), target, x, y)
    found = lab.attacked(transferred(setting, lab.ONCE, Band()), target, x, y)
    fell = target(found).argmax(1) != y
    assert torch.equal(fell, ~stands)
    assert fell.sum() >= 2 + (target(own).argmax(1) != y).sum()
    assert float((found - x).abs().max()) <= lab.EPS + 1e-12


def test_the_surrogate_is_attacked_in_eval_mode_and_left_as_it_was(greys, lab):
    x, y, _ = greys
    modes = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x):
            modes.append((self.training, self.scale.requires_grad))
            return Band()(x) * self.scale

    surrogate = Watched().train()
    run = transferred_pgd(lab.SETTING._replace(classes=2), lab.ONCE, surrogate)
    lab.attacked(run, Steps().eval(), x, y)
    assert set(modes) == {(False, False)}
    assert surrogate.training
    assert surrogate.scale.requires_grad
