"""LAS-AT: its attack image by image, its reward and its policy gradient by hand."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from aal_bench.adapters.classification import cross_entropy
from aal_bench.attacks.linf import uniform_start
from aal_bench.methods.base import Threat
from aal_bench.methods.las_at import LASATOptions

EPS, ALPHA = 8 / 255, 2 / 255
WIDTHS = [13, 12, 5]


@pytest.fixture
def joined(toy, make):
    """joined(interval=1) -> the method with a strategy network, the model, and that network."""

    def build(**options):
        method, net, strategy = make("las-at", **options), toy(0), toy(1)
        width = method.companions()["strategy"].outputs
        strategy.body[-1] = nn.Linear(96, width).double()
        method.join({"strategy": strategy})
        return method, net, strategy

    return build


def take(method, net, batch, learns=False):
    """One step but for the update; with ``learns`` at the end of an interval."""
    method.load_state_dict(
        method.state_dict() | {"steps": method.options.interval - 1 if learns else 0}
    )
    method.before_step(batch)
    x_adv = method.attack(net, batch, cross_entropy(net))
    method.after_step(batch, x_adv)
    return x_adv


def pgd(net, x, y, start, eps, alpha, steps):
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y, reduction="sum"), x_adv)
        x_adv = torch.min(torch.max(x_adv + alpha * g.sign(), x - eps), x + eps).clamp(0, 1)
    return x_adv.detach()


def smoothed_nll(logits, labels, label=0.7):
    """Mean over the batch of -sum_k q_k log p_k, q_y = label and (1 - label) / (K - 1) else."""
    losses = []
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        total = math.fsum(math.exp(value) for value in row)
        rest = (1 - label) / (len(row) - 1)
        losses += [
            -(label if k == y else rest) * math.log(math.exp(value) / total)
            for k, value in enumerate(row)
        ]
    return math.fsum(losses) / len(labels)


# ---- choosing ------------------------------------------------------------------------------------


def test_the_strategy_has_an_output_for_every_value_of_eps_steps_and_step_size(make):
    companion = make("las-at").companions()["strategy"]
    assert companion == (None, sum(WIDTHS))
    other = make("las-at", strategy="resnet18", eps=(8, 8), steps=(2, 4), alpha=(1, 2))
    assert other.companions()["strategy"] == ("resnet18", 1 + 3 + 2)


def test_choices_are_drawn_from_the_three_softmaxes(joined):
    """40,000 draws at fixed odds: every frequency within five standard errors of its odds."""
    method, _, strategy = joined(steps=(3, 5), eps=(3, 6))
    strategy.body[-1].weight.data.zero_()
    odds = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.25, 0.25, 0.05, 0.15, 0.2, 0.2, 0.4])
    strategy.body[-1].bias.data.copy_(odds.log())
    torch.manual_seed(0)
    count = 40_000
    chosen = method._choose(torch.zeros(count, 3, 8, 8, dtype=torch.float64), learns=False)
    units = chosen.eps.flatten() * 255, chosen.steps, chosen.alpha.flatten() * 255
    for found, low, part in zip(units, (3, 3, 1), odds.split([4, 3, 5]), strict=True):
        torch.testing.assert_close(found.double(), found.round().double(), rtol=0, atol=1e-9)
        counts = torch.bincount(found.round().long() - low, minlength=len(part)) / count
        assert len(counts) == len(part)
        part = part / part.sum()
        assert ((counts - part).abs() < 5 * (part * (1 - part) / count).sqrt()).all()


def test_the_log_probability_is_that_of_the_three_choices_together(joined, batch):
    method, _, strategy = joined()
    chosen = method._choose(batch.x, learns=True)
    logits = strategy(batch.x).tolist()
    units = [chosen.eps.flatten() * 255 - 3, chosen.steps - 3, chosen.alpha.flatten() * 255 - 1]
    for i, row in enumerate(logits):
        expected, first = 0.0, 0
        for width, picked in zip(WIDTHS, units, strict=True):
            head = row[first : first + width]
            total = math.fsum(math.exp(value) for value in head)
            expected += math.log(math.exp(head[round(picked[i].item())]) / total)
            first += width
        assert math.isclose(chosen.log_p[i].item(), expected, rel_tol=1e-12)


def test_budgets_scale_with_the_tasks(make, toy, batch):
    found = []
    for eps in (EPS, 0.3):
        method, strategy = make("las-at", Threat(eps, eps / 4, 10)), toy(1)
        strategy.body[-1] = nn.Linear(96, 30).double()
        strategy.body[-1].load_state_dict({"weight": torch.zeros(30, 96), "bias": torch.zeros(30)})
        method.join({"strategy": strategy})
        torch.manual_seed(0)
        found.append(method._choose(batch.x, learns=False))
    torch.testing.assert_close(found[0].eps / EPS, found[1].eps / 0.3)
    torch.testing.assert_close(found[0].alpha / EPS, found[1].alpha / 0.3)
    assert torch.equal(found[0].steps, found[1].steps)


# ---- attack and loss -----------------------------------------------------------------------------


def test_every_image_is_attacked_by_its_own_strategy(joined, batch):
    method, net, strategy = joined()
    torch.manual_seed(0)
    x_adv = take(method, net, batch)
    assert not strategy.training
    torch.manual_seed(0)
    chosen = method._choose(batch.x, learns=False)
    starts = uniform_start(batch.x, EPS)
    net.eval()
    for i in range(6):
        expected = pgd(
            net,
            batch.x[i : i + 1],
            batch.targets[i : i + 1],
            starts[i : i + 1],
            chosen.eps[i].item(),
            chosen.alpha[i].item(),
            int(chosen.steps[i]),
        )
        torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=1e-12)
    assert len({int(steps) for steps in chosen.steps}) > 2
    assert method.log["mean_eps"] == chosen.eps.mean()
    assert method.log["mean_steps"] == chosen.steps.float().mean()
    assert method.log["mean_alpha"] == chosen.alpha.mean()


@pytest.mark.parametrize("label", [0.7, 0.9, 1.0])
def test_the_loss_is_cross_entropy_with_smoothed_labels(joined, batch, label):
    method, net, _ = joined(label=label)
    x_adv = (batch.x + 0.1).clamp(0, 1)
    loss = method.loss(net, batch, x_adv, cross_entropy(net))
    expected = smoothed_nll(net(x_adv), batch.targets, label)
    assert math.isclose(loss.item(), expected, rel_tol=1e-12)


def test_its_gradient_is_that_of_finite_differences(joined, batch):
    method, net, _ = joined()
    weight = net.conv.weight

    def loss():
        return method.loss(net, batch, batch.x, cross_entropy(net))

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        weight += 1e-6 * direction
        above = loss()
        weight -= 2e-6 * direction
        below = loss()
    slope = (above - below) / 2e-6
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


# ---- reward --------------------------------------------------------------------------------------


def stepped(net, batch, x_adv):
    """A deep copy after one real SGD step on the smoothed loss at x'."""
    copied = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(copied.parameters(), lr=batch.lr)
    rest = 0.3 / 4
    targets = torch.full((6, 5), rest, dtype=torch.float64)
    targets.scatter_(1, batch.targets[:, None], 0.7)
    F.cross_entropy(copied(x_adv), targets).backward()
    optimizer.step()
    return copied


