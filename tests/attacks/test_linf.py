import pytest
import torch
import torchattacks
from torch import nn
from torch.nn import functional as F

from aal_bench.attacks.linf import (
    attacking,
    gaussian_start,
    input_gradient,
    linf_pgd,
    uniform_start,
)

EPS, ALPHA = 8 / 255, 2 / 255


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 1, 4])


@pytest.fixture
def objective(net, batch):
    return lambda x_adv: F.cross_entropy(net(x_adv), batch[1], reduction="sum")


def test_pgd_is_torchattacks_pgd_from_the_same_random_start(net, batch, objective):
    x, y = batch
    torch.manual_seed(2)
    theirs = torchattacks.PGD(net, eps=EPS, alpha=ALPHA, steps=5, random_start=True)(x, y)
    torch.manual_seed(2)
    ours = linf_pgd(objective, x, uniform_start(x, EPS), EPS, ALPHA, 5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_fgsm_is_torchattacks_fgsm(net, batch, objective):
    x, y = batch
    theirs = torchattacks.FGSM(net, eps=EPS)(x, y)
    torch.testing.assert_close(linf_pgd(objective, x, x, EPS, EPS, 1), theirs, rtol=0, atol=1e-15)


def test_on_a_linear_model_it_reaches_the_closed_form_maximum():
    """max w.x' over the ball and the box: each pixel at its bound in the direction of w."""
    torch.manual_seed(0)
    w, x = torch.randn(3, 4, 4, dtype=torch.float64), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    best = torch.where(w > 0, (x + EPS).clamp_max(1), (x - EPS).clamp_min(0))
    start = uniform_start(x, EPS)
    found = linf_pgd(lambda z: (w * z).sum(), x, start, EPS, ALPHA, 8)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-15)


def test_budgets_steps_and_counts_per_sample_are_separate_attacks(batch, objective, net):
    x, y = batch
    eps = torch.tensor([0.0, 0.01, 0.03, 0.05]).double().view(4, 1, 1, 1)
    alpha = eps / 3
    steps = torch.tensor([3, 0, 2, 5])
    together = linf_pgd(objective, x, x, eps, alpha, steps)
    for i, count in enumerate(steps.tolist()):
        one, label = x[i : i + 1], y[i : i + 1]

        def alone(z, label=label):
            return F.cross_entropy(net(z), label, reduction="sum")

        expected = linf_pgd(alone, one, one, eps[i].item(), alpha[i].item(), count)
        torch.testing.assert_close(together[i : i + 1], expected, rtol=0, atol=1e-14)
    assert torch.equal(together[:2], x[:2])


def test_a_mask_per_pixel_bounds_each_pixel(batch, objective):
    x, _ = batch
    limit = EPS * torch.rand(4, 1, 8, 8, dtype=torch.float64)
    moved = (linf_pgd(objective, x, x, limit, limit / 2, 4) - x).abs()
    assert (moved <= limit + 1e-15).all()
    assert (moved > 0.9 * limit).double().mean() > 0.5


def test_eps_zero_returns_the_image_exactly(batch):
    x = batch[0].float()
    weights = torch.linspace(-1, 1, x.numel()).view_as(x)
    assert torch.equal(linf_pgd(lambda z: (weights * z).sum(), x, x, 0.0, ALPHA, 3), x)
    assert torch.equal(uniform_start(x, 0.0), x)


def test_inactive_samples_keep_their_iterate(batch, objective):
    x, _ = batch
    called = []

    def active(step, x_adv):
        called.append((step, x_adv.shape))
        return torch.tensor([True, step < 1, step < 2, False])

    found = linf_pgd(objective, x, x, EPS, ALPHA, 3, active)
    assert called == [(step, x.shape) for step in range(3)]
    for i, count in enumerate([3, 1, 2, 0]):
        assert torch.equal(found[i], linf_pgd(objective, x, x, EPS, ALPHA, count)[i])
    both = linf_pgd(objective, x, x, EPS, ALPHA, torch.tensor([1, 1, 3, 3]), active)
    assert torch.equal(both[0], linf_pgd(objective, x, x, EPS, ALPHA, 1)[0])
    assert torch.equal(both[2], found[2])


