"""Checks 25 and 26: masked attacks and gates whose answer is known, and a class-gated network."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from aal_bench.aal.attention import SpatialGate
from aal_bench.again.class_gate import ClassGate
from aal_bench.again.heads import Headed, all_logits, insert_class_gates
from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start
from aal_bench.audit.adaptive import tried
from aal_bench.audit.bank import Bank
from aal_bench.audit.checks.gates import gate_pinning, mask_honesty
from aal_bench.audit.subject import Claim, Claims
from aal_bench.audit.table import QUICK
from aal_bench.data import digits
from tests.audit.models import Mean, grey

SMALL = QUICK._replace(steps=20, restarts=1)
N = 80
EPS = 8 / 255


class TwoClasses(nn.Module):
    """z_1 - z_0 = 20 (mean - 1/2), behind a gate or none: robust up to |mean - 1/2|."""

    def __init__(self, gate: SpatialGate | None = None) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x):
        f = 20 * (x - 0.5)
        z = (f if self.gate is None else self.gate(f)).mean((1, 2, 3))
        return torch.stack([-z / 2, z / 2], 1)


def ramp():
    """Images (N,3,4,4) whose distances from the boundary run from 0 to 2 eps, and their labels."""
    y = torch.arange(N) % 2
    distance = (torch.arange(N) + 0.5) / N * 2 * EPS
    return (0.5 + distance * (2 * y - 1))[:, None, None, None].expand(N, 3, 4, 4).clone(), y


def left(eps):
    """Share of the ramp that lies beyond `eps`."""
    return float(((np.arange(N) + 0.5) / N * 2 * EPS > eps).mean())


def claimed(eps, stage="pgd-10"):
    """The claim of an attack that reaches `eps` of the ramp and no farther."""
    ok = (np.arange(N) + 0.5) / N * 2 * EPS > eps
    return Claims(stages=(Claim(stage, ok, np.ones(N, bool)),))


def test_a_claimed_attack_that_keeps_the_whole_eps_is_honest(subject):
    bank = Bank(subject(TwoClasses(), *ramp(), claims=claimed(EPS)), SMALL)
    outcome = mask_honesty(bank)
    assert bank.fgsm_correct().double().mean() == pytest.approx(left(EPS))
    assert outcome.verdict == "pass"
    assert outcome.value == 0


def test_a_claimed_attack_within_a_quarter_of_eps_makes_the_number_unreliable(subject):
    outcome = mask_honesty(Bank(subject(TwoClasses(), *ramp(), claims=claimed(EPS / 4)), SMALL))
    assert outcome.verdict == "fail"
    assert outcome.severity is None
    assert outcome.value == pytest.approx(left(EPS / 4) - left(EPS), abs=1e-4)
    assert "pgd-10" in outcome.sentence


@pytest.mark.parametrize("stage", ["pgd-10", "cw-inf-30", "apgd-ce", "bf16-apgd-t", "adaptive"])
def test_an_iterated_claim_is_held_against_pgd_of_as_many_steps(subject, stage):
    # Small steps: FGSM jumps over the boundary's other side, ten steps stop where it is wrong.
    x, y = grey()
    model = Mean(lambda d: (d.abs() / EPS - 0.5).abs() - 0.25)
    everything = Claims(stages=(Claim(stage, np.ones(100, bool), np.ones(100, bool)),))
    fields = {"classes": 2, "step": EPS / 10, "claims": everything}
    outcome = mask_honesty(Bank(subject(model, x + 0.1 * EPS, y, **fields), SMALL))
    assert outcome.measured[f"{stage} above fgsm"] == 0
    assert (outcome.verdict, outcome.severity) == ("fail", None)
    assert "weaker than its name says" in outcome.sentence


def test_pgd_that_returns_its_last_iterate_is_honest_where_an_earlier_one_fooled(subject):
    # A constant step passes through the hole and lands beyond it.
    x, y = grey()
    model = Mean(lambda d: (d.abs() / EPS - 0.5).abs() - 0.25 + 0 * d)
    made = subject(model, x + 0.1 * EPS, y, classes=2, step=0.9 * EPS)
    own = Bank(made, SMALL).pgd()
    assert not torch.equal(own.at(10), own.stands)
    last = Claims(stages=(Claim("pgd-10", own.at(10).numpy(), np.ones(100, bool)),))
    outcome = mask_honesty(Bank(replace(made, claims=last), SMALL))
    assert outcome.measured["pgd-10 above the audit's pgd-10"] == 0


@pytest.mark.parametrize("stage", ["bf16-square", "bf16-fab-t"])
def test_stages_without_gradient_ascent_are_no_claim_of_one(subject, stage):
    bank = Bank(subject(TwoClasses(), *ramp(), claims=claimed(0.0, stage)), SMALL)
    assert mask_honesty(bank).verdict == "not applicable"


def test_an_attack_that_only_saw_survivors_is_judged_on_those(subject):
    ok = np.arange(N) >= N / 2
    seen = Claims(stages=(Claim("apgd-t", ok, ok.copy()),))
    assert mask_honesty(Bank(subject(TwoClasses(), *ramp(), claims=seen), SMALL)).verdict == "pass"


def test_square_may_be_weaker_than_a_step_and_without_gate_and_claim_nothing_is_asked(subject):
    for claims in (claimed(0.0, "square"), Claims()):
        bank = Bank(subject(TwoClasses(), *ramp(), claims=claims), SMALL)
        assert mask_honesty(bank).verdict == "not applicable"


def test_a_gate_that_would_mask_warns_and_the_full_number_stands(subject):
    # A new gate's mask is 1/2 everywhere: k = M^2 keeps a quarter of eps.
    made = subject(TwoClasses(SpatialGate()), *ramp(), method="aal-fgsm", claims=claimed(EPS))
    outcome = mask_honesty(Bank(made, SMALL))
    assert (outcome.verdict, outcome.severity) == ("fail", "warning")
    assert outcome.measured["mean k"] == pytest.approx(0.25)
    assert outcome.measured["masked fgsm"] == pytest.approx(left(EPS / 4))
    assert outcome.measured["full fgsm"] == pytest.approx(left(EPS))
    assert "only the full-eps number" in outcome.sentence


def test_the_kernel_is_the_methods_and_of_a_foreign_gate_the_mask_itself(subject):
    gate = SpatialGate()
    nn.init.constant_(gate.bn.bias, 1.0)
    mask = 1 / (1 + np.exp(-1.0))
    for fields, kernel in (
        ({"method": "aal-pgd", "method_options": {"kernel": "one_minus_m2"}}, 1 - mask**2),
        ({"method": "aal-pgd"}, mask**2),
        ({}, mask),
    ):
        outcome = mask_honesty(Bank(subject(TwoClasses(gate), *ramp(), **fields), SMALL))
        assert outcome.measured["mean k"] == pytest.approx(kernel, abs=1e-6)


def test_a_closed_mask_is_told_even_where_it_costs_nothing(subject):
    gate = SpatialGate()
    nn.init.constant_(gate.bn.bias, -5.0)
    x, y = ramp()
    far = y[:, None, None, None] * 0.8 + 0.1 + 0 * x  # nothing falls to any attack
    outcome = mask_honesty(Bank(subject(TwoClasses(gate), far, y), SMALL))
    assert outcome.measured["masked fgsm"] == outcome.measured["full fgsm"] == 1.0
    assert (outcome.verdict, outcome.severity) == ("fail", "warning")
    assert "closed mask" in outcome.sentence


def test_a_masked_claim_stays_unreliable_behind_a_gate(subject):
    made = subject(TwoClasses(SpatialGate()), *ramp(), claims=claimed(EPS / 4))
    outcome = mask_honesty(Bank(made, SMALL))
    assert (outcome.verdict, outcome.severity) == ("fail", None)


# ---- 26 ----


class Supervised(nn.Module):
    """Two linear heads on the pixels: none hides the other; `same`: they always agree."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.main, self.side = nn.Linear(48, 2), nn.Linear(48, 2)
        if same:
            self.side.load_state_dict(self.main.state_dict())

    def forward(self, x):
        return self.main(x.flatten(1) - 0.5)

    def logits(self, x):
        return self(x)

    def auxiliary_logits(self, x):
        return [self.side(x.flatten(1) - 0.5)]