def test_the_look_ahead_is_a_real_step_of_a_copy_and_leaves_the_model_alone(joined, batch):
    method, net, _ = joined()
    x_adv = (batch.x + 0.1).clamp(0, 1)
    before = copy.deepcopy(net.state_dict())
    ahead = method._look_ahead(net, batch, x_adv)
    expected = stepped(net, batch, x_adv).state_dict()
    assert ahead.keys() == expected.keys()  # running statistics included
    for key in expected:
        torch.testing.assert_close(ahead[key], expected[key], rtol=0, atol=1e-14, msg=key)
    assert not torch.allclose(ahead["norm.running_mean"], before["norm.running_mean"])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())


def test_a_frozen_weight_stays_where_it_is_in_the_copy_too(joined, batch):
    method, net, _ = joined()
    net.conv.weight.requires_grad_(False)
    ahead = {**net.state_dict(), **method._look_ahead(net, batch, batch.x)}
    assert torch.equal(ahead["conv.weight"], net.conv.weight)
    assert not torch.equal(ahead["body.0.weight"], net.body[0].weight)


def test_the_reward_is_loss_and_accuracies_of_the_copy(joined, batch):
    """On labels that the copy partly gets right, after a step large enough to matter.

    One tiny step from starts far apart lets the two restarts disagree: fooled once is fooled.
    """
    seen, disagreed = set(), 0
    usual, weak = Threat(EPS, ALPHA, 10), Threat(0.4, 1e-3, 1)
    for threat, seed, lr in ((usual, 0, 0.1), (usual, 1, 1.0), (weak, 2, 1.0), (weak, 3, 10.0)):
        method, net, _ = joined(threat=threat, robust_weight=4.0, clean_weight=2.0)
        labels = net(batch.x).argmax(1)
        labels[0] = (labels[0] + 1) % 5
        some = batch._replace(targets=labels, lr=lr)
        x_adv = (batch.x + 0.02).clamp(0, 1)
        torch.manual_seed(seed)
        found = method._reward(net, some, x_adv).item()
        copied = stepped(net, some, x_adv).eval()
        torch.manual_seed(seed)
        starts = [uniform_start(some.x, threat.eps) for _ in range(2)]
        right = [
            copied(pgd(copied, some.x, labels, start, *threat)).argmax(1) == labels
            for start in starts
        ]
        disagreed += int((right[0] != right[1]).sum())
        robust = sum(a and b for a, b in zip(*(r.tolist() for r in right), strict=True)) / 6
        clean = (copied(some.x).argmax(1) == labels).sum().item() / 6
        still = copy.deepcopy(net).eval()(x_adv).softmax(1)[torch.arange(6), labels]
        hard = -math.fsum(math.log(p) for p in still.tolist()) / 6
        assert hard < 10
        assert math.isclose(found, hard + 4 * robust + 2 * clean, rel_tol=1e-10)
        seen |= {robust, clean}
    assert len(seen) > 2
    assert disagreed


