"""FGSM, RS-FGSM and PGD against torchattacks and the official code's steps, written out."""

import math

import torch
import torchattacks
from torch.nn import functional as F

from aal_bench.adapters.classification import cross_entropy

EPS, ALPHA = 8 / 255, 2 / 255


def attack(method, net, batch):
    torch.manual_seed(0)
    return method.attack(net, batch, cross_entropy(net))


def test_fgsm_is_torchattacks_fgsm(toy, batch, make):
    net = toy().eval()
    theirs = torchattacks.FGSM(net, eps=EPS)(batch.x, batch.targets)
    torch.testing.assert_close(attack(make("fgsm"), net, batch), theirs, rtol=0, atol=1e-15)


def test_pgd_is_torchattacks_pgd_from_the_same_start(toy, batch, make):
    net = toy().eval()
    torch.manual_seed(0)
    theirs = torchattacks.PGD(net, eps=EPS, alpha=ALPHA, steps=10)(batch.x, batch.targets)
    torch.testing.assert_close(attack(make("pgd"), net, batch), theirs, rtol=0, atol=1e-14)


def test_rs_fgsm_is_one_long_step_from_a_random_start(toy, batch, make):
    """Wong et al.: delta ~ U(-eps, eps) in the box, + 1.25 eps sign(g), clipped to both."""
    net, x = toy().eval(), batch.x
    torch.manual_seed(0)
    delta = (torch.rand_like(x) * 2 - 1) * EPS
    delta = ((x + delta).clamp(0, 1) - x).requires_grad_()
    F.cross_entropy(net(x + delta), batch.targets).backward()
    assert delta.grad is not None
    stepped = (delta + 10 / 255 * delta.grad.sign()).clamp(-EPS, EPS)
    expected = (x + stepped).clamp(0, 1).detach()
    found = attack(make("rs-fgsm"), net, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    shorter = attack(make("rs-fgsm", step_over_eps=0.5), net, batch)
    assert not torch.equal(shorter, found)


def test_the_loss_is_cross_entropy_on_what_the_method_trains_on(toy, batch, make):
    for name in ("standard", "fgsm", "rs-fgsm", "pgd"):
        net, method = toy(), make(name)
        x_adv = attack(method, net, batch)
        mean = math.fsum(
            (math.log(math.fsum(map(math.exp, logits))) - logits[label]) / 6
            for logits, label in zip(net(x_adv).tolist(), batch.targets.tolist(), strict=True)
        )
        loss = method.loss(net, batch, x_adv, cross_entropy(net))
        assert math.isclose(loss.item(), mean, rel_tol=1e-12)


def test_craft_bn_train_crafts_with_the_statistics_of_the_batch(toy, batch, make):
    net = toy()
    method = make("fgsm", craft_bn="train")
    x = batch.x.clone().requires_grad_()
    loss = F.cross_entropy(net.train()(x), batch.targets, reduction="sum")
    expected = (batch.x + EPS * torch.autograd.grad(loss, x)[0].sign()).clamp(0, 1)
    assert torch.equal(attack(method, net, batch), expected)
    assert not torch.equal(attack(make("fgsm"), net, batch), expected)
