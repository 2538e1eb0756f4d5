"""Check 32 against shifts done in numpy and the normal distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.shifts import broader_shifts
from aal_bench.audit.table import QUICK


class Brightness(nn.Module):
    """Class 1 where the pixel in row 3, column 4 is brighter than one half."""

    def forward(self, x):
        seen = x[:, 0, 3, 4]
        return torch.stack([torch.full_like(seen, 0.5), seen], 1)


@pytest.fixture
def images():
    x = torch.rand(200, 1, 9, 9, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1)
    return x, (x[:, 0, 3, 4] > 0.5).long()


def test_translations_are_those_of_numpy_in_four_directions_with_black_from_outside(
    subject, images
):
    x, y = images
    outcome = broader_shifts(Bank(subject(Brightness(), x, y), QUICK))
    for pixels in (2, 4):
        seen = []
        for down, right in ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)):
            padded = np.pad(x[:, 0].numpy(), ((0, 0), (4, 4), (4, 4)))
            moved = padded[:, 3 + 4 - down, 4 + 4 - right]
            seen.append(((moved > 0.5) == y.numpy()).mean())
        assert outcome.measured[f"translation-{pixels}"] == pytest.approx(np.mean(seen), abs=1e-6)


def test_noise_leaves_the_share_that_the_normal_distribution_says(subject):
    x = torch.full((4000, 3, 9, 9), 0.55)
    y = torch.ones(4000, dtype=torch.long)
    torch.manual_seed(0)
    outcome = broader_shifts(Bank(subject(Brightness(), x, y), QUICK))
    for sigma in (0.02, 0.05, 0.1):
        expected = norm.cdf(0.05 / sigma)
        assert outcome.measured[f"noise-{sigma:g}"] == pytest.approx(expected, abs=0.025)


def test_a_rotation_keeps_the_centre_and_whatever_it_costs_the_check_never_fails(subject, images):
    class Centre(nn.Module):
        def forward(self, x):
            return torch.stack([torch.full_like(x[:, 0, 4, 4], 0.5), x[:, 0, 4, 4]], 1)

    x, _ = images
    y = (x[:, 0, 4, 4] > 0.5).long()
    kept = broader_shifts(Bank(subject(Centre(), x, y), QUICK))
    assert kept.measured["rotation-10"] == kept.measured["rotation-30"] == 1.0
    lost = broader_shifts(Bank(subject(Brightness(), x, 1 - images[1], classes=2), QUICK))
    assert lost.measured["clean"] == 0.0
    assert (kept.verdict, lost.verdict) == ("pass", "pass")
