"""The adaptive worst case of an audit, on a gated network whose answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench.aal.attention import SpatialGate
from aal_bench.audit.adaptive import openings, tried, worst_case
from aal_bench.audit.bank import Bank
from aal_bench.audit.table import QUICK
from tests.audit.models import Stochastic, some_digits, trained

SMALL = QUICK._replace(steps=20, restarts=1)
N, EPS = 40, 8 / 255


class Gated(nn.Module):
    """z_1 - z_0 = 20 M (mean - 1/2); a new gate's M is 1/2 everywhere."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x):
        z = self.gate(20 * (x - 0.5)).mean((1, 2, 3))
        return torch.stack([-z / 2, z / 2], 1)


@pytest.fixture
def bank(subject):
    """bank(gate) -> images at distances from 0 to 2 eps from the boundary, two of them wrong."""

    def make(gate: nn.Module, **fields) -> Bank:
        y = torch.arange(N) % 2
        distance = (torch.arange(N) + 0.5) / N * 2 * EPS
        x = (0.5 + distance * (2 * y - 1))[:, None, None, None].expand(N, 3, 4, 4)
        y = torch.where(torch.arange(N) >= N - 2, 1 - y, y)
        return Bank(subject(Gated(gate), x.clone(), y, method="aal-pgd", **fields), SMALL)

    return make


def standing(eps):
    """(N,) correct, and farther than eps from the boundary."""
    return ((np.arange(N) + 0.5) / N * 2 * EPS > eps) & (np.arange(N) < N - 2)


def test_the_worst_case_is_what_the_distances_leave(bank):
    made = bank(SpatialGate())
    found = worst_case(made)
    assert found is not None
    assert found.clean == pytest.approx((N - 2) / N)
    assert found.usual == found.robust == pytest.approx(standing(EPS).mean())
    for name in ("T1-full-ce", "T2-gate-half-margin", "T3-divert-1"):
        assert found.attacks[name] == pytest.approx(standing(EPS).mean())


def test_the_worst_case_is_the_share_that_no_attack_fells(bank):
    made = bank(SpatialGate())
    found = worst_case(made)
    assert found is not None
    everything = np.stack([each.numpy() for each in tried(made).values()])
    together = everything.all(0) & made.survivors().numpy()
    assert found.robust == pytest.approx(together.mean())
    for name, each in tried(made).items():
        assert found.attacks[name] == pytest.approx(each.double().mean().item())
        assert not each[~made.correct()].any()


def test_masked_attacks_are_told_as_a_diagnostic_and_enter_no_worst_case(bank):
    found = worst_case(bank(SpatialGate()))
    assert found is not None
    assert set(found.diagnostic) == {"T5-masked-fgsm", "T5-masked-pgd"}
    # k = M^2 = 1/4, so the masked step is one of eps / 4.
    assert found.diagnostic["T5-masked-fgsm"] == pytest.approx(standing(EPS / 4).mean())
    assert found.diagnostic["T5-masked-fgsm"] > found.robust + 0.3
    assert not any(name.startswith("T5") for name in found.attacks)


def test_the_openings_are_the_means_of_the_kernel(bank):
    gate = SpatialGate()
    nn.init.constant_(gate.bn.bias, -1.0)
    opened = openings(bank(gate))
    assert opened.shape == (N,)
    assert torch.allclose(opened, torch.tensor(1 / (1 + np.e)).float() ** 2, atol=1e-6)


def test_what_is_made_for_one_question_serves_the_others(bank):
    made = bank(SpatialGate())
    worst_case(made)
    spent = made.spent
    tried(made)
    worst_case(made)
    assert made.spent == spent
    assert spent.forward > 100 * N


def test_surrogates_are_among_the_attacks(bank):
    other = Gated(SpatialGate()).eval()
    found = worst_case(bank(SpatialGate(), surrogates=(("twin", other),)))
    assert found is not None
    # The twin is the same network: its adversarials are this one's.
    assert found.attacks["T8-twin-pgd"] == pytest.approx(standing(EPS).mean())


def test_a_network_that_declares_nothing_has_no_adaptive_worst_case(bank):
    assert worst_case(bank(nn.Identity())) is None


def test_a_random_network_is_attacked_by_eot_although_it_declares_nothing(subject):
    x, y = some_digits(16)
    made = Bank(subject(Stochastic(base=trained()), x, y, eps="32/255", classes=10), SMALL)
    found = worst_case(made)
    assert found is not None
    assert {"T1-full-ce", "T7-eot-ce", "T7-eot-margin", "T7-eot-apgd-ce"} <= set(found.attacks)
    assert found.robust <= min(found.usual, *found.attacks.values())
    assert found.attacks["T7-eot-ce"] < found.clean


def test_surrogates_of_one_name_are_all_tried(bank):
    weak = Gated(SpatialGate()).eval()
    constant = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    nn.init.zeros_(constant[1].weight)
    for pair in ((weak, constant), (constant, weak)):
        made = bank(SpatialGate(), surrogates=tuple(("twin", each) for each in pair))
        found = tried(made)["T8-twin-pgd"]
        assert found.double().mean() == pytest.approx(standing(EPS).mean())


def test_nor_has_a_gated_one_without_a_gradient(bank):
    class Cut(SpatialGate):
        def forward(self, f):
            return super().forward(f.detach())

    assert worst_case(bank(Cut())) is None
