"""The detector's loss and its parts: MMDetection's own, and each image's as if it were alone."""

import pytest
import torch
from torch.nn import functional as F

from aal_bench.attacks.linf import input_gradient
from aal_bench.detection.objective import DetectionObjective, targets_of

PARTS = ("total", "cls", "loc")
THREE = [(264, 264)] * 3
"""The third has no object."""


@pytest.fixture(scope="module")
def detector(small_detector):
    return small_detector().eval()


@pytest.fixture
def attacked(detector, make_batch):
    """Images in [0, 1] and what their loss is taken against."""
    inputs, samples = make_batch(detector, THREE)
    objective = DetectionObjective(detector)
    return objective, objective.space.pixels(inputs), targets_of(samples, inputs)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mean_is_mmdetections_own_loss(small_detector, make_batch, mode):
    net = small_detector().train(mode == "train")
    inputs, samples = make_batch(net, THREE)
    objective = DetectionObjective(net)
    x, targets = objective.space.pixels(inputs), targets_of(samples, inputs)
    theirs = net.loss(objective.space.inputs(x), samples)
    total, _ = net.parse_losses(theirs)
    assert torch.equal(objective(x, targets), total)
    cls, loc = (sum(part.sum() for part in theirs[f"loss_{name}"]) for name in ("cls", "bbox"))
    torch.testing.assert_close(objective.part("cls")(x, targets), cls)
    torch.testing.assert_close(objective.part("loc")(x, targets), loc)
    torch.testing.assert_close(objective.parts, {"cls": cls.detach(), "loc": loc.detach()})


def test_it_is_the_loss_of_ssd_written_out(attacked, detector):
    """Liu et al. 2016: (L_conf + L_loc) / N; the hardest negatives, three to a positive."""
    objective, x, targets = attacked
    scores, deltas = detector.bbox_head(detector.extract_feat(objective.space.inputs(x)))
    priors = torch.cat(
        detector.bbox_head.prior_generator.grid_priors([s.shape[-2:] for s in scores], device="cpu")
    )
    expected = []
    for i in range(2):
        truth = targets.samples[i].gt_instances
        logits = torch.cat([level[i].permute(1, 2, 0).reshape(-1, 3) for level in scores])
        moves = torch.cat([level[i].permute(1, 2, 0).reshape(-1, 4) for level in deltas])
        iou, nearest = overlaps(priors, truth.bboxes).max(1)
        best = overlaps(priors, truth.bboxes).max(0)
        positive = iou >= 0.5
        for column, (value, prior) in enumerate(zip(*best, strict=True)):
            assert value < 0.5 or positive[prior]
            positive[prior], nearest[prior] = True, column  # every object has one
        entropy = F.cross_entropy(
            logits, torch.where(positive, truth.labels[nearest], 2), reduction="none"
        )
        count = int(positive.sum())
        hardest = entropy[~positive].topk(3 * count).values.sum()
        aim = encoded(priors[positive], truth.bboxes[nearest[positive]])
        loc = F.smooth_l1_loss(moves[positive], aim, reduction="sum")
        expected.append((entropy[positive].sum() + hardest + loc) / count)
    found = objective(x, targets, reduction="none")
    torch.testing.assert_close(found[:2], torch.stack(expected), rtol=1e-4, atol=0)


def overlaps(a, b):
    from torchvision.ops import box_iou

    return box_iou(a, b)


def encoded(priors, boxes):
    """Shifts by the prior's size over 0.1, logarithms of the sides' ratios over 0.2."""
    centre, side = (priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]
    shift = ((boxes[:, :2] + boxes[:, 2:]) / 2 - centre) / side / 0.1
    return torch.cat([shift, ((boxes[:, 2:] - boxes[:, :2]) / side).log() / 0.2], 1)


@pytest.mark.parametrize("part", PARTS)
def test_each_images_loss_and_gradient_are_those_of_the_image_alone(attacked, part):
    objective, x, targets = attacked
    objective = objective.part(part)
    each = objective(x, targets, reduction="none")
    assert each.shape == (3,)
    torch.testing.assert_close(objective(x, targets, reduction="sum"), each.sum())
    together = input_gradient(lambda v: objective(v, targets, reduction="sum"), x)
    for i in range(3):
        own, one = targets._replace(samples=targets.samples[i : i + 1]), x[i : i + 1]
        torch.testing.assert_close(objective(one, own), each[i], rtol=1e-4, atol=1e-6)
        alone = input_gradient(lambda v, own=own: objective(v, own, reduction="sum"), one)
        assert (together[i : i + 1] - alone).norm() <= 1e-4 * alone.norm()


def test_another_image_beside_it_changes_nothing(attacked):
    objective, x, targets = attacked
    other = torch.cat([x[:1], torch.rand_like(x[1:])])
    gradients = [
        input_gradient(lambda v: objective(v, targets, reduction="sum"), images)[0]
        for images in (x, other)
    ]
    assert torch.equal(*gradients)


def test_the_parts_add_up(attacked):
    objective, x, targets = attacked
    for reduction in ("mean", "sum", "none"):
        total, cls, loc = (objective.part(p)(x, targets, reduction=reduction) for p in PARTS)
        torch.testing.assert_close(cls + loc, total)
        assert (cls.sum() > 0) & (loc.sum() > 0)
    cls, loc = objective.parts_of(x, targets)
    torch.testing.assert_close(cls, objective.part("cls")(x, targets, reduction="sum"))
    torch.testing.assert_close(loc, objective.part("loc")(x, targets, reduction="sum"))


@pytest.mark.parametrize("part", PARTS)
def test_an_image_without_objects_has_no_loss_and_no_gradient(attacked, part):
    objective, x, targets = attacked
    objective = objective.part(part)
    each = objective(x, targets, reduction="none")
    assert each[2] == 0
    gradient = input_gradient(lambda v: objective(v, targets, reduction="sum"), x)
    assert (gradient[2] == 0).all()
    assert (gradient[:2] != 0).float().mean() > 0.99
    # Nor where no image of the batch has any.
    empty = targets._replace(samples=targets.samples[2:])
    assert objective(x[2:], empty) == 0


@pytest.mark.parametrize("part", PARTS)
def test_the_gradient_is_that_of_finite_differences(small_detector, make_batch, part):
    """Through loss, network and normalisation, in float64: slopes along several directions."""
    net = small_detector().double().eval()
    inputs, samples = make_batch(net)
    objective = DetectionObjective(net, part)
    x = objective.space.pixels(inputs).double()
    targets = targets_of(samples, inputs)

    def value(v):
        return objective(v, targets, reduction="sum")

    gradient = input_gradient(value, x)
    assert gradient.dtype == torch.float64
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(5):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        direction = noise / noise.norm() + 0.05 * gradient / gradient.norm()
        with torch.no_grad():
            slope = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
        errors.append(abs(slope / (gradient * direction).sum() - 1))
    assert torch.stack(errors).median() < 1e-5  # a kink of ReLU may spoil one of them


def test_the_loss_is_in_float32_whatever_the_network_computes_in(attacked, detector):
    objective, x, targets = attacked
    half = DetectionObjective(detector, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    value = half(x, targets)
    assert value.dtype == torch.float32
    assert value != objective(x, targets)
    torch.testing.assert_close(value, objective(x, targets), rtol=0.02, atol=0)
    assert half.part("cls")(x, targets) == half.parts["cls"]
