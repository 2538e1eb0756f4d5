"""U1-U5: against the network written out by hand, and where nothing else finds anything."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from aal_bench.attacks.adaptive import headed as attacks
from aal_bench.attacks.adaptive.losses import LOSSES
from aal_bench.attacks.adaptive.plain import auto_pgd, pgd
from aal_bench.attacks.adaptive.search import others
from aal_bench.attacks.linf import linf_pgd, uniform_start


@pytest.fixture
def tiny(lab):
    """So small a ball that no image falls, and every attack runs to its end."""
    return lab.SETTING._replace(eps=lab.EPS * 1e-9, step=lab.EPS * 2e-10)


@pytest.fixture
def labelled(headed, images):
    return images[0], headed(images[0]).argmax(1)


def parts(model, x):
    """Features, auxiliary logits and the gate's weights (K,C)."""
    f = model.model.stem[0](x)
    fc = model.gates[0].fc
    return f, f.mean((2, 3)) @ fc.weight.T + fc.bias, fc.weight


def final(model, f, gate):
    return model.model.head(f * gate[:, :, None, None])


def hard(model, x):
    f, a, W = parts(model, x)
    return final(model, f, W[a.argmax(1)]), a


def pinned(model, x, classes):
    f, a, W = parts(model, x)
    return final(model, f, W[classes]), a


def soft(model, x):
    f, a, W = parts(model, x)
    return final(model, f, a.softmax(1) @ W)


def straight(model, x):
    f, a, W = parts(model, x)
    gate = a.softmax(1) @ W
    return final(model, f, gate + (W[a.argmax(1)] - gate).detach())


def check(run, objective, headed, labelled, lab, tiny):
    """The attack ends where plain PGD on the objective written out by hand ends."""
    x, y = labelled
    found = lab.attacked(run, headed, x, y)
    expected = lab.climbed(lambda z: objective(z, y), x, tiny)
    scale = float(tiny.eps)
    torch.testing.assert_close((found - x) / scale, (expected - x) / scale)


def test_the_network_by_hand_is_the_network(headed, images):
    logits, auxiliary = hard(headed, images[0])
    torch.testing.assert_close(logits, headed(images[0]))
    torch.testing.assert_close(auxiliary, headed.auxiliary_logits(images[0])[0])
    assert len(auxiliary.argmax(1).unique()) > 1


class TestEachClimbsItsOwnObjective:
    @pytest.mark.parametrize("loss", ["ce", "margin"])
    def test_u1_the_auxiliary_logits_alone(self, headed, labelled, lab, tiny, loss):
        run = attacks.one_head(tiny, lab.ONCE, 0, loss)
        check(run, lambda z, y: LOSSES[loss](hard(headed, z)[1], y), headed, labelled, lab, tiny)

    @pytest.mark.parametrize("beta", [0.1, 1.0, 100.0])
    @pytest.mark.parametrize("loss", ["ce", "dlr"])
    def test_u2_the_sum_of_both(self, headed, labelled, lab, tiny, beta, loss):
        def objective(z, y):
            logits, auxiliary = hard(headed, z)
            return LOSSES[loss](logits, y) + beta * LOSSES[loss](auxiliary, y)

        run = attacks.joint(tiny, lab.ONCE, beta, loss)
        check(run, objective, headed, labelled, lab, tiny)

    @pytest.mark.parametrize(("gating", "network"), [("soft", soft), ("straight", straight)])
    @pytest.mark.parametrize("loss", ["ce", "margin"])
    def test_u3_the_network_with_a_soft_gate_or_with_its_gradient(
        self, headed, labelled, lab, tiny, loss, gating, network
    ):
        run = attacks.softened(tiny, lab.ONCE, loss, gating)
        check(run, lambda z, y: LOSSES[loss](network(headed, z), y), headed, labelled, lab, tiny)

    @pytest.mark.parametrize("loss", ["ce", "margin"])
    def test_u5_the_network_gated_by_the_true_class(self, headed, labelled, lab, tiny, loss):
        run = attacks.true_pinned(tiny, lab.ONCE, loss)
        check(
            run, lambda z, y: LOSSES[loss](pinned(headed, z, y)[0], y), headed, labelled, lab, tiny
        )

    def test_u4_each_class_in_turn_down_to_the_last(self, headed, labelled, lab, tiny):
        x, y = labelled
        last = others(headed(x), y)[:, -1]

        def objective(z, _):
            logits, auxiliary = pinned(headed, z, last)
            return -F.cross_entropy(logits, last, reduction="sum") - F.cross_entropy(
                auxiliary, last, reduction="sum"
            )

        found = lab.attacked(attacks.class_pinned(tiny, lab.ONCE), headed, x, y)
        eps = float(tiny.eps)
        torch.manual_seed(0)
        for _ in range(lab.CLASSES - 1):  # nothing falls, and every class has a start of its own
            start = uniform_start(x, eps)
        expected = linf_pgd(
            lambda z: objective(z, y), x, start, eps, float(tiny.alpha), lab.ONCE.steps
        )
        torch.testing.assert_close((found - x) / eps, (expected - x) / eps)