@pytest.mark.parametrize(("same", "verdict"), [(False, "pass"), (True, "fail")])
def test_attacks_on_the_head_of_a_linear_network_break_nothing_further(subject, same, verdict):
    model = Supervised(same)
    x = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    y = model(x).argmax(1)
    outcome = gate_pinning(Bank(subject(model, x, y, classes=2), SMALL))
    assert outcome.verdict == verdict
    # One that only repeats a head is told of, and the number stands.
    assert outcome.severity == ("warning" if same else None)
    agreed = (model.side(x.flatten(1) - 0.5).argmax(1) == y).double().mean()
    assert outcome.measured["agreement"] == pytest.approx(float(agreed))
    weight = model.main.weight.detach()
    distance = (model(x).detach() @ torch.tensor([-1.0, 1.0])).abs()
    standing = (distance > EPS * (weight[1] - weight[0]).abs().sum()).double().mean()
    assert outcome.measured["worst"] == outcome.measured["usual"] == pytest.approx(float(standing))


def test_a_network_without_heads_is_not_asked(subject):
    assert gate_pinning(Bank(subject(TwoClasses(), *ramp()), SMALL)).verdict == "not applicable"


@pytest.fixture(scope="module")
def class_gated():
    """A network with class gates, adversarially trained on the digits for seconds, and images."""
    found = digits.read(8)
    x = torch.from_numpy(found.train.images).float() / 255
    y = torch.from_numpy(found.train.labels)
    torch.manual_seed(0)
    network = insert_class_gates(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(48 * 16, 10),
        ),
        {"2": ClassGate(10, 48)},
    )
    eps, optimiser = 48 / 255, torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(250):
        rows = torch.randint(len(x), (64,))
        pixels, labels = x[rows], y[rows]
        with attacking(network):
            loss = partial(joint, network, labels)
            start = uniform_start(pixels, eps)
            x_adv = linf_pgd(loss, pixels, start, eps, eps / 3, 4)
        optimiser.zero_grad()
        with network.train().labelled(labels):
            (joint(network, labels, x_adv) / 64).backward()
        optimiser.step()
    test = torch.from_numpy(found.test.images[:50]).float() / 255
    return network.eval().requires_grad_(False), test, torch.from_numpy(found.test.labels[:50])