def test_the_loss_counts_for_ten_at_most(joined, batch):
    method, net, _ = joined(robust_weight=0, clean_weight=0)
    with torch.no_grad():
        net.body[-1].bias[3] += 1000
    assert method._reward(net, batch, batch.x).item() == 10


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [1.0, 1e-3, 1e3])
def test_the_strategy_descends_minus_reward_times_log_probability(joined, batch, clip):
    """The score of softmax is (1[k] - p_k), here by hand on the last layer's bias alone."""
    method, net, strategy = joined(interval=1, strategy_lr=0.5, strategy_clip=clip)
    before = copy.deepcopy(strategy)
    torch.manual_seed(0)
    x_adv = take(method, net, batch, learns=True)

    torch.manual_seed(0)
    method.join({"strategy": before})
    chosen = method._choose(batch.x, learns=True)
    uniform_start(batch.x, EPS)  # the attack's draw, before those of the reward
    reward = method._reward(net, batch, x_adv)
    loss = -sum(reward * log_p / 6 for log_p in chosen.log_p)
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    length = math.sqrt(sum(g.square().sum().item() for g in gradients))
    scale = min(1.0, clip / (length + 1e-6))
    assert (scale == 1) == (clip == 1e3)
    for old, new, g in zip(before.parameters(), strategy.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.5 * scale * g, rtol=1e-9, atol=1e-13)

    with torch.no_grad():
        heads = before.train()(batch.x).split(WIDTHS, dim=1)
    picked = [chosen.eps.flatten() * 255 - 3, chosen.steps - 3, chosen.alpha.flatten() * 255 - 1]
    score = torch.cat(
        [
            (F.one_hot(pick.round().long(), width) - head.softmax(1))
            for head, pick, width in zip(heads, picked, WIDTHS, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(gradients[-1], -reward * score.mean(0), rtol=1e-9, atol=1e-13)


def test_it_learns_in_every_interval_th_step_of_training_alone(joined, batch):
    method, net, strategy = joined(interval=3)
    learnt = []
    for _ in range(7):
        old = strategy.conv.weight.detach().clone()
        method.before_step(batch)
        x_adv = method.attack(net, batch, cross_entropy(net))
        method.after_step(batch, x_adv)
        method.attack(net, batch, cross_entropy(net))  # a figure's: it is no step
        learnt.append(not torch.equal(strategy.conv.weight, old))
    assert learnt == [False, False, True, False, False, True, False]
    assert all(weight.grad is None for weight in strategy.parameters())
    assert all(weight.grad is None for weight in net.parameters())


def test_learning_leaves_the_model_as_it_was(joined, batch):
    method, net, _ = joined()
    net.norm.eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    with torch.no_grad():  # whatever the caller disabled
        take(method, net, batch, learns=True)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert all(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize(
    ("learns", "model", "strategy"),
    [(False, (0, 0, 0), (1, 0, 0)), (True, (25, 20, 1), (1, 0, 1))],
    ids=["plain step", "interval"],
)
@pytest.mark.parametrize(("around", "of_loss"), [("plain", (1, 0, 1)), ("awp", (2, 0, 2))])
def test_a_step_costs_the_steps_of_its_longest_attack(
    joined, batch, update, train, learns, model, strategy, around, of_loss
):
    method, net, chooses = joined(interval=1 if learns else 20)
    chosen = []
    choose = method._choose
    method._choose = lambda *given: chosen.append(choose(*given)) or chosen[-1]
    train(net, method, update(around), batch)
    longest = int(chosen[0].steps.max())
    expected = [a + b for a, b in zip(model, of_loss, strict=True)]
    expected[0] += longest
    expected[1] += longest
    assert list(net.counts.values()) == expected
    assert tuple(chooses.counts.values()) == strategy


def test_the_models_optimiser_does_not_hold_the_strategy(joined):
    method, net, strategy = joined()
    held = {id(weight) for weight in method.param_groups(net)}
    assert held == {id(weight) for weight in net.parameters()}
    assert method.extra_modules() == {"strategy": strategy}


def test_counter_and_optimiser_go_on_in_another_process(joined, batch, tmp_path):
    options = {"interval": 2, "strategy_momentum": 0.9, "strategy_lr": 0.1}
    (one, net, strategy), (other, _, second) = joined(**options), joined(**options)

    def steps(method, count, seed):
        for number in range(count):
            torch.manual_seed(seed + number)
            method.before_step(batch)
            method.after_step(batch, method.attack(net, batch, cross_entropy(net)))

    steps(one, 3, 0)
    torch.save({"method": one.state_dict(), "net": strategy.state_dict()}, tmp_path / "s.pt")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    second.load_state_dict(state["net"])
    other.load_state_dict(state["method"])
    for method in (one, other):
        steps(method, 3, 10)
    for mine, theirs in zip(strategy.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert one.state_dict()["steps"] == other.state_dict()["steps"] == 6


def test_a_strategy_that_diverged_leaves_the_message_to_the_loop(joined, batch):
    method, net, strategy = joined()
    strategy.body[-1].bias.data.fill_(torch.nan)
    take(method, net, batch)


def test_without_a_strategy_the_attack_says_so(make, toy, batch):
    method, net = make("las-at"), toy()
    assert method.extra_modules() == {}
    with pytest.raises(RuntimeError, match="no strategy network: join"):
        method.attack(net, batch, cross_entropy(net))


@pytest.mark.parametrize(
    "options",
    [{"eps": (5, 3)}, {"steps": (0, 3)}, {"alpha": (0, 0)}, {"label": 0.4}, {"interval": 0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        LASATOptions(**options)
