"""ATTA against its procedure, written out image by image on canvases that are cut with slices."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from aal_bench.adapters.classification import cross_entropy
from aal_bench.data.augment import Crops, augment_with_crops, draw_crops, to_unit
from aal_bench.errors import UserError
from aal_bench.methods import atta
from aal_bench.methods.atta import ATTAOptions, canvas_index
from aal_bench.methods.base import Batch, Threat

EPS, PAD, SIDE = 8 / 255, 2, 8


def crops_of(count, seed, pad=PAD):
    drawn = draw_crops(count, pad, torch.Generator().manual_seed(seed))
    return Crops(*drawn, pad)


def cut(canvas, crops, i, size=SIDE):
    """Image i's crop of its canvas (C, H + 2 pad, W + 2 pad), by slices and a flip."""
    top, left = int(crops.top[i]), int(crops.left[i])
    crop = canvas[:, top : top + size, left : left + size]
    return crop.flip(2) if crops.flip[i] else crop


def paste(canvas, crops, i, value):
    """Put it back where it was cut out."""
    size, top, left = value.shape[-1], int(crops.top[i]), int(crops.left[i])
    canvas[:, top : top + size, left : left + size] = value.flip(2) if crops.flip[i] else value


def training(count, epoch, part=None, seed=0):
    """The images at positions `part` as an epoch of training augments them."""
    generator = torch.Generator().manual_seed(5)
    whole = torch.rand(count, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)
    labels = torch.randint(5, (count,), generator=generator)
    part = torch.arange(count) if part is None else part
    crops = crops_of(len(part), seed + 100 * epoch)
    padded = F.pad(whole[part], (PAD,) * 4)
    x = torch.stack([cut(padded[i], crops, i) for i in range(len(part))])
    return Batch(x=x, targets=labels[part], idx=part, aug=crops, epoch=epoch)


def take(method, net, batch):
    """One step but for the update."""
    method.before_step(batch)
    x_adv = method.attack(net, batch, cross_entropy(net))
    method.after_step(batch, x_adv)
    return x_adv