def joint(network: Headed, y, x):
    """CE of the final logits + 2 CE of the gate's own."""
    final, auxiliary = all_logits(network, x)
    ce = functional.cross_entropy
    return ce(final, y, reduction="sum") + 2 * ce(auxiliary, y, reduction="sum")


def test_a_class_gated_network_is_unreliable_because_attacks_on_its_head_break_it(
    subject, class_gated
):
    made = subject(*class_gated, eps="48/255", step=12 / 255, classes=10)
    bank = Bank(made, SMALL)
    outcome = gate_pinning(bank)
    assert outcome.verdict == "fail"
    assert outcome.severity is None
    usual, worst = outcome.measured["usual"], outcome.measured["worst"]
    assert usual - worst > 0.05
    # By other code: PGD on the head's cross-entropy alone already breaks more than is left.
    network, x, y = class_gated
    torch.manual_seed(3)
    with attacking(network):
        x_adv = linf_pgd(
            lambda z: functional.cross_entropy(all_logits(network, z)[1], y, reduction="sum"),
            *(x, uniform_start(x, 48 / 255), 48 / 255, 12 / 255, 20),
        )
        stands = (network(x_adv).argmax(1) == y).double().mean()
    assert float(stands) < usual
    assert worst <= outcome.measured["head 1"] <= float(bank.correct().double().mean())


def test_images_that_the_claims_own_adaptive_stage_felled_are_a_warning(subject, class_gated):
    network, x, y = class_gated
    fields = {"eps": "48/255", "step": 12 / 255, "classes": 10}
    bank = Bank(subject(network, x, y, **fields), SMALL)
    broken = np.ones(len(y), bool)
    for stands in tried(bank).values():
        broken &= stands.numpy()
    honest = Claims(stages=(Claim("adaptive", broken, np.ones(len(y), bool)),))
    outcome = gate_pinning(Bank(subject(network, x, y, **fields, claims=honest), SMALL))
    assert (outcome.verdict, outcome.severity) == ("fail", "warning")
    nothing = Claims(stages=(Claim("adaptive", np.ones(len(y), bool), np.ones(len(y), bool)),))
    assert (
        gate_pinning(Bank(subject(network, x, y, **fields, claims=nothing), SMALL)).severity is None
    )
