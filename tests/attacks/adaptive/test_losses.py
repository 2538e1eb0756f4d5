"""Losses against their formulas, image by image."""

from __future__ import annotations

import pytest
import torch

from aal_bench.attacks.adaptive.losses import cross_entropy, dlr, margin


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(9, 5, dtype=torch.float64) * 4, torch.arange(9) % 5


def slow(logits, y):
    """(cross-entropy, margin, DLR), each a sum over images."""
    ce = wide = ratio = 0.0
    for z, label in zip(logits.tolist(), y.tolist(), strict=True):
        best = max(value for k, value in enumerate(z) if k != label)
        ranked = sorted(z, reverse=True)
        exponents = torch.tensor(z, dtype=torch.float64).exp()
        ce -= float((exponents[label] / exponents.sum()).log())
        wide += best - z[label]
        ratio += (best - z[label]) / (ranked[0] - ranked[2])
    return ce, wide, ratio


def test_they_are_their_formulas(logits):
    found = [float(loss(*logits)) for loss in (cross_entropy, margin, dlr)]
    assert found == pytest.approx(slow(*logits), rel=1e-9)


def test_dlr_does_not_change_with_scale_or_shift(logits):
    z, y = logits
    assert float(dlr(1e4 * z - 3, y)) == pytest.approx(float(dlr(z, y)), rel=1e-9)


def test_of_two_classes_the_margin_stands_in_for_dlr(logits):
    z, y = logits[0][:, :2], logits[1] % 2
    assert torch.equal(dlr(z, y), margin(z, y))


def test_half_precision_logits_are_compared_in_float32(logits):
    z = logits[0].bfloat16()
    assert cross_entropy(z, logits[1]).dtype == torch.float32
    assert torch.equal(margin(z, logits[1]), margin(z.float(), logits[1]))