def pgd(net, x, y, start, alpha, steps):
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(net(x_adv), y, reduction="sum")
        (g,) = torch.autograd.grad(loss, x_adv)
        x_adv = torch.min(torch.max(x_adv + alpha * g.sign(), x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


# ---- the canvas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["crop-flip", "shift"])
def test_reading_the_padded_images_is_the_augmentation_itself(augment):
    images = torch.randint(256, (9, 3, 12, 10), dtype=torch.uint8)
    x, crops = augment_with_crops(images, augment, 3, seed=1, batch=2)
    canvas = F.pad(to_unit(images), (3,) * 4)
    order = torch.tensor([3, 8, 0, 4])
    batch = Batch(x[order], None, order, Crops(*(v[order] for v in crops[:3]), 3))
    assert torch.equal(canvas[canvas_index(batch)], x[order])


def test_what_one_crop_writes_another_reads_where_they_overlap():
    """Pattern written with crop A, read with crop B: as pasting into the canvas and cutting."""
    count, idx = 40, torch.randperm(50, generator=torch.Generator().manual_seed(0))[:40]
    a, b = crops_of(count, 1), crops_of(count, 2)
    pattern = torch.rand(count, 3, SIDE, SIDE)
    canvas = torch.zeros(50, 3, SIDE + 2 * PAD, SIDE + 2 * PAD)
    expected = canvas.clone()
    canvas[canvas_index(Batch(pattern, None, idx, a))] = pattern
    for i in range(count):
        paste(expected[idx[i]], a, i, pattern[i])
    assert torch.equal(canvas, expected)
    found = canvas[canvas_index(Batch(pattern, None, idx, b))]
    for i in range(count):
        assert torch.equal(found[i], cut(expected[idx[i]], b, i))
    again = canvas[canvas_index(Batch(pattern, None, idx, a))]
    assert torch.equal(again, pattern)


def test_without_augmentation_the_canvas_is_the_image():
    canvas = torch.rand(7, 3, 5, 4)
    idx = torch.tensor([6, 2])
    batch = Batch(torch.zeros(2, 3, 5, 4), None, idx)
    assert torch.equal(canvas[canvas_index(batch)], canvas[idx])


# ---- the procedure -------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "alpha"), [(1, 0.015 / 0.031), (3, 0.25)])
def test_every_epoch_goes_on_where_the_last_one_ended(toy, make, steps, alpha):
    """Four epochs, the perturbations kept as float16 on canvases of the transcription's own."""
    net, count = toy().eval(), 10
    method = make("atta", steps=steps, alpha=alpha)
    method.remember(count)
    torch.manual_seed(0)
    side = SIDE + 2 * PAD
    kept = torch.empty(count, 3, side, side, dtype=torch.float16).normal_(0, 0.001)
    torch.manual_seed(0)
    for epoch in range(4):
        for part in torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).split(4):
            batch = training(count, epoch, part)
            x_adv = take(method, net, batch)
            before = torch.stack([cut(kept[n], batch.aug, i) for i, n in enumerate(part)])
            start = (batch.x + before.double().clamp(-EPS, EPS)).clamp(0, 1)
            expected = pgd(net, batch.x, batch.targets, start, alpha * EPS, steps)
            torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
            for i, n in enumerate(part):
                paste(kept[n], batch.aug, i, (expected[i] - batch.x[i]).half())
        assert torch.equal(method.state_dict()["kept"], kept)
    assert kept.abs().max() > 0.99 * EPS
    assert method.state_dict()["kept"].dtype == torch.float16


def test_perturbations_accumulate_over_epochs(toy, make):
    """One step of .015/.031 eps cannot leave the inner half of the ball; three epochs do."""
    net, method = toy().eval(), make("atta")
    method.remember(10)
    reached = []
    for epoch in range(3):
        batch = training(10, epoch, seed=-100 * epoch)  # the same crop in every epoch
        x_adv = take(method, net, batch)
        reached.append((x_adv - batch.x).abs().max().item() / EPS)
        assert (x_adv - batch.x).abs().max() <= EPS + 1e-15
        assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert reached[0] < 0.7 < reached[1]
    assert reached[2] == pytest.approx(1, abs=1e-9)


def test_what_was_kept_is_projected_when_it_is_read(toy, make):
    """float16 rounds, and images and crops meet the box elsewhere: ball and box hold all the same.

    alpha = 0 would show the start itself; the smallest step that there is shows nearly that.
    """
    net, method = toy().eval(), make("atta", alpha=1e-12)
    method.remember(10)
    batch = training(10, 0)
    take(method, net, batch)
    state = method.state_dict()
    state["kept"].fill_(EPS * 1.01)
    method.load_state_dict(state)
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    x_adv = take(method, net, batch)
    for x in (x_adv, *seen):  # the gradient, too, is taken inside
        assert (x - (batch.x + EPS).clamp(max=1)).abs().max() < 1e-12
    assert len(seen) == 1


def test_all_perturbations_begin_anew_before_epochs_10_20_30(toy, make):
    """Counted from 1, as the official loop does; images that are not in the batch as well."""
    net, method = toy().eval(), make("atta", start_std=0.002)
    method.remember(60)
    part, drawn = torch.arange(6), []
    for epoch in range(31):
        method.before_step(training(60, epoch, part))
        kept = method.state_dict()["kept"].clone()
        if not drawn or not torch.equal(kept[6:], drawn[-1][1][6:]):
            drawn.append((epoch, kept))
            assert kept.float().std() == pytest.approx(0.002, rel=0.05)
            assert kept.float().mean().abs() < 0.002 * 0.05
        batch = training(60, epoch, part)
        take(method, net, batch)
    assert [epoch for epoch, _ in drawn] == [0, 9, 19, 29]


def test_outside_training_the_attack_begins_anew_and_keeps_nothing(toy, make):
    net, method = toy().eval(), make("atta")
    method.remember(4)
    take(method, net, training(4, 0))
    before = method.state_dict()["kept"].clone()
    others = training(9, 0)._replace(aug=None)
    torch.manual_seed(0)
    x_adv = method.attack(net, others, cross_entropy(net))
    torch.manual_seed(0)
    start = (others.x + 0.001 * torch.randn_like(others.x)).clamp(0, 1)
    expected = pgd(net, others.x, others.targets, start, 0.015 / 0.031 * EPS, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    assert torch.equal(method.state_dict()["kept"], before)


# ---- loss and price ------------------------------------------------------------------------------


def test_the_losses_are_cross_entropy_and_that_of_trades(toy, batch, make):
    net = toy()
    x_adv = (batch.x + 0.1 * torch.randn_like(batch.x)).clamp(0, 1)

    def loss(name, **options):
        return make(name, **options).loss(net, batch, x_adv, cross_entropy(net)).item()

    p = net(x_adv).softmax(1)[torch.arange(6), batch.targets].tolist()
    nll = -math.fsum(map(math.log, p)) / 6
    assert math.isclose(loss("atta"), nll, rel_tol=1e-12)
    assert math.isclose(loss("atta", divide_by_batch=True), nll / 6, rel_tol=1e-12)
    assert loss("atta", loss="trades", beta=4.0) == loss("trades", beta=4.0)
    assert loss("atta", loss="trades") == loss("trades", beta=6.0)


def test_the_attack_maximises_cross_entropy_with_the_loss_of_trades_too(toy, make):
    net, ends = toy().eval(), []
    for loss in ("mat", "trades"):
        method = make("atta", loss=loss, steps=3)
        method.remember(10)
        torch.manual_seed(0)
        ends.append(take(method, net, training(10, 0)))
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (2, 1, 1)),
        ({"steps": 10, "alpha": 0.007 / 0.031}, (11, 10, 1)),
        ({"loss": "trades"}, (3, 1, 2)),
    ],
    ids=str,
)
def test_a_step_costs_the_lean_number_of_passes(toy, batch, make, update, train, options, expected):
    method, net = make("atta", **options), toy()
    method.remember(6)
    train(net, method, update("plain"), batch)
    assert tuple(net.counts.values()) == expected


