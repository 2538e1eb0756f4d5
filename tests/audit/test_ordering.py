"""Check 23 on networks whose order of attacks is known beforehand."""

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.ordering import attack_ordering
from aal_bench.audit.subject import Claim, Claims
from aal_bench.audit.table import QUICK
from aal_bench.evidence import Evidence
from aal_bench.registry import AUTOATTACK

SMALL = QUICK._replace(steps=20, restarts=1)
N = 100


class TwoClasses(nn.Module):
    """With two classes the margin and cross-entropy have gradients of one sign."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight


class Decoy(nn.Module):
    """Class 1 is nearest and cannot be reached; class 2 can, but the margin never looks at it."""

    def forward(self, x):
        reach = 0.5 + 20 * (x - 0.5).mean((1, 2, 3))
        return torch.stack([torch.ones_like(reach), torch.full_like(reach, 0.9), reach], 1)


@pytest.fixture
def grey():
    return 0.5 + 0.01 * torch.randn(N, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def evidence(**standing: int) -> Evidence:
    """Every image is correct; attack -> so many images stand, the first ones."""
    table = Evidence(np.arange(N), np.zeros(N, int))
    table.record("clean", np.arange(N), pred=np.zeros(N, int))
    for stage, left in standing.items():
        pred = (np.arange(N) >= left).astype(int)
        table.record(stage.replace("_", "-"), np.arange(N), pred=pred)
    return table


def claims(table: Evidence) -> Claims:
    stages = [Claim(s, table.column(s, "ok"), table.column(s, "attacked")) for s in table.stages]
    return Claims(stages=tuple(stages), evidence=table)


def test_where_margin_and_cross_entropy_are_one_loss_nothing_is_out_of_order(subject, grey):
    model = TwoClasses()
    made = subject(model, grey, model(grey).argmax(1), eps="4/255")
    outcome = attack_ordering(Bank(made, SMALL))
    assert outcome.verdict == "pass"
    assert outcome.value == 0


def test_a_margin_that_looks_at_the_wrong_class_is_told(subject, grey):
    made = subject(Decoy(), grey, torch.zeros(N, dtype=torch.long), classes=3)
    outcome = attack_ordering(Bank(made, SMALL))
    # Cross-entropy moves every pixel up by eps, the logit by 20 eps = 0.63 > 0.5.
    assert outcome.value == 1.0
    assert outcome.verdict == "fail"


@pytest.mark.parametrize(("left", "verdict"), [(66, "pass"), (80, "fail")])
def test_the_claimed_c_and_w_is_compared_with_the_claimed_autoattack(subject, grey, left, verdict):
    table = evidence(cw_inf_30=left, apgd_ce=65, apgd_t=63, fab_t=63, square=63)
    assert set(AUTOATTACK) < set(table.stages)
    model = TwoClasses()
    # The claimed AutoAttack is true: eps breaks all but the 63 images that lie farthest from the
    # boundary.
    z, w = model(grey).detach(), model.weight.detach()
    distance = (z[:, 1] - z[:, 0]).abs() / (w[:, 1] - w[:, 0]).abs().sum()
    grey = grey[distance.argsort(descending=True)]
    eps = float(distance.sort(descending=True).values[62:64].mean())
    made = subject(model, grey, model(grey).argmax(1), eps=eps, claims=claims(table))
    outcome = attack_ordering(Bank(made, SMALL))
    gap = outcome.measured["claimed cw-inf-30 - claimed AutoAttack"]
    assert gap == pytest.approx((left - 63) / 100)
    assert outcome.measured["PGD-20 - the claimed AutoAttack"] == pytest.approx(0, abs=1e-9)
    assert outcome.verdict == verdict
    assert outcome.value == pytest.approx(0.17 if verdict == "fail" else 0)


def test_with_apgd_among_them_the_audits_own_attacks_stand_for_autoattack(subject, grey):
    class Four(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.randn(48, 4, generator=torch.Generator().manual_seed(2))
            self.weight = nn.Parameter(weight)

        def forward(self, x):
            return (x.flatten(1) - 0.5) @ self.weight

    model = Four()
    y = model(grey).argmax(1)
    made = subject(model, grey, y, eps="1/255", classes=4)
    outcome = attack_ordering(Bank(made, SMALL._replace(apgd_targets=3)))
    gap = outcome.measured["PGD-20 - all white-box attacks of the audit"]
    # Linear: an image stands against all if every other class is farther than eps |w_k - w_y|_1.
    z, w = model(grey).detach(), model.weight.detach()
    need = (1 / 255) * (w[:, None, :] - w[:, :, None]).abs().sum(0)
    stands = ((z.gather(1, y[:, None]) - z > need[y]) | (torch.arange(4) == y[:, None])).all(1)
    bank = Bank(made, SMALL)
    left = float((bank.correct() & bank.pgd().at(20)).double().mean())
    assert gap == pytest.approx(left - float(stands.double().mean()), abs=1e-6)
