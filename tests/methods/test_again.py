"""AGAIN against its formulas: gates, fusion and losses written out, draws in the same order."""

import copy

import pytest
import torch
from torch.nn import functional as F

from aal_bench import registry
from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.adapters.classification import cross_entropy
from aal_bench.config import Train, parse, read_task
from aal_bench.errors import UserError
from aal_bench.methods.again import AGAINPGD, AGAINOptions
from aal_bench.methods.base import Threat

EPS, ALPHA = 8 / 255, 2 / 255


@pytest.fixture
def gated(toy, make):
    """gated(method, **options) -> the method, and the network that it built, in training mode."""

    def make_one(name: str = "again-pgd", threat: Threat | None = None, **options):
        net = toy()
        net.class_sites, net.classes = (("act", 4), ("body.2", 6)), 5
        method = make(name, threat, **options)
        torch.manual_seed(0)
        return method, method.build(net)

    return make_one


def spread(f):
    """Mean and deviation of every channel of every image."""
    mean = f.mean((2, 3), keepdim=True)
    pixels = f.shape[2] * f.shape[3]
    variance = (f - mean).square().sum((2, 3), keepdim=True) / (pixels - 1)
    return mean, (variance + 1e-5).sqrt()


def mixstyle(f, other, gamma):
    """HFF in two terms, lambda = gamma_1 + gamma_4."""
    share = (gamma[:, 0] + gamma[:, 3]).double()[:, None, None, None]
    (mean, deviation), (to_mean, to_deviation) = spread(f), spread(other)
    new = share * deviation + (1 - share) * to_deviation
    return (f - mean) / deviation * new + share * mean + (1 - share) * to_mean


def draw(rows):
    """gamma of `rows` rows, from the gaps of sorted uniforms."""
    cuts = torch.rand(rows, 3).sort(1).values
    first, last = cuts[:, :1], 1 - cuts[:, 2:]
    return torch.cat([first, cuts.diff(dim=1), last], 1)


def forward(net, x, y, fuse=None, clean=None, rows=1, drawn=None, others=None):
    """([final, first, second] logits, features before each gate) of a training pass.

    fuse: None, "first" or "each"; clean: the features to fuse with, None: those of a permuted
    batch; rows: draws of gamma; drawn: the order and gamma of the first gate;
    others: y' of the two gates; None: drawn here.
    """
    net, logits, features = net.model, [], []

    def gated(f, fc):
        features.append(f)
        if fuse == "each" or (fuse == "first" and len(features) == 1):
            order, gamma = drawn or (clean is None and torch.randperm(len(f)), draw(rows))
            f = mixstyle(f, f[order] if clean is None else clean[len(features) - 1], gamma)
        logits.append(f.mean((2, 3)) @ fc.weight.T + fc.bias)
        other = y[torch.randperm(len(y))] if others is None else others[len(features) - 1]
        return f * (0.6 * fc.weight[y] + 0.4 * fc.weight[other])[:, :, None, None]

    f = F.silu(net.norm(net.conv(x * net.weight)))
    f = gated(f, net.act.gate.fc)
    f = gated(F.silu(net.body[1](net.body[0](f))), net.body[2].gate.fc)
    return [net.body[4](f.flatten(1)), *logits], features


def joint(losses, beta=2.0):
    final, *auxiliary = losses
    return final + beta * sum(auxiliary) / len(auxiliary)


# The four-term fusion differs from the two terms of the oracle by its lift (tests/again).
LIFTED = {"rtol": 1e-4, "atol": 1e-6}


