"""TRADES against its formula, summed by hand in float64."""

import math

import torch
from torch.nn import functional as F

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.base import Threat

EPS, ALPHA = 8 / 255, 2 / 255


def softmax(logits: list[float]) -> list[float]:
    total = math.fsum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def divergence(clean: torch.Tensor, adversarial: torch.Tensor) -> float:
    """Mean over the batch of KL(p || q), p and q the softmax of the two logits."""
    total = []
    for p, q in zip(clean.tolist(), adversarial.tolist(), strict=True):
        pairs = zip(softmax(p), softmax(q), strict=True)
        total.append(math.fsum(a * math.log(a / b) for a, b in pairs))
    return math.fsum(total) / len(total)


def test_the_loss_is_cross_entropy_plus_beta_times_the_divergence(toy, batch, make):
    net = toy()
    x_adv = (batch.x + 0.1 * torch.randn_like(batch.x)).clamp(0, 1)
    clean, adversarial = net(batch.x), net(x_adv)  # batch statistics, as in training
    nll = [
        -math.log(softmax(logits)[label])
        for logits, label in zip(clean.tolist(), batch.targets.tolist(), strict=True)
    ]
    kl = divergence(clean, adversarial)
    assert kl > 1e-3
    for beta in (0.0, 1.0, 6.0):
        loss = make("trades", beta=beta).loss(net, batch, x_adv, cross_entropy(net))
        assert math.isclose(loss.item(), math.fsum(nll) / 6 + beta * kl, rel_tol=1e-12)


def test_without_beta_it_is_standard_training_to_the_gradient(toy, batch, make):
    x_adv = (batch.x + 0.1).clamp(0, 1)

    def gradients(name, **options):
        net = toy()
        loss = make(name, **options).loss(
            net, batch, x_adv if options else batch.x, cross_entropy(net)
        )
        return [loss, *torch.autograd.grad(loss, list(net.parameters()))]

    for ours, theirs in zip(gradients("trades", beta=0.0), gradients("standard"), strict=True):
        assert torch.equal(ours, theirs)


def test_the_gradient_goes_through_both_the_clean_and_the_attacked_pass(toy, batch, make):
    """The official code detaches neither: d/dlogits of KL is p (log p/q - KL) on the clean side."""
    net = toy().eval()
    x_adv = (batch.x + 0.1).clamp(0, 1)
    robust = [
        make("trades", beta=beta).loss(net, batch, x_adv, cross_entropy(net)) for beta in (1, 0)
    ]
    (found,) = torch.autograd.grad(robust[0] - robust[1], net.body[-1].bias)
    p, q = net(batch.x).softmax(1), net(x_adv).softmax(1)
    kl = (p * (p / q).log()).sum(1, keepdim=True)
    expected = (p * ((p / q).log() - kl) + (q - p)).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def official_attack(net, x, start):
    """The official inner loop with its own clean forward in every step."""
    x_adv = start
    for _ in range(10):
        x_adv = x_adv.detach().requires_grad_()
        p, log_q = net(x).softmax(1), net(x_adv).log_softmax(1)
        loss = (p * (p.log() - log_q)).sum()
        (g,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv + ALPHA * g.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


def test_the_attack_is_the_official_one_and_maximises_the_divergence(toy, batch, make):
    net, x = toy().eval(), batch.x
    torch.manual_seed(0)
    start = x + 0.001 * torch.randn_like(x)
    expected = official_attack(net, x, start.clamp(0, 1))
    torch.manual_seed(0)
    x_adv = make("trades").attack(net, batch, cross_entropy(net))
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        reached = divergence(net(x), net(x_adv))
        for seed in range(20):  # no random corner of the ball comes near
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
            corner = (x + EPS * (noise.double() - 0.5).sign()).clamp(0, 1)
            assert reached > 3 * divergence(net(x), net(corner))
        assert reached > 3 * divergence(net(x), net(start))


def test_the_attack_needs_no_label(toy, batch, make):
    net, found = toy(), []
    for targets in (batch.targets, batch.targets.flip(0)):
        torch.manual_seed(0)
        method = make("trades", Threat(EPS, ALPHA, 3))
        found.append(method.attack(net, batch._replace(targets=targets), cross_entropy(net)))
    assert torch.equal(*found)


def test_half_precision_logits_are_lifted_before_the_losses(toy, batch, make):
    net = toy().float()
    batch = batch._replace(x=batch.x.float())
    x_adv = (batch.x + 0.1).clamp(0, 1)
    method = make("trades")
    with torch.autocast("cpu", torch.bfloat16):
        assert net(batch.x).dtype == torch.bfloat16
        loss = method.loss(net, batch, x_adv, cross_entropy(net))
        logits = net(batch.x).float(), net(x_adv).float()
    assert loss.dtype == torch.float32
    kl = divergence(*logits)
    ce = F.cross_entropy(logits[0].double(), batch.targets).item()
    assert math.isclose(loss.item(), ce + 6 * kl, rel_tol=1e-5)
