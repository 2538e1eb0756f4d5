"""SelectiveFGSM and SelectivePGD in somebody else's loop."""

import copy

import pytest
import torch
import torchattacks
from torch import nn
from torch.nn import functional as F

from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.aal.options import Gate, Selective
from aal_bench.attacks.linf import linf_pgd
from aal_bench.attacks.selective import SelectiveFGSM, SelectivePGD

EPS = 8 / 255


@pytest.fixture
def net():
    """A training network whose second BN somebody froze, with a gate before the second conv."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    net = insert_gate(nn.Sequential(*layers).double(), "3", Gate(bn_weight_init=1))
    net.train()
    net[4].eval()
    return net


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 1, 4])


def attacks(net, **options):
    chosen = Selective(**options)
    return SelectiveFGSM(net, EPS, chosen), SelectivePGD(net, EPS, 2 / 255, 3, chosen)


def flags(net):
    return [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("which", [0, 1], ids=["fgsm", "pgd"])
def test_the_model_is_left_as_it_was_found_whatever_the_loops_mode(net, batch, which, grad):
    """torchattacks' own base class unfreezes the batch norm, and raises under no_grad."""
    before, statistics = flags(net), net[1].running_mean.clone()
    with grad():
        attack = attacks(net)[which]
        found = attack(batch[0] + 0, batch[1])
    assert flags(net) == before
    assert torch.equal(net[1].running_mean, statistics)
    assert all(weight.grad is None for weight in net.parameters())
    assert not found.requires_grad
    assert 0 < (found - batch[0]).abs().max() <= EPS + 1e-15
    torchattacks.FGSM(net, eps=EPS)(*batch)
    assert flags(net) != before  # what the base class does


def test_what_they_return_is_inside_the_masked_box(net, batch):
    x, y = batch
    for attack in attacks(net):
        K = attack.associate(x, y).K
        assert K.shape == (4, 1, 8, 8)
        assert (((attack(x, y) - x).abs() - EPS * K) <= 1e-15).all()


def test_a_gate_pinned_to_one_makes_them_torchattacks_own(net, batch):
    """k(1) = 1 and Eqs. 12-13 switched off: the mask is full and FGSM and PGD remain."""
    x, y = batch
    net.eval()
    off = {"xi1": 0.0, "gamma": "none"}
    with gate_of(net).pinned(torch.ones(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)):
        fgsm, pgd = (attack(x, y) for attack in attacks(net, start="clean", **off))
        torch.testing.assert_close(fgsm, torchattacks.FGSM(net, EPS)(x, y), rtol=0, atol=1e-15)
        theirs = torchattacks.PGD(net, EPS, 2 / 255, 3, random_start=False)(x, y)
        torch.testing.assert_close(pgd, theirs, rtol=0, atol=1e-14)
        torch.manual_seed(5)
        random = attacks(net, **off)[1](x, y)
        torch.manual_seed(5)
        theirs = torchattacks.PGD(net, EPS, 2 / 255, 3, random_start=True)(x, y)
        torch.testing.assert_close(random, theirs, rtol=0, atol=1e-14)


def test_fgsm_costs_one_pass_and_pgd_one_more_than_its_steps(net, batch):
    seen = []

    def count(_module, _inputs, logits):
        seen.append("forward")
        logits.register_hook(lambda _g: seen.append("backward"))

    net.register_forward_hook(count)
    fgsm, pgd = attacks(net)
    fgsm(*batch)
    assert (seen.count("forward"), seen.count("backward")) == (1, 1)
    pgd(*batch)
    assert (seen.count("forward"), seen.count("backward")) == (1 + 4, 1 + 4)
    attacks(net, start="clean")[1](*batch)
    assert (seen.count("forward"), seen.count("backward")) == (5 + 3, 5 + 3)


def test_normalisation_outside_the_model_is_torchattacks_own(net, batch):
    x, y = batch
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    shape = {"dtype": torch.float64}
    m, s = (torch.tensor(v, **shape).view(1, 3, 1, 1) for v in (mean, std))
    attack = SelectiveFGSM(net, EPS)
    attack.set_normalization_used(mean, std)
    moved = attack((x - m) / s, y) * s + m
    assert ((moved - x).abs() <= EPS + 1e-6).all()
    assert (moved - x).abs().max() > 1e-3


@pytest.mark.parametrize("craft_bn", ["eval", "train"])
def test_a17_the_crafting_mode(net, batch, craft_bn):
    modes = []
    net.register_forward_pre_hook(lambda *_: modes.append(net[1].training))
    before = flags(net)
    for attack in attacks(net, craft_bn=craft_bn):
        attack(*batch)
    assert set(modes) == {craft_bn == "train"}
    assert flags(net) == before


@pytest.mark.parametrize("start", ["clean", "uniform", "gaussian"])
@pytest.mark.parametrize("pgd_refresh", [False, True])
def test_a14_and_a5_the_starts_and_the_refreshed_mask(net, batch, start, pgd_refresh):
    options = Selective(start=start, pgd_refresh=pgd_refresh)
    attack = SelectivePGD(net, EPS, 2 / 255, 3, options)
    moved = attack(*batch) - batch[0]
    assert 0 < moved.abs().max() <= EPS + 1e-15
    attack.steps = 0
    if start == "clean":
        torch.testing.assert_close(attack(*batch), batch[0], rtol=0, atol=0)


def test_fgsm_refuses_a_start_of_its_own(net):
    for start in ("uniform", "gaussian"):
        with pytest.raises(ValueError, match="SelectivePGD"):
            SelectiveFGSM(net, options=Selective(start=start))


def test_a_model_without_a_gate_is_refused():
    with pytest.raises(ValueError, match="exactly one SpatialGate"):
        SelectiveFGSM(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))


@pytest.mark.parametrize("which", [0, 1], ids=["fgsm", "pgd"])
@pytest.mark.parametrize("craft_bn", ["eval", "train"])
def test_a10_an_undetached_mask_carries_the_training_gradient_to_the_gate(
    net, batch, which, craft_bn
):
    """The masked attack, trained through its mask: the gate's gradient is another one."""

    def gate_gradient(detach):
        torch.manual_seed(3)
        own = copy.deepcopy(net)  # every pass in training mode moves the running statistics
        attack = attacks(own, detach_mask=detach, craft_bn=craft_bn)[which]
        x_adv = attack(*batch)
        assert x_adv.requires_grad is not detach
        loss = F.cross_entropy(own(x_adv), batch[1])
        return torch.autograd.grad(loss, gate_of(own).conv.weight)[0]

    assert (gate_gradient(False) - gate_gradient(True)).abs().max() > 1e-6


def test_it_raises_the_loss_of_the_model_it_attacks(net, batch):
    x, y = batch
    net.eval()

    def loss(images):
        return F.cross_entropy(net(images), y).item()

    fgsm, pgd = (attack(x, y) for attack in attacks(net, start="clean"))
    full = linf_pgd(lambda z: F.cross_entropy(net(z), y, reduction="sum"), x, x, EPS, 2 / 255, 3)
    assert loss(x) < loss(fgsm)
    assert loss(x) < loss(pgd) < loss(full)