def compare(method, net, batch, x_adv, expected):
    """Loss and gradients against those of `expected` (net) -> loss, from the same seed."""
    torch.manual_seed(3)
    found = method.loss(net, batch, x_adv, cross_entropy(net))
    ours = torch.autograd.grad(found, list(net.parameters()))
    torch.manual_seed(3)
    value = expected(net)
    theirs = torch.autograd.grad(value, list(net.parameters()))
    torch.testing.assert_close(found, value, **LIFTED)
    scale = max(gradient.abs().max() for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 2e-3 * scale
    assert scale > 0.1


@pytest.mark.parametrize("beta", [2.0, 1.0])
@pytest.mark.parametrize(
    ("hff", "fuse", "rows"),
    [
        ({"p": 0}, None, 1),
        ({}, "first", 1),
        ({"gamma": "sample"}, "first", 6),
        ({"position": "each"}, "each", 1),
    ],
    ids=str,
)
def test_the_loss_is_that_of_mixed_gates_on_fused_features(gated, batch, beta, hff, fuse, rows):
    method, net = gated(beta=beta, hff=hff)
    x_adv = (batch.x + 0.05).clamp(0, 1)

    def expected(net):
        logits, _ = forward(net, x_adv, batch.targets, fuse, rows=rows)
        return joint([F.cross_entropy(each, batch.targets) for each in logits], beta)

    compare(method, net, batch, x_adv, expected)


@pytest.mark.parametrize("position", ["first", "each"])
def test_clean_features_are_those_of_a_label_gated_clean_pass(gated, batch, position):
    method, net = gated(hff={"partner": "clean", "position": position})
    x_adv = (batch.x + 0.3 * torch.rand_like(batch.x)).clamp(0, 1)

    def expected(net):
        others = [batch.targets[torch.randperm(len(batch.x))] for _ in net.gates]
        _, clean = forward(net, batch.x, batch.targets, others=others)
        logits, _ = forward(net, x_adv, batch.targets, position, clean, others=others)
        return joint([F.cross_entropy(each, batch.targets) for each in logits])

    compare(method, net, batch, x_adv, expected)


def mart_terms(adversarial, clean, main, y):
    """BCE + 5 KL (1 - p_y), p_y of the final head, summed image by image."""
    total = []
    for q, p, m, label in zip(
        adversarial.softmax(1), clean.softmax(1), main.softmax(1), y.tolist(), strict=True
    ):
        others = torch.cat([q[:label], q[label + 1 :]]).max()
        boosted = -q[label].log() - (1.0001 - others + 1e-12).log()
        kl = sum(p[k] * (p[k] / q[k]).log() for k in range(len(p)))
        total.append(boosted + 5 * kl * (1 - m[label]))
    return sum(total) / len(total)


@pytest.mark.parametrize("partner", ["batch_perm", "clean"])
def test_mart_s_terms_are_taken_of_every_head_and_weighted_by_the_final_one(gated, batch, partner):
    """Both passes with the same y', and the same partners and weights of their statistics."""
    method, net = gated("again-mart", hff={"partner": partner})
    x_adv = (batch.x + 0.3 * torch.rand_like(batch.x)).clamp(0, 1)

    def expected(net):
        y, images = batch.targets, len(batch.x)
        drawn = (torch.randperm(images), draw(1)) if partner == "batch_perm" else None
        others = [y[torch.randperm(images)] for _ in net.gates]
        fuse = None if drawn is None else "first"
        clean, features = forward(net, batch.x, y, fuse, drawn=drawn, others=others)
        fused_with = None if drawn else features
        adversarial, _ = forward(net, x_adv, y, "first", fused_with, drawn=drawn, others=others)
        pairs = zip(adversarial, clean, strict=True)
        return joint([mart_terms(a, c, clean[0], batch.targets) for a, c in pairs])

    compare(method, net, batch, x_adv, expected)


def test_with_alpha_one_and_nothing_fused_its_loss_is_that_of_cas(gated, batch):
    x_adv, found = (batch.x + 0.05).clamp(0, 1), []
    for name, options in (("again-pgd", {"alpha": 1.0, "hff": {"p": 0}}), ("cas", {})):
        method, net = gated(name, **options)
        loss = method.loss(net, batch, x_adv, cross_entropy(net))
        found.append([loss, *torch.autograd.grad(loss, list(net.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_attack_is_that_of_cas_from_a_gaussian_start(gated, batch):
    """Crafted in eval mode: no label opens a gate, and nothing is mixed, fused or drawn."""
    threat = Threat(EPS, ALPHA, 4)
    again, net = gated("again-mart", threat)
    torch.manual_seed(0)
    start = (batch.x + 0.001 * torch.empty_like(batch.x).normal_()).clamp(0, 1)
    torch.manual_seed(0)
    x_adv = again.attack(net, batch, cross_entropy(net))
    cas, _ = gated("cas", threat)
    cas.start = lambda _: start
    expected = cas.attack(net, batch, cross_entropy(net))
    assert torch.equal(x_adv, expected)
    assert (x_adv - batch.x).abs().max() <= EPS + 1e-12


def test_crafting_in_training_mode_fuses_nothing(gated, batch):
    """What it draws beside the start are the other classes of its two gates, in every step."""
    method, net = gated("again-pgd", Threat(EPS, ALPHA, 3), craft_bn="train")
    torch.manual_seed(0)
    method.attack(net, batch, cross_entropy(net))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    torch.empty_like(batch.x).normal_()
    for _ in range(6):
        torch.randperm(len(batch.x))
    assert torch.equal(torch.get_rng_state(), after)


class TRADESHeads(AGAINPGD):
    """What the hook is for: another base loss in three lines."""

    needs_clean = True

    def head_loss(self, head, found):
        log_p, log_q = (each[head].log_softmax(1) for each in (found.clean, found.adversarial))
        robust = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        return F.cross_entropy(found.clean[head], found.y) + 6 * robust


def test_another_base_loss_is_one_override(gated, batch):
    usual, net = gated(hff={"p": 0.0})
    method = TRADESHeads(usual.options, usual.threat)
    x_adv = (batch.x + 0.05).clamp(0, 1)
    torch.manual_seed(2)
    found = method.loss(net, batch, x_adv, cross_entropy(net))
    torch.manual_seed(2)
    others = [batch.targets[torch.randperm(len(batch.x))] for _ in net.gates]
    clean, _ = forward(net, batch.x, batch.targets, others=others)
    adversarial, _ = forward(net, x_adv, batch.targets, others=others)
    terms = []
    for c, a in zip(clean, adversarial, strict=True):
        p, q = c.softmax(1), a.softmax(1)
        kl = (p * (p / q).log()).sum(1).mean()
        terms.append(F.cross_entropy(c, batch.targets) + 6 * kl)
    torch.testing.assert_close(found, joint(terms))


def test_awp_s_two_passes_draw_partners_of_their_own_and_settings_are_the_official_ones(
    gated, batch, update, train
):
    method, net = gated("again-awp", Threat(EPS, ALPHA, 1))
    assert (type(method).update, type(method).update_defaults["awp"]) == (
        "awp",
        {"gamma": 0.005, "warmup": 9 / 200},
    )
    around = update("awp", **method.update_defaults["awp"])
    plain = copy.deepcopy(net)
    train(net, method, around, batch)  # progress 0: within the warm-up
    train(plain, method, update("plain"), batch)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.manual_seed(1)
    values = [
        around(
            net,
            lambda: method.loss(net, batch, batch.x, cross_entropy(net)),
            lambda loss: loss.backward(),
            lambda: None,
            progress,
        )
        for progress in (0.044, 0.046)
    ]
    assert values[0] != values[1]


def test_it_wraps_the_network_that_attention_is_put_into(gated, batch):
    """AAL's gate finds its place in a network with class gates, which keeps working."""
    method, net = gated()
    insert_gate(net, net.gate_sites["post_bn_relu"], channels=net.gate_channels)
    with gate_of(net).reading() as reading:
        loss = method.loss(net, batch, batch.x, cross_entropy(net))
    gradient = torch.autograd.grad(loss, reading.M)[0]
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"alpha": 1.1}, "alpha"),
        ({"beta": -1.0}, "beta"),
        ({"mixing": "none"}, "mixing"),
        ({"hff": {"p": 2.0}}, r"hff\.p"),
        ({"hff": {"partner": "label"}}, r"hff\.partner"),
        ({"hff": {"q": 1}}, r"hff\.q"),
        ({"test_gate": "straight"}, "test_gate"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        parse(AGAINOptions, options, "method")


@pytest.mark.parametrize(
    ("name", "epochs", "drops"),
    [
        ("cas", 200, (75, 90)),
        ("again-pgd", 200, (100, 150)),
        ("again-awp", 200, (100, 150)),
        ("again-mart", 120, (75, 90, 100)),
    ],
)
def test_the_recipes_are_those_of_the_official_scripts(make, name, epochs, drops):
    """They count epochs from 1: "from epoch 75 on" is after 74 of them."""
    recipe = make(name).recipe
    task = read_task(registry.task_file("digits"))
    train = Train.model_validate(task.train.model_dump() | recipe.train)
    assert (train.epochs, train.lr, train.schedule) == (epochs, 0.1, "step")
    assert [round(share * epochs, 9) + 1 for share in train.milestones] == list(drops)
    assert set(train.factors) == {0.1}