def test_the_tasks_steps_and_step_size_do_not_count(toy, make):
    net, ends = toy().eval(), []
    for threat in (Threat(EPS, 2 / 255, 10), Threat(EPS, 1 / 255, 3)):
        method = make("atta", threat)
        method.remember(10)
        torch.manual_seed(0)
        ends.append(take(method, net, training(10, 0)))
    assert torch.equal(*ends)


# ---- memory --------------------------------------------------------------------------------------


def test_the_memory_goes_on_in_another_process(toy, make, tmp_path):
    net, methods = toy().eval(), [make("atta", reset=2), make("atta", reset=2)]
    methods[0].remember(10)
    methods[1].remember(10)
    take(methods[0], net, training(10, 0))
    torch.save(methods[0].state_dict(), tmp_path / "state.pt")
    methods[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for epoch in (0, 1, 2, 3):  # a reset among them
        ends = []
        for method in methods:
            torch.manual_seed(epoch)
            ends.append(take(method, net, training(10, epoch)))
        assert torch.equal(*ends)
    assert torch.equal(*(method.state_dict()["kept"] for method in methods))


def test_more_than_the_memory_may_hold_is_refused_before_it_is_taken(make, monkeypatch):
    method = make("atta")
    method.remember(1_281_167)
    x = torch.zeros(1, 3, 224, 224)
    crops = Crops(*(torch.zeros(1, dtype=torch.int64) for _ in range(3)), 4)
    with pytest.raises(UserError, match=r"385 GiB of perturbations.*--limit-train"):
        method.before_step(Batch(x, torch.zeros(1), torch.zeros(1, dtype=torch.int64), crops))
    small = make("atta")
    small.remember(10)
    batch = training(10, 0)
    monkeypatch.setattr(atta, "LIMIT", 2 * 10 * 3 * 12 * 12 - 1)
    with pytest.raises(UserError):
        small.before_step(batch)
    monkeypatch.setattr(atta, "LIMIT", 2 * 10 * 3 * 12 * 12)
    small.before_step(batch)


def test_a_step_before_the_memory_says_so(make):
    with pytest.raises(RuntimeError, match="remember"):
        make("atta").before_step(training(2, 0))


def test_it_takes_only_augmentations_that_can_be_undone(make):
    assert make("atta").augmentations == ("none", "shift", "crop-flip")


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"alpha": 0}, {"reset": 0}, {"loss": "trades", "divide_by_batch": True}],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        ATTAOptions(**options)