class TestAgainstANetworkThatHides:
    """Its final logits are constant piece by piece: what stands is known in closed form."""

    @pytest.mark.parametrize("loss", ["ce", "margin"])
    def test_an_attack_on_the_final_logits_finds_nothing_but_by_chance(
        self, hiding, bands, lab, loss
    ):
        """What the uniform start alone felled; every gradient is zero."""
        x, y, _ = bands
        run = pgd(lab.SETTING, lab.ONCE, loss)
        stood = hiding(lab.attacked(run, hiding, x, y)).argmax(1) == y
        assert stood.sum() >= 14

    def test_neither_does_apgd(self, hiding, bands, lab):
        x, y, _ = bands
        run = auto_pgd(lab.SETTING, lab.ONCE, "ce")
        assert (hiding(lab.attacked(run, hiding, x, y)).argmax(1) == y).sum() >= 14

    @pytest.mark.parametrize(
        "attack",
        [
            lambda s, b: attacks.one_head(s, b, 0, "ce"),
            lambda s, b: attacks.one_head(s, b, 0, "margin"),
            lambda s, b: attacks.auto_pgd_on_head(s, b, 0, "ce"),
            lambda s, b: attacks.auto_pgd_on_head(s, b, 0, "dlr-targeted"),
            lambda s, b: attacks.joint(s, b, 0.5, "ce"),
            lambda s, b: attacks.joint(s, b, 100.0, "dlr"),
            lambda s, b: attacks.softened(s, b, "ce", "soft"),
            lambda s, b: attacks.softened(s, b, "margin", "straight"),
            lambda s, b: attacks.class_pinned(s, b),
        ],
        ids=[
            "U1-ce",
            "U1-margin",
            "U1-apgd",
            "U1-apgd-t",
            "U2-ce",
            "U2-dlr",
            "U3-soft",
            "U3-bpda",
            "U4",
        ],
    )
    def test_these_fell_exactly_what_can_fall(self, hiding, bands, lab, attack):
        x, y, stands = bands
        found = lab.attacked(attack(lab.SETTING, lab.ONCE), hiding, x, y)
        assert torch.equal(hiding(found).argmax(1) == y, stands)
        assert float((found - x).abs().max()) <= lab.EPS + 1e-9

    def test_and_so_does_fab(self, hiding, bands, lab):
        """pyautoattack's FAB is of float32."""
        x, y, stands = bands[0].float(), bands[1], bands[2]
        budget = lab.ONCE._replace(fab_steps=30)
        model = hiding.float()
        found = lab.attacked(attacks.fab_on_head(lab.SETTING, budget, 0), model, x, y)
        assert torch.equal(model(found).argmax(1) == y, stands)

    def test_a_gate_pinned_at_the_true_class_has_no_gradient_either(self, hiding, bands, lab):
        x, y, _ = bands
        run = attacks.true_pinned(lab.SETTING, lab.ONCE, "ce")
        assert (hiding(lab.attacked(run, hiding, x, y)).argmax(1) == y).sum() >= 14


def test_what_a_pinned_gate_fells_counts_only_where_the_network_itself_errs(hiding, bands, lab):
    """Pinned at a class, this network says that class whatever it sees: of that nothing counts."""
    x, y, stands = bands
    found = lab.attacked(attacks.class_pinned(lab.SETTING, lab.ONCE), hiding, x, y)
    target = (y + 1) % lab.CLASSES
    with hiding.pinned(target):
        assert (hiding(found).argmax(1) == target).all()
    assert torch.equal(hiding(found).argmax(1) == y, stands)


def test_heads_of_somebodys_own_network_are_attacked_behind_its_normalisation(lab, images, tiny):
    torch.manual_seed(0)
    own, before = lab.Own().double().eval(), torch.nn.BatchNorm2d(3).double().eval()
    before.running_mean.fill_(0.4)  # pyright: ignore
    model = torch.nn.Sequential(before, own).eval()
    x = images[0]
    y = model(x).argmax(1)
    found = lab.attacked(attacks.one_head(tiny, lab.ONCE, 1, "ce"), model, x, y)
    expected = lab.climbed(lambda z: LOSSES["ce"](own.second(own.pooled(before(z))), y), x, tiny)
    eps = float(tiny.eps)
    torch.testing.assert_close((found - x) / eps, (expected - x) / eps)