def test_a_known_gradient_saves_a_pass_and_each_step_costs_one(batch, objective):
    x, _ = batch
    calls = []

    def counted(x_adv):
        calls.append(1)
        return objective(x_adv)

    plain = linf_pgd(counted, x, x, EPS, ALPHA, 4)
    assert len(calls) == 4
    told = linf_pgd(counted, x, x, EPS, ALPHA, 4, gradient=input_gradient(objective, x))
    assert len(calls) == 7
    assert torch.equal(told, plain)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("eps", [EPS, torch.full((4, 1, 1, 1), EPS, dtype=torch.float64)])
def test_a_gradient_that_is_not_finite_surfaces(batch, objective, bad, eps):
    """torch.sign(nan) is 0: without care the sample would count as robust."""
    x, _ = batch

    def broken(x_adv):
        return objective(x_adv) + bad * x_adv[1, 0, 0, 0]

    found = linf_pgd(broken, x, x, eps, ALPHA, 1)
    assert found[1, 0, 0, 0].isnan()
    assert found.isnan().sum() == 1


def test_it_works_under_no_grad_and_leaves_no_graph(batch, objective):
    x, _ = batch
    with torch.no_grad():
        found = linf_pgd(objective, x, x, EPS, ALPHA, 2)
    assert not found.requires_grad
    assert torch.equal(found, linf_pgd(objective, x, x.clone().requires_grad_(), EPS, ALPHA, 2))


def test_half_precision_images_are_attacked_in_float32():
    x = torch.full((1, 3, 2, 2), 0.5)
    g = input_gradient(lambda z: z.sum(), x.bfloat16())
    assert g.dtype == torch.float32


def test_starts_are_in_the_ball_and_the_box_and_follow_their_generator(batch):
    x, _ = batch
    limit = EPS * torch.rand(4, 1, 8, 8, dtype=torch.float64)
    near = uniform_start(x, limit, torch.Generator().manual_seed(0))
    assert torch.equal(near, uniform_start(x, limit, torch.Generator().manual_seed(0)))
    assert ((near - x).abs() <= limit + 1e-15).all()
    inner = (x > EPS) & (x < 1 - EPS)
    spread = ((near - x) / limit)[inner]
    assert abs(spread.mean()) < 0.1
    assert spread.var().item() == pytest.approx(1 / 3, rel=0.15)
    noisy = gaussian_start(x, generator=torch.Generator().manual_seed(0))
    assert (noisy - x)[inner].std().item() == pytest.approx(0.001, rel=0.1)
    for start in (near, noisy, gaussian_start(x, 5.0), uniform_start(x, 5.0)):
        assert start.min() >= 0
        assert start.max() <= 1


def state(net):
    flags = [module.training for module in net.modules()]
    return flags, [weight.requires_grad for weight in net.parameters()]


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_attacking_restores_every_flag_and_leaves_the_weights_gradients(net, batch, objective, bn):
    x, _ = batch
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    before = state(net)
    with attacking(net, bn):
        assert {module.training for module in net.modules()} == {bn == "train"}
        assert not any(weight.requires_grad for weight in net.parameters())
        linf_pgd(objective, x, x, EPS, ALPHA, 2)
    assert state(net) == before
    assert [weight.grad is None for weight in net.parameters()] == [True] * 4 + [False, True]
    assert (net[4].weight.grad == 1).all()
    with pytest.raises(KeyError), attacking(net, bn):
        raise KeyError
    assert state(net) == before


def test_attacking_in_train_mode_moves_the_running_statistics_and_eval_does_not(net, batch):
    x, _ = batch
    mean = net[1].running_mean.clone()
    with attacking(net, "eval"):
        net(x)
    assert torch.equal(net[1].running_mean, mean)
    with attacking(net, "train"):
        net(x)
    assert not torch.equal(net[1].running_mean, mean)


def test_attacking_enables_gradients_and_can_keep_the_weights_graph(net, batch, objective):
    x, _ = batch
    for disabled in (torch.no_grad(), torch.inference_mode()):
        with disabled, attacking(net):
            moved = linf_pgd(objective, x, x, EPS, ALPHA, 1)
            assert not torch.equal(moved, x)
    with attacking(net, weight_graph=True):
        assert net(x).requires_grad
    with pytest.raises(ValueError, match="'eval' or 'train'"), attacking(net, "keep"):
        pass
