"""The two drivers: they climb as PGD and APGD do, and keep what first fools the plain network."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import nn
from torch.nn import functional as F

from aal_bench.attacks.adaptive.losses import cross_entropy
from aal_bench.attacks.adaptive.search import Seen, Surrogate, apgd, errs, first_fooling, others
from aal_bench.attacks.counting import Counted
from aal_bench.attacks.linf import attacking, uniform_start


@pytest.fixture
def net(lab):
    torch.manual_seed(2)
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, lab.CLASSES)
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


@pytest.fixture
def batch(net, images):
    return images[0], net(images[0]).argmax(1)


def plainly(net, y):
    def objective(x, rows):
        logits = net(x)
        return Seen(cross_entropy(logits, y[rows]), logits)

    return objective


def unseeing(net, y):
    """The same, without a word on what the plain network says."""
    return lambda x, rows: Seen(cross_entropy(net(x), y[rows]))


def slow(net, x, y, setting, steps):
    """Each image alone, step by step, up to the first iterate that the network errs on."""
    torch.manual_seed(0)
    starts = uniform_start(x, float(setting.eps))
    found, fooled = [], []
    for image, start, label in zip(x, starts, y, strict=True):
        now = start.clone()
        for _ in range(steps):
            if net(now[None]).argmax() != label:
                break
            now.requires_grad_()
            gradient = torch.autograd.grad(F.cross_entropy(net(now[None]), label[None]), now)[0]
            moved = now.detach() + float(setting.alpha) * gradient.sign()
            now = torch.minimum(torch.maximum(moved, image - setting.eps), image + setting.eps)
            now = now.clamp(0, 1)
        found.append(now)
        fooled.append(bool(net(now[None]).argmax() != label))
    return torch.stack(found), torch.tensor(fooled)


class TestFirstFooling:
    def test_is_pgd_of_each_image_alone_stopped_where_it_fools(self, net, batch, lab):
        x, y = batch
        expected, fooled = slow(net, x, y, lab.SETTING, lab.ONCE.steps)
        assert 0 < fooled.sum() < len(x)  # some fall, at different steps, and some stand
        torch.manual_seed(0)
        found = first_fooling(partial(errs, net), plainly(net, y), x, y, lab.SETTING, lab.ONCE)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_looks_at_the_plain_network_on_the_way_where_the_objective_does_not(
        self, net, batch, lab
    ):
        """An objective that leads away again: what fooled in between is kept all the same."""
        x, y = batch
        calls = []

        def wandering(z, rows):
            calls.append(len(rows))
            back = 1 if len(calls) <= lab.ONCE.check else -1
            return Seen(back * cross_entropy(net(z), y[rows]))

        torch.manual_seed(0)
        found = first_fooling(partial(errs, net), wandering, x, y, lab.SETTING, lab.ONCE)
        once = lab.ONCE._replace(steps=lab.ONCE.check)
        torch.manual_seed(0)
        early = first_fooling(partial(errs, net), unseeing(net, y), x, y, lab.SETTING, once)
        fell = errs(net, early, y)
        assert fell.any()
        assert torch.equal(found[fell], early[fell])
        assert calls[0] == len(x)
        assert calls[-1] == int((~fell).sum())  # the fooled ones are not attacked any more

    @pytest.mark.parametrize(("objective", "looks"), [(plainly, 1), (unseeing, 3)])
    def test_costs_what_it_says(self, net, batch, lab, objective, looks):
        """Twenty steps, and a look at the end, or after 7, 14 and 20; for each of two starts."""
        x, _ = batch
        standing = nn.Sequential(net, Offset(lab.CLASSES)).eval()
        model, y = Counted(standing).eval(), torch.zeros(len(x), dtype=torch.long)
        model.watch(x)
        budget = lab.ONCE._replace(restarts=2)
        first_fooling(partial(errs, model), objective(model, y), x, y, lab.SETTING, budget)
        forwards, backwards = model.counts()
        assert set(forwards.tolist()) == {2 * (lab.ONCE.steps + looks)}
        assert set(backwards.tolist()) == {2 * lab.ONCE.steps}

    def test_starts_again_only_what_stands(self, net, batch, lab):
        x, y = batch
        sizes = []

        def counting(z, rows):
            sizes.append(len(rows))
            return plainly(net, y)(z, rows)

        twice = lab.ONCE._replace(restarts=2)
        torch.manual_seed(0)
        found = first_fooling(partial(errs, net), counting, x, y, lab.SETTING, twice)
        stood = int((~slow(net, x, y, lab.SETTING, lab.ONCE.steps)[1]).sum())
        assert sizes[lab.ONCE.steps] == stood
        torch.manual_seed(0)
        once = first_fooling(partial(errs, net), plainly(net, y), x, y, lab.SETTING, lab.ONCE)
        fell = errs(net, once, y)
        assert torch.equal(found[fell], once[fell])

    def test_keeps_to_a_budget_of_its_own_for_each_pixel(self, net, batch, lab):
        x, y = batch
        eps = torch.rand(len(x), 1, *x.shape[2:], dtype=x.dtype) * 0.1
        found = first_fooling(partial(errs, net), plainly(net, y), x, y, lab.SETTING, lab.ONCE, eps)
        assert bool(((found - x).abs() <= eps + 1e-12).all())


class Offset(nn.Module):
    """Class 0 leads by far: every image stands."""

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("lead", 100 * torch.eye(classes, dtype=torch.float64)[0])

    def forward(self, logits):
        return logits + self.lead


class TestAPGD:
    @pytest.mark.parametrize("loss", ["ce", "dlr"])
    def test_of_the_network_itself_fells_what_the_toolkits_own_fells(self, net, batch, lab, loss):
        net, x = net.float(), batch[0].float()
        y = net(x).argmax(1)
        budget = lab.ONCE
        toolkit = APGDAttack(
            net, n_iter=budget.apgd_steps, eps=lab.EPS, loss=loss, seed=7, device=x.device
        )
        expected = errs(net, toolkit.perturb(x, y), y)
        assert 0 < expected.sum() < len(x)
        torch.manual_seed(7)
        surrogate = Surrogate(partial(errs, net), lambda z: (net(z),) * 2)
        with attacking(net):
            found = apgd(surrogate, x, y, lab.SETTING, budget, loss)
        assert torch.equal(errs(net, found, y), expected)
        assert float((found - x).abs().max()) <= lab.EPS + 1e-6

    def test_goes_on_where_the_surrogate_errs_and_the_network_does_not(self, net, batch, lab):
        """A surrogate that errs on every image from the start: the toolkit's would stop at once."""
        x, y = batch

        def look(z):
            logits = net(z)
            return logits - 30 * F.one_hot(y, lab.CLASSES), logits

        torch.manual_seed(0)
        with attacking(net):
            found = apgd(Surrogate(partial(errs, net), look), x, y, lab.SETTING, lab.ONCE, "ce")
        assert errs(net, found, y).any()

    def test_keeps_the_first_iterate_that_fools(self, net, batch, lab):
        """Recorded in the passes themselves, beside what the attack returns."""
        x, y = batch
        seen = []

        def look(z):
            logits = net(z)
            seen.append(z.detach().clone())
            return logits, logits

        torch.manual_seed(0)
        with attacking(net):
            found = apgd(Surrogate(partial(errs, net), look), x, y, lab.SETTING, lab.ONCE, "ce")
        wrong = torch.stack([errs(net, z, y) for z in seen])
        fell = wrong.any(0)
        assert fell.any()
        first = torch.stack(seen)[wrong.int().argmax(0), torch.arange(len(x))]
        assert torch.equal(found[fell], first[fell])

    def test_on_targets_takes_each_images_likeliest_others_in_turn(self, net, batch, lab):
        x, y = batch
        order = others(net(x), y)
        for image, label, row in zip(net(x), y, order, strict=True):
            ranked = sorted(range(lab.CLASSES), key=lambda k, z=image: -float(z[k]))
            assert row.tolist() == [k for k in ranked if k != int(label)]
        model = Counted(nn.Sequential(net, Offset(lab.CLASSES)).eval()).eval()
        model.watch(x)
        zeros = torch.zeros_like(y)
        with attacking(model):
            apgd(
                Surrogate(partial(errs, model), lambda z: (model(z),) * 2),
                *(x, zeros, lab.SETTING, lab.ONCE, "dlr-targeted"),
            )
        forwards, backwards = model.counts()
        runs = lab.CLASSES - 1
        # Both looks of a pass are one: (logits,) * 2 calls the network once.
        assert set(forwards.tolist()) == {runs * (lab.ONCE.apgd_steps + 2)}
        assert set(backwards.tolist()) == {runs * (lab.ONCE.apgd_steps + 1)}
