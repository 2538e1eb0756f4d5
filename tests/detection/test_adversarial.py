"""The attack inside a detector's training step: what the network is fed, and what it costs."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from aal_bench.aal.attention import gate_of
from aal_bench.detection.adversarial import clock
from aal_bench.detection.armed import armed
from aal_bench.detection.objective import DetectionObjective
from aal_bench.detection.pixels import PixelSpace, inside_of
from aal_bench.errors import UserError
from aal_bench.training.passes import counting_passes

EPS = 8
"""In grey levels."""
ATTACKS = ["fgsm", "pgd", "mtd", "aal-fgsm", "aal-pgd"]


@pytest.fixture(scope="module")
def make(small_detector):
    """``make("pgd", steps=3, options={...}, update="awp", **preprocessor)``: the armed detector."""

    def build(method, steps=3, options=None, update="plain", seed=0, **preprocessor):
        net = small_detector(seed, **preprocessor)
        net.adversarial = armed(
            net, method, "8/255", "2/255", steps, options=options, update=update
        )
        return net

    return build


@pytest.fixture
def optimizer():
    """``optimizer(net)``: SGD in MMEngine's wrapper."""

    def build(net, lr=0.001):
        from mmengine.optim import OptimWrapper

        return OptimWrapper(torch.optim.SGD(net.parameters(), lr=lr))

    return build


@contextmanager
def fed(net):
    """What every forward pass of the network was given."""
    seen = []
    hook = net.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def grey(net, inputs):
    """Grey levels of normalised inputs, by the statistics of the config."""
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    return inputs * std + mean


def test_fgsm_moves_every_pixel_of_every_channel_by_exactly_eight_grey_levels(make, make_batch):
    net = make("fgsm")
    inputs, samples = make_batch(net)
    with fed(net) as seen:
        net.loss(inputs, samples)
    clean, attacked = grey(net, inputs), grey(net, seen[-1])
    assert attacked.min() >= -1e-3
    assert attacked.max() <= 255 + 1e-3
    moved = attacked - clean
    free = (clean >= EPS) & (clean <= 255 - EPS)
    for channel in range(3):
        own = moved[:, channel][free[:, channel]].abs()
        assert ((own - EPS).abs() < 1e-3).float().mean() > 0.999
    assert moved.abs().max() < EPS + 1e-3
    assert (moved[free] > 0).float().mean() == pytest.approx(0.5, abs=0.1)  # a gradient's signs


def test_eps_on_normalised_inputs_would_be_another_one_in_each_channel(make, make_batch):
    """The fault that the pixel space is there for."""
    net = make("fgsm")
    inputs, samples = make_batch(net)
    x = inputs.clone().requires_grad_()
    total, _ = net.parse_losses(net.adversarial.objective(net).losses(x, samples))
    naive = inputs + EPS / 255 * torch.autograd.grad(total, x)[0].sign()
    moved = (grey(net, naive) - grey(net, inputs)).abs().amax((0, 2, 3))
    torch.testing.assert_close(moved, EPS / 255 * torch.tensor([58.395, 57.12, 57.375]))


@pytest.mark.parametrize("method", ATTACKS)
def test_no_attack_leaves_ball_or_box_of_the_clamped_image(make, make_batch, method):
    net = make(method)
    noise = torch.Generator().manual_seed(3)
    outside = [400 * torch.rand(3, 264, 264, generator=noise) - 70 for _ in range(2)]
    inputs, samples = make_batch(net, images=outside)
    with fed(net) as seen:
        net.loss(inputs, samples)
    clean = grey(net, inputs).clamp(0, 255)
    for given in seen:
        attacked = grey(net, given)
        assert attacked.min() >= -1e-3
        assert attacked.max() <= 255 + 1e-3
        assert (attacked - clean).abs().max() <= EPS + 1e-3
    assert (grey(net, seen[-1 if method != "mtd" else -2]) - clean).abs().max() > 0.1


