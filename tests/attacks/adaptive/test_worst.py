"""Which attacks a network gets, and the worst case of each image over them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aal_bench.attacks.adaptive import budget as budgets
from aal_bench.attacks.adaptive.budget import FULL, HEAD, QUICK, Setting
from aal_bench.attacks.adaptive.worst import Adaptive, attacks_for, bounded, worst_case


def names(model, setting, budget, **more):
    return [attack.name for attack in attacks_for(model, setting, budget, **more)]


@pytest.mark.parametrize("budget", [QUICK, FULL], ids=["quick", "full"])
@pytest.mark.parametrize("classes", [2, 3, 10])
class TestANetworkGets:
    def test_what_the_record_says_of_it(self, gated, headed, lab, budget, classes):
        """The names that the torch-free table has, those of U1 once for each head."""
        setting = Setting(lab.EPS, lab.EPS / 5, classes)
        anywhere = budgets.anywhere(budget, setting)
        plain = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
        assert sorted(names(plain, setting, budget)) == sorted(anywhere)
        on_gates = budgets.on_gates(budget)
        assert sorted(names(gated, setting, budget)) == sorted(anywhere + on_gates)
        on_heads = [
            name + f"{HEAD}1" * name.startswith("U1") for name in budgets.on_heads(budget, setting)
        ]
        assert sorted(names(headed, setting, budget)) == sorted(anywhere + on_heads)

    def test_every_name_once_with_its_source(self, headed, lab, budget, classes):
        setting = Setting(lab.EPS, lab.EPS / 5, classes)
        found = attacks_for(headed, setting, budget, [("other", headed)])
        assert len({attack.name for attack in found}) == len(found)
        assert all(attack.name.startswith(attack.source + "-") for attack in found)


def test_both_kinds_where_it_has_both_and_t7_where_it_draws(gated, lab, images):
    class Both(nn.Sequential):
        def logits(self, x):
            return self(x)

        def auxiliary_logits(self, x):
            return [self(x), 2 * self(x)]

    class Drawing(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.rand((), dtype=x.dtype)

    both = Both(gated)
    found = names(both, lab.SETTING, QUICK, x=images[0])
    assert {"T2-gate-half-ce", f"U1-pgd-ce{HEAD}2"} <= set(found)
    assert not {name for name in found if name[:2] in {"U3", "U4", "U5", "T7", "T8"}}
    drawing = Drawing(gated).eval()
    assert set(budgets.ON_RANDOM) <= set(names(drawing, lab.SETTING, QUICK, x=images[0]))
    assert not set(budgets.ON_RANDOM) & set(names(drawing, lab.SETTING, QUICK))


def test_no_masked_attack_is_among_them(gated, lab):
    """T5 is a diagnostic: it attacks with a part of eps."""
    for budget in (QUICK, FULL):
        assert not [name for name in names(gated, lab.SETTING, budget) if name.startswith("T5")]


class TestWorstCase:
    @pytest.fixture
    def threshold(self):
        """Class 1 from a mean of one half on, and attacks that return what they are told to."""

        class Threshold(nn.Module):
            def __init__(self):
                super().__init__()
                self.bound = nn.Parameter(torch.tensor(0.5))
                self.modes = []

            def forward(self, x):
                self.modes.append((self.training, self.bound.requires_grad))
                lead = x.mean((1, 2, 3)) - self.bound
                return torch.stack([-lead, lead], 1)

        seen = []

        def brighten(name, which):
            def run(_model, x, _y):
                ids = (x[:, 0, 0, 0] * 100).round().int().tolist()
                seen.append((name, ids))
                out = x.clone()
                for place, image in enumerate(ids):
                    out[place] += 0.6 * (image in which)
                return out.clamp(0, 1)

            return Adaptive(name, name[:2], run)

        attacks = [brighten("T1-a", {1, 3}), brighten("T2-b", {3, 4}), brighten("U1-c", set())]
        x = torch.tensor([1.0, 2, 3, 4, 90])[:, None, None, None].expand(5, 3, 2, 2) / 100
        return Threshold(), x.contiguous(), torch.zeros(5, dtype=torch.long), attacks, seen

    def test_has_of_each_image_the_first_that_fooled(self, threshold):
        model, x, y, attacks, seen = threshold
        worst = worst_case(model, x, y, attacks)
        assert worst.by.tolist() == [0, -1, 0, 1, -1]
        assert worst.fooled.tolist() == [
            [True, False, True, False, True],
            [False, False, False, True, True],
            [False, False, False, False, True],
        ]
        assert worst.standing.tolist() == [False, True, False, False, False]
        assert torch.equal(worst.x_adv[1], x[1])
        torch.testing.assert_close(worst.x_adv[[0, 2, 3]], x[[0, 2, 3]] + 0.6)
        assert torch.equal(worst.x_adv[4], x[4])  # wrong to begin with: no attack needed
        assert seen == [("T1-a", [1, 2, 3, 4]), ("T2-b", [2, 4]), ("U1-c", [2])]

    def test_with_every_attack_on_every_image_tells_them_apart(self, threshold):
        model, x, y, attacks, seen = threshold
        worst = worst_case(model, x, y, attacks, every=True)
        assert worst.fooled[1].tolist() == [False, False, True, True, True]
        assert worst.by.tolist() == [0, -1, 0, 1, -1]
        assert {tuple(ids) for _, ids in seen} == {(1, 2, 3, 4)}

    def test_is_judged_in_eval_mode_and_leaves_the_network_as_it_was(self, threshold):
        model, x, y, attacks, _ = threshold
        model.train()
        with torch.no_grad():
            worst_case(model, x, y, attacks)
        assert set(model.modes) == {(False, False)}
        assert model.training
        assert model.bound.requires_grad

    def test_draws_the_same_whatever_else_runs(self, hiding, bands, lab):
        x, y, _ = bands
        attacks = attacks_for(hiding, lab.SETTING, lab.ONCE)
        worst = worst_case(hiding, x, y, attacks, every=True)
        for place in (0, 3, len(attacks) - 1):
            alone = worst_case(hiding, x, y, [attacks[place]])
            assert torch.equal(alone.fooled[0], worst.fooled[place])

    def test_does_not_touch_the_callers_generator(self, hiding, bands, lab):
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        worst_case(hiding, *bands[:2], attacks_for(hiding, lab.SETTING, lab.ONCE)[:2])
        assert torch.equal(torch.rand(3), expected)

    def test_of_a_random_network_is_the_majoritys(self, images):
        class Coin(nn.Module):
            """Errs in three of ten calls."""

            def forward(self, x):
                wrong = torch.rand(len(x)) < 0.3
                return nn.functional.one_hot(wrong.long(), 2).double()

        def nothing(_model, x, _y):
            return x

        x, y = images[0], torch.zeros(12, dtype=torch.long)
        torch.manual_seed(0)
        attack = [Adaptive("T1-nothing", "T1", nothing)]
        assert worst_case(Coin(), x, y, attack, samples=101).standing.all()
        assert not worst_case(Coin(), x, y, attack).standing.all()


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_an_attack_that_leaves_the_ball_or_returns_no_number_is_an_error(wrong):
    run = bounded("T9-own", lambda _model, x, _y: x + 0.1 * wrong, 0.1)
    x = torch.full((2, 3, 4, 4), 0.5)
    with pytest.raises(ValueError, match=r"attack T9-own left the ball of radius 0\.1"):
        run(nn.Identity(), x, torch.zeros(2))
    assert (
        bounded("T9-own", lambda _model, x, _y: x + 0.1, 0.1)(nn.Identity(), x, x).shape == x.shape
    )


def test_an_attack_that_leaves_the_box_is_an_error():
    run = bounded("T9-own", lambda _model, x, _y: x + 0.1, 0.1)
    with pytest.raises(ValueError, match="or the box"):
        run(nn.Identity(), torch.ones(1, 3, 2, 2), torch.zeros(1))


class TestTheWorstCaseOfANetworkThatHides:
    def test_is_the_closed_form_where_autoattacks_gradients_find_nothing(self, hiding, bands, lab):
        x, y, stands = bands
        attacks = attacks_for(hiding, lab.SETTING, lab.ONCE)
        worst = worst_case(hiding, x, y, attacks, every=True)
        assert torch.equal(worst.standing, stands)
        on_final = [place for place, attack in enumerate(attacks) if attack.source in {"T1", "T6"}]
        assert (~worst.fooled[on_final].any(0)).sum() >= 13
        assert stands.sum() == 6
        assert not (hiding(worst.x_adv).argmax(1) == y)[~stands].any()
