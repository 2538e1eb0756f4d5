"""T2-T5, each against the network written out by hand: no gate's module, no context."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from aal_bench.attacks.adaptive import gated as attacks
from aal_bench.attacks.adaptive.losses import LOSSES
from aal_bench.attacks.adaptive.plain import pgd
from aal_bench.attacks.linf import input_gradient

NEVER = 1e-9
"""Of eps: no image of these falls, so that every attack runs to its end."""


@pytest.fixture
def tiny(lab):
    return lab.SETTING._replace(eps=lab.EPS * NEVER, step=lab.EPS * NEVER / 5)


@pytest.fixture
def labelled(gated, images):
    return images[0], gated(images[0]).argmax(1)


def features(model, x):
    return model.stem(x)


def mask(model, x):
    """M of x, from the gate's own weights."""
    gate, f = model.get_submodule("head.0"), features(model, x)
    pooled = torch.stack([f.max(1).values, f.mean(1)], 1)
    kernel = gate.conv.weight
    convolved = F.conv2d(pooled, kernel, padding=kernel.shape[-1] // 2)
    bn = gate.bn
    shifted = (convolved - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
    return (bn.weight * shifted + bn.bias).sigmoid()


def classify(model, x, M):
    """Logits of the network whose gate is a constant M."""
    classifier = model.get_submodule("head.1.1")
    return classifier((features(model, x) * M).flatten(1))


def moved(found, x, setting):
    """The perturbation in units of eps."""
    return (found - x) / float(setting.eps)


def test_the_network_by_hand_is_the_network(gated, images):
    x, _ = images
    torch.testing.assert_close(classify(gated, x, mask(gated, x)), gated(x))
    torch.testing.assert_close(attacks.masks_of(gated, x)[0], mask(gated, x).detach())
    assert (mask(gated, x).std() > 0.01).item()  # a gate that tells pixels apart


class TestT2:
    @pytest.mark.parametrize("loss", ["ce", "margin"])
    @pytest.mark.parametrize("value", [None, 0.5])
    def test_climbs_the_network_whose_gate_is_a_constant(
        self, gated, labelled, lab, tiny, loss, value
    ):
        x, y = labelled
        found = lab.attacked(attacks.held(tiny, lab.ONCE, loss, value), gated, x, y)
        M = mask(gated, x).detach() if value is None else 0.5
        expected = lab.climbed(lambda z: LOSSES[loss](classify(gated, z, M), y), x, tiny)
        torch.testing.assert_close(moved(found, x, tiny), moved(expected, x, tiny))
        plain = lab.attacked(pgd(tiny, lab.ONCE, loss), gated, x, y)
        assert not torch.equal(found, plain)

    def test_counts_only_what_fools_the_network_whose_gate_moves(self, gated, labelled, lab):
        x, y = labelled
        found = lab.attacked(attacks.held(lab.SETTING, lab.ONCE, "ce", 0.5), gated, x, y)
        fooled = gated(found).argmax(1) != y
        halved = classify(gated, found, 0.5).argmax(1) != y
        assert fooled.any()
        assert (halved & ~fooled).any()  # what a gate held open makes fall, and the gate saves


class TestT3:
    @pytest.mark.parametrize("weight", [0.1, 10.0])
    def test_climbs_the_loss_and_the_change_of_the_mask(self, gated, labelled, lab, weight):
        x, y = labelled
        small = lab.SETTING._replace(eps=1e-4, step=2e-5)
        before = mask(gated, x).detach()

        def objective(z):
            M = mask(gated, z)
            ce = F.cross_entropy(classify(gated, z, M), y, reduction="sum")
            return ce + weight * (M - before).square().sum()

        found = lab.attacked(attacks.diverted(small, lab.ONCE, weight), gated, x, y)
        assert not (gated(found).argmax(1) != y).any()
        torch.testing.assert_close(
            moved(found, x, small), moved(lab.climbed(objective, x, small), x, small)
        )

    def test_diverts_the_gate_further_than_an_attack_on_the_loss(self, gated, labelled, lab):
        x, y = labelled
        small = lab.SETTING._replace(eps=1e-4, step=2e-5)
        before = mask(gated, x)

        def change(run):
            return (mask(gated, lab.attacked(run, gated, x, y)) - before).square().sum().item()

        assert change(attacks.diverted(small, lab.ONCE, 1e4)) > 1.2 * change(
            pgd(small, lab.ONCE, "ce")
        )

    def test_moves_toward_the_mask_of_the_next_image(self, gated, labelled, lab):
        x, y = labelled
        small = lab.SETTING._replace(eps=1e-4, step=2e-5)
        goal = mask(gated, x).roll(1, 0)

        def distance(found):
            return (mask(gated, found) - goal).square().flatten(1).sum(1)

        run = attacks.diverted(small, lab.ONCE, 1e4, toward=True)
        assert (distance(lab.attacked(run, gated, x, y)) < distance(x)).all()

    def test_of_a_single_image_has_its_own_mask_mirrored(self, gated, labelled, lab):
        x, y = labelled[0][:1], labelled[1][:1]
        small = lab.SETTING._replace(eps=1e-4, step=2e-5)
        goal = mask(gated, x).flip(-1)
        found = lab.attacked(attacks.diverted(small, lab.ONCE, 1e4, toward=True), gated, x, y)
        assert (mask(gated, found) - goal).norm() < (mask(gated, x) - goal).norm()


class TestT4:
    def test_moves_the_pixels_below_the_median_or_all_others(self, gated, labelled, lab, tiny):
        x, y = labelled
        M = mask(gated, x)
        below = M.flatten(1).median(1).values.view(-1, 1, 1, 1) > M
        found = {
            where: lab.attacked(attacks.partly(tiny, lab.ONCE, where), gated, x, y) != x
            for where in ("background", "foreground")
        }
        assert not (found["background"] & ~below).any()
        assert not (found["foreground"] & below).any()
        assert (found["background"] | found["foreground"]).float().mean() > 0.99

    def test_needs_no_word_on_the_kernel(self, gated, labelled):
        """Every kernel rises or falls with M: its two halves are these two, whichever is which."""
        from aal_bench.aal.kernels import kernel

        M = mask(gated, labelled[0])

        def half(values):
            return values < values.flatten(1).median(1).values.view(-1, 1, 1, 1)

        assert torch.equal(half(kernel(M, "m2")), half(M))
        # Of an even number the median is the lower of the middle two, which change sides.
        differing = half(kernel(M, "one_minus_m2")) == half(M)
        assert int(differing.flatten(1).sum(1).max()) <= 2


class TestT5:
    @pytest.mark.parametrize("kernel", ["m", "m2", "one_minus_m2"])
    def test_fgsm_is_one_masked_step(self, gated, labelled, lab, kernel):
        x, y = labelled
        M = mask(gated, x)
        K = {"m": M, "m2": M**2, "one_minus_m2": 1 - M**2}[kernel]
        g = input_gradient(lambda z: F.cross_entropy(gated(z), y, reduction="sum"), x)
        expected = (x + lab.EPS * K * g.sign()).clamp(0, 1)
        found = attacks.masked(gated, x, y, lab.SETTING, "fgsm", kernel)
        torch.testing.assert_close(found, expected)

    def test_pgd_stays_within_the_masked_ball_and_is_stronger(self, gated, labelled, lab):
        x, y = labelled
        box = lab.EPS * mask(gated, x) ** 2
        torch.manual_seed(0)
        found = attacks.masked(gated, x, y, lab.SETTING, "pgd", steps=30)
        assert bool(((found - x).abs() <= box + 1e-12).all())
        loss = [
            F.cross_entropy(gated(z), y)
            for z in (x, attacks.masked(gated, x, y, lab.SETTING), found)
        ]
        assert loss[0] < loss[1] < loss[2]

    def test_leaves_the_network_as_it_was(self, gated, labelled, lab):
        gated.train()
        attacks.masked(gated, *labelled, lab.SETTING)
        assert gated.training
        assert all(weight.requires_grad for weight in gated.parameters())


def test_a_gate_of_somebodys_own_is_attacked_likewise(lab, images, tiny):
    torch.manual_seed(0)
    stem, gate = torch.nn.Conv2d(3, 4, 3, padding=1).double(), lab.OwnGate()
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, lab.CLASSES)).double()
    model = torch.nn.Sequential(stem, gate, head).eval()
    x = images[0]
    y = model(x).argmax(1)
    M = stem(x).sum(1, keepdim=True).sigmoid().detach()
    found = lab.attacked(attacks.held(tiny, lab.ONCE, "margin", None), model, x, y)
    expected = lab.climbed(lambda z: LOSSES["margin"](head(stem(z) * M), y), x, tiny)
    torch.testing.assert_close(moved(found, x, tiny), moved(expected, x, tiny))