@pytest.mark.parametrize("method", ["pgd", "aal-pgd", "mtd", "free"])
def test_padded_borders_are_never_attacked(make, make_batch, optimizer, method):
    options = {"start": "uniform"} if method == "mtd" else {}
    net = make(method, options=options, pad_size_divisor=32)
    inputs, samples = make_batch(net, [(264, 200), (200, 264)])
    border = ~inside_of(samples, inputs.shape, inputs.device).expand_as(inputs)
    assert (inputs[border] == 0).all()
    with fed(net) as seen:
        if method == "free":
            step = net.adversarial.step(net, inputs, samples, optimizer(net))
            assert step["loss"].isfinite()
        else:
            net.loss(inputs, samples)
    assert len(seen) >= 4
    for given in seen:
        assert (given[border] == 0).all()
        assert (given[~border] != 0).float().mean() > 0.99


def test_what_a_method_is_handed_is_clean_on_the_border(make, make_batch):
    """x' that a method stores must be of the image: the attack's random start is taken back."""
    net = make("pgd", pad_size_divisor=32)
    inputs, samples = make_batch(net, [(264, 200), (200, 264)])
    kept = {}
    net.adversarial.method.after_step = lambda batch, x_adv: kept.update(x=batch.x, x_adv=x_adv)
    net.loss(inputs, samples)
    inside = inside_of(samples, inputs.shape, inputs.device).expand_as(inputs)
    difference = kept["x_adv"] - kept["x"]
    assert (difference[~inside] == 0).all()
    assert (difference[inside] != 0).float().mean() > 0.9


PASSES = [
    ("standard", {}, 10, (1, 1)),
    ("fgsm", {}, 10, (2, 2)),
    ("pgd", {}, 10, (11, 11)),
    ("aal-fgsm", {}, 10, (2, 2)),
    ("aal-pgd", {}, 10, (12, 12)),
    ("aal-fgsm", {"control": "no_attack"}, 10, (1, 1)),
    ("aal-fgsm", {"control": "gaussian_noise"}, 10, (2, 2)),
    ("mtd", {}, 10, (5, 4)),
    ("mtd", {"clean_weight": 0}, 10, (4, 3)),
]


@pytest.mark.parametrize(("method", "options", "steps", "passes"), PASSES, ids=str)
def test_a_step_costs_what_its_method_says(
    make, make_batch, optimizer, method, options, steps, passes
):
    """A real training step on data as loaded, weights descended."""
    net = make(method, steps, options)
    inputs, samples = make_batch(net)
    before = net.backbone.conv1.weight.clone()
    wrapper = optimizer(net)
    with counting_passes(net.backbone.conv1) as counted:
        losses = net.loss(inputs, samples)
        total, _ = net.parse_losses(losses)
        wrapper.update_params(total)
    assert tuple(counted[way] / 2 for way in ("forward", "backward")) == passes
    assert not torch.equal(net.backbone.conv1.weight, before)


@pytest.mark.parametrize(
    ("method", "options", "update", "passes"),
    [
        ("free", {}, "plain", (4, 4)),
        ("free", {"replays": 2}, "plain", (2, 2)),
        ("fgsm", {}, "awp", (3, 3)),
        ("standard", {}, "awp", (2, 2)),
    ],
    ids=str,
)
def test_what_owns_the_step_takes_it_and_costs_what_it_says(
    make, make_batch, optimizer, method, options, update, passes
):
    net = make(method, options=options, update=update)
    inputs, samples = make_batch(net)
    assert net.adversarial.owns_step
    before = net.backbone.conv1.weight.clone()
    with counting_passes(net.backbone.conv1) as counted:
        logged = net.adversarial.step(net, inputs, samples, optimizer(net))
    assert tuple(counted[way] / 2 for way in ("forward", "backward")) == passes
    assert not torch.equal(net.backbone.conv1.weight, before)
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(logged["cls"] + logged["loc"], logged["loss"])


@pytest.mark.parametrize(("method", "update"), [("free", "plain"), ("fgsm", "awp")])
def test_where_the_step_cannot_be_had_it_says_so(make, make_batch, method, update):
    net = make(method, update=update)
    with pytest.raises(UserError, match=r"owns the optimiser step.*MMSeparateDistributed"):
        net.loss(*make_batch(net))


