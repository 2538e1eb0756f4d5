"""MART against its formula with the official code's constants, summed by hand in float64."""

import math

import pytest
import torch

from aal_bench.adapters.classification import cross_entropy
from aal_bench.methods.mart import MART, boosted_cross_entropy, divergence

EPS, ALPHA = 8 / 255, 2 / 255


def softmax(logits: list[float]) -> list[float]:
    total = math.fsum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def written_out(clean, adversarial, labels, beta):
    """(BCE, divergence weighted by the missed probability): means over the batch."""
    boosted, weighted = [], []
    for natural, attacked, label in zip(clean, adversarial, labels, strict=True):
        p, q = softmax(natural), softmax(attacked)
        rival = max(value for k, value in enumerate(q) if k != label)
        boosted.append(-math.log(q[label]) - math.log(1.0001 - rival + 1e-12))
        kl = math.fsum(a * (math.log(a) - math.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        weighted.append(kl * (1.0000001 - p[label]))
    return math.fsum(boosted) / len(labels) + beta * math.fsum(weighted) / len(labels)


@pytest.fixture
def perturbed(batch):
    noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(2)).double()
    return (batch.x + 0.1 * noise).clamp(0, 1)


@pytest.mark.parametrize("beta", [0.0, 1.0, 5.0, 6.0])
def test_the_loss_is_boosted_cross_entropy_plus_the_weighted_divergence(
    toy, batch, make, perturbed, beta
):
    net = toy()
    with torch.no_grad():
        net.body[-1].weight.mul_(20)  # probabilities from near 0 to near 1
    clean, adversarial = net(batch.x).tolist(), net(perturbed).tolist()
    labels = batch.targets.tolist()
    assert any(max(row) == row[label] for row, label in zip(adversarial, labels, strict=True))
    assert any(max(row) != row[label] for row, label in zip(adversarial, labels, strict=True))
    loss = make("mart", beta=beta).loss(net, batch, perturbed, cross_entropy(net))
    expected = written_out(clean, adversarial, labels, beta)
    assert math.isclose(loss.item(), expected, rel_tol=1e-9)


def test_the_official_weight_for_a_resnet_18_is_the_default(make):
    assert make("mart").options.beta == 5


def test_its_gradient_is_that_of_finite_differences_in_every_layer(toy, batch, make, perturbed):
    net, method = toy(), make("mart")

    def loss():
        return method.loss(net, batch, perturbed, cross_entropy(net))

    weights = list(net.parameters())
    gradients = torch.autograd.grad(loss(), weights)
    generator = torch.Generator().manual_seed(4)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=generator).double()
        ends = []
        with torch.no_grad():
            for move in (1e-6, -2e-6):
                weight += move * direction
                ends.append(loss())
            weight += 1e-6 * direction
        slope = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-5, atol=1e-9)


def test_the_gradient_flows_through_the_missed_probability_too(toy, batch, make, perturbed):
    """As officially, where nothing is detached: d/dz of KL (1 - p_y) by the product rule."""
    net = toy().eval()
    y = batch.targets
    robust = [
        make("mart", beta=beta).loss(net, batch, perturbed, cross_entropy(net)) for beta in (1, 0)
    ]
    (found,) = torch.autograd.grad(robust[0] - robust[1], net.body[-1].bias)
    p, q = net(batch.x).softmax(1), net(perturbed).softmax(1)
    kl = (p * (p / q).log()).sum(1, keepdim=True)
    p_y = p.gather(1, y[:, None])
    through_kl = p * ((p / q).log() - kl) + (q - p)
    through_missed = -p_y * (torch.nn.functional.one_hot(y, 5) - p)
    expected = ((1 - p_y) * through_kl + kl * through_missed).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-10)
    detached = ((1 - p_y) * through_kl).mean(0)
    assert (found - detached).abs().max() > 1e-4 * found.abs().max()


def test_the_attack_is_pgd_on_cross_entropy_from_a_gaussian_start(toy, batch, make):
    net, x, y = toy().eval(), batch.x, batch.targets
    torch.manual_seed(0)
    expected = (x + 0.001 * torch.randn_like(x)).clamp(0, 1)
    for _ in range(10):
        expected = expected.detach().requires_grad_()
        loss = -net(expected).log_softmax(1).gather(1, y[:, None]).sum()
        (slope,) = torch.autograd.grad(loss, expected)
        stepped = expected + ALPHA * slope.sign()
        expected = torch.min(torch.max(stepped, x - EPS), x + EPS).clamp(0, 1)
    torch.manual_seed(0)
    x_adv = make("mart").attack(net, batch, cross_entropy(net))
    torch.testing.assert_close(x_adv, expected.detach(), rtol=0, atol=1e-12)


def test_probabilities_that_underflow_leave_loss_and_gradient_finite():
    """In float32 a logit gap of 200 makes probabilities of exactly 0 and 1, right or wrong."""
    clean = torch.tensor([[0.0, 200, 1], [200, 0, 1]], requires_grad=True)
    adversarial = torch.tensor([[200.0, 0, 1], [0, 1, 200]], requires_grad=True)
    y = torch.tensor([1, 1])
    loss = (divergence(clean, adversarial) + boosted_cross_entropy(adversarial, y)).sum()
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (clean, adversarial)):
        assert gradient.isfinite().all()


def test_half_precision_logits_are_lifted_before_the_losses(toy, batch, make, perturbed):
    net = toy().float()
    batch, perturbed = batch._replace(x=batch.x.float()), perturbed.float()
    with torch.autocast("cpu", torch.bfloat16):
        clean, adversarial = net(batch.x), net(perturbed)
        assert clean.dtype == torch.bfloat16
        loss = make("mart").loss(net, batch, perturbed, cross_entropy(net))
    assert loss.dtype == torch.float32
    expected = written_out(clean.tolist(), adversarial.tolist(), batch.targets.tolist(), 5)
    assert math.isclose(loss.item(), expected, rel_tol=1e-5)


def test_the_model_sees_each_batch_once(toy, batch, make, perturbed):
    net = toy()
    assert isinstance(make("mart"), MART)
    make("mart").loss(net, batch, perturbed, cross_entropy(net))
    assert net.counts["forward"] == 2