def norms(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def attack(net, inputs, samples):
    adversarial = net.adversarial
    return adversarial._attacked(net, adversarial.objective(net), inputs, samples)


@pytest.mark.parametrize("method", ATTACKS)
def test_the_attack_leaves_no_trace_on_the_detector(make, make_batch, method):
    net = make(method)
    frozen = norms(net)[3].eval()  # a batch norm frozen within a training network
    net.backbone.layer2[0].conv1.weight.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    needs = [parameter.requires_grad for parameter in net.parameters()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    attack(net, *make_batch(net))
    assert [module.training for module in net.modules()] == modes
    assert not frozen.training
    assert [parameter.requires_grad for parameter in net.parameters()] == needs
    assert all(parameter.grad is None for parameter in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_crafting_in_train_mode_moves_the_running_statistics(make, make_batch):
    net = make("pgd", options={"craft_bn": "train"})
    before = net.backbone.bn1.running_mean.clone()
    attack(net, *make_batch(net))
    assert not torch.equal(net.backbone.bn1.running_mean, before)
    assert net.training


def test_standard_is_mmdetections_own_training_loss(make, make_batch):
    """On what the pipeline made, not on the clamped pixels: nothing is attacked."""
    from mmdet.models.detectors import SingleStageDetector

    net = make("standard")
    images = [400 * torch.rand(3, 264, 264) - 70 for _ in range(2)]
    inputs, samples = make_batch(net, images=images)
    ours, theirs = net.loss(inputs, samples), SingleStageDetector.loss(net, inputs, samples)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        for value, own in zip(values, ours[name], strict=True):
            assert torch.equal(value, own)


@pytest.mark.parametrize("method", ATTACKS)
def test_nothing_but_the_loss_is_descended(make, make_batch, method):
    """MMEngine adds up whatever has "loss" in its name."""
    net = make(method)
    losses = net.loss(*make_batch(net))
    total, logged = net.parse_losses(losses)
    assert torch.equal(total, losses["loss_total"])
    assert {"cls", "loc"} <= logged.keys()
    assert ("mean_k" in logged) == method.startswith("aal")


def test_the_attack_raises_the_loss_and_the_steps_raise_it_further(make, make_batch):
    values = {}
    for method, steps in (("standard", 1), ("fgsm", 1), ("pgd", 10)):
        net = make(method, steps)
        batch, x_adv = attack(net, *make_batch(net))
        with torch.no_grad():
            loss = DetectionObjective(net.eval())(x_adv, batch.targets, reduction="sum")
        values[method] = loss.item()
    assert values["standard"] < values["fgsm"] < values["pgd"]


def test_the_gate_stands_after_the_stems_relu_and_takes_part_in_every_pass(make, make_batch):
    net = make("aal-fgsm")
    gate, order = gate_of(net), []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in (
            ("conv1", net.backbone.conv1),
            ("bn1", net.backbone.bn1),
            ("relu", net.backbone.relu),
            ("gate", gate),
            ("layer1", net.backbone.layer1),
        )
    ]
    net.loss(*make_batch(net))
    for hook in hooks:
        hook.remove()
    # The stem's ReLU is one module of the backbone; the blocks have their own.
    assert order == ["conv1", "bn1", "relu", "gate", "layer1"] * 2
    mask = net.adversarial.method.association.K
    assert mask.shape[0] == 2
    assert mask.shape[1] == 1


def test_precision_is_the_networks_and_the_attack_stays_exact(small_detector, make_batch):
    net = small_detector()
    net.adversarial = armed(net, "fgsm", "8/255", "2/255", bf16=True, channels_last=True)
    inputs, samples = make_batch(net)
    with fed(net) as seen:
        losses = net.loss(inputs, samples)
    assert losses["loss_total"].dtype == torch.float32
    assert (grey(net, seen[-1]) - grey(net, inputs)).abs().max() == pytest.approx(EPS, abs=1e-3)
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)


def test_outside_of_a_run_training_is_at_its_start():
    assert clock() == (0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["trades", "protonet"])
def test_a_method_of_another_family_is_refused(small_detector, name):
    with pytest.raises(UserError, match="detection"):
        armed(small_detector(), name, "8/255", "2/255")


def test_saved_colours_are_those_of_the_image(make, make_batch):
    net = make("fgsm", bgr_to_rgb=False)
    red_as_read = torch.zeros(3, 264, 264, dtype=torch.uint8)
    red_as_read[2] = 250
    inputs, samples = make_batch(net, images=[red_as_read] * 2)
    _, x_adv = attack(net, inputs, samples)
    shown = PixelSpace(net.data_preprocessor).rgb(x_adv)
    assert shown[:, 0].min() > 0.9
    assert shown[:, 1:].max() < 0.05
