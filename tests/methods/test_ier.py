"""IER against its transforms, its loss and its memory written out, image by image."""

import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from aal_bench.aal.attention import gate_of
from aal_bench.adapters.classification import cross_entropy
from aal_bench.config import Normalisation
from aal_bench.fewshot.heads.base import Head
from aal_bench.fewshot.objective import EpisodeObjective
from aal_bench.methods.aal import AAL
from aal_bench.methods.base import Batch, Threat
from aal_bench.methods.episodes import EpisodeTargets
from aal_bench.methods.fgsm import FGSM
from aal_bench.methods.ier import IER
from aal_bench.methods.ier_memory import Memory, contrastive_loss
from aal_bench.methods.ier_transforms import draw_places, short_side, sixteen_transforms
from aal_bench.models.build import build

THREAT = Threat(8 / 255, 2 / 255, 3)
CPU = torch.device("cpu")


class Embedding(nn.Module):
    """A smooth few-shot network for 8x8 images and 5 classes with six features."""

    feature_shape = (6, 1, 1)
    gate_sites = {"post_bn_relu": "network.features.3"}  # noqa: RUF012
    gate_channels = 4

    def __init__(self) -> None:
        super().__init__()
        features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU()),
            *(nn.Conv2d(4, 6, 3, 2, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1)),
        )
        self.network = nn.Module()
        self.network.features, self.network.classifier = features, nn.Linear(6, 5)

    def features(self, x):
        return self.network.features(x).flatten(1)

    def forward(self, x):
        return self.network.classifier(self.features(x))


def ier(seed=0, kind=IER, **options):
    """The method and its network in float64, drawn from `seed`."""
    method = kind(kind.Options(**{"negatives": 7, "projection": 3, **options}), THREAT)
    torch.manual_seed(seed)
    return method, method.build(Embedding().double().train())


@pytest.fixture
def batch(batch) -> Batch:
    """The six images at scattered positions of a training set of 20."""
    return batch._replace(idx=torch.tensor([3, 19, 8, 0, 11, 5]))


# ---- transforms ------------------------------------------------------------------------------


def written_out(image, places):
    """The sixteen transforms of one image (3, H, H), crop by crop, turn by turn."""
    size, short = image.shape[-1], short_side(image.shape[-1])
    a, b, c, d = places.tolist()
    crops = [
        image,
        image[:, a : a + short],
        image[:, :, b : b + short],
        image[:, c : c + short, d : d + short],
    ]
    resized = [F.interpolate(crop[None], (size, size), mode="bilinear")[0] for crop in crops]
    return [torch.rot90(crop, turns, (1, 2)) for crop in resized for turns in range(4)]


def test_they_are_four_crops_each_turned_four_times(batch):
    torch.manual_seed(0)
    places = draw_places(6, 8, CPU)
    found = sixteen_transforms(batch.x, places).unflatten(0, (16, 6))
    for image, own, place in zip(batch.x, found.unbind(1), places.T, strict=True):
        expected = torch.stack(written_out(image, place))
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-15)
    assert torch.equal(found[0], batch.x)
    for first in range(16):
        for second in range(first):
            assert (found[first] - found[second]).abs().amax((1, 2, 3)).min() > 0.05
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_pixel_goes_where_a_quarter_turn_counter_clockwise_takes_it():
    x = torch.zeros(1, 3, 9, 9)
    x[..., 0, 8] = 1  # top right
    corners = [(0, 8), (0, 0), (8, 0), (8, 8)]
    found = sixteen_transforms(x, torch.zeros(4, 1, dtype=torch.int64))
    for turns, (row, column) in enumerate(corners):
        assert found[turns, 0, row, column] == 1
        assert found[turns].sum() == 3


def test_crops_are_those_of_pillow_in_the_official_sizes():
    """84 -> 56 and 32 -> 22, as printed in the official code; and its resizing, to the byte."""
    assert (short_side(84), short_side(32)) == (56, 22)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=generator)
    picture = TF.to_pil_image(pixels)
    places = torch.tensor([3, 10, 0, 7])[:, None]
    found = sixteen_transforms(pixels[None] / 255, places)[::4]
    boxes = [(0, 0, 32, 32), (3, 0, 22, 32), (0, 10, 32, 22), (0, 7, 22, 22)]
    for own, box in zip(found, boxes, strict=True):
        expected = TF.to_tensor(TF.resized_crop(picture, *box, [32, 32]))
        assert (own - expected).abs().max() <= 1.51 / 255  # Pillow rounds after each of two passes


def test_every_place_is_drawn_and_none_outside():
    torch.manual_seed(0)
    places = draw_places(400, 8, CPU)
    assert short_side(8) == 6
    assert all(set(kind.tolist()) == {0, 1, 2} for kind in places)
    assert not torch.equal(places[0], places[1])


# ---- loss ------------------------------------------------------------------------------------


def unit(row):
    length = math.sqrt(math.fsum(value * value for value in row))
    return [value / length for value in row]


def cosine(a, b):
    return math.fsum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def nll(logits, label):
    return math.log(math.fsum(math.exp(value) for value in logits)) - logits[label]


def by_hand(method, net, batch, T):
    """The three terms in floats, one image of one transform at a time."""
    places, negatives = method.drawn
    images = [written_out(x, p) for x, p in zip(batch.x, places.T, strict=True)]
    x = torch.stack([image[k] for k in range(16) for image in images])
    features = net.features(x)
    heads = [net(x), *(method.heads[name](features) for name in ("equivariance", "invariance"))]
    logits, named, projected = (head.tolist() for head in heads)
    rows, positions = method.memory.rows.double().tolist(), batch.idx.tolist()
    terms = {"classes": [], "equivariance": [], "invariance": []}
    for k in range(16):
        for i, label in enumerate(batch.targets.tolist()):
            z = projected[6 * k + i]
            positive = rows[positions[i]] if k == 0 else projected[i]
            among = [cosine(z, positive), *(cosine(z, rows[n]) for n in negatives.tolist())]
            terms["classes"].append(nll(logits[6 * k + i], label))
            terms["equivariance"].append(nll(named[6 * k + i], k))
            terms["invariance"].append(nll([value / T for value in among], 0))
    return {name: math.fsum(values) / 96 for name, values in terms.items()}


@pytest.mark.parametrize(
    "options",
    [{}, {"equivariance": 0.3, "invariance": 2.0, "temperature": 0.5}, {"negatives": 500}],
    ids=str,
)
def test_the_loss_is_its_formula(batch, options):
    method, net = ier(**options)
    method.before_step(batch)
    assert len(method.drawn.negatives) == min(method.options.negatives, 20 - 6)
    loss = method.loss(net, batch, batch.x, cross_entropy(net))
    o = method.options
    terms = by_hand(method, net, batch, o.temperature)
    total = terms["classes"] + o.equivariance * terms["equivariance"]
    assert math.isclose(loss.item(), total + o.invariance * terms["invariance"], rel_tol=1e-9)
    logged = {name.removeprefix("loss_"): value.item() for name, value in method.log.items()}
    assert logged == pytest.approx(terms, rel=1e-9)


def test_the_defaults_are_the_official_codes():
    assert IER.Options().model_dump() == {
        "craft_bn": "eval",
        "equivariance": 1.0,
        "invariance": 1.0,
        "negatives": 6400,
        "projection": 64,
        "temperature": 1.0,
        "memory_momentum": 0.99,
    }


def test_the_gradient_is_that_of_finite_differences(batch):
    """Of the weights of the network and of both heads: nothing is detached but the memory."""
    method, net = ier()
    method.before_step(batch)
    weights = [w.requires_grad_() for w in method.param_groups(net)]
    assert len(weights) == len(list(net.parameters())) + 2 * 10

    def loss():
        return method.loss(net, batch, batch.x, cross_entropy(net))

    gradients = torch.autograd.grad(loss(), weights)
    assert all(gradient.abs().max() > 0 for gradient in gradients[-20:][::2])
    torch.manual_seed(3)
    directions = [torch.randn_like(weight) for weight in weights]
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight += step * direction
            ends.append(loss().item())
    slope = (ends[0] - ends[1]) / 2e-6
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    assert slope == pytest.approx(expected, rel=1e-5)


def test_the_loss_taken_again_is_the_same_and_draws_nothing(batch):
    method, net = ier()
    method.before_step(batch)
    state = torch.get_rng_state()
    losses = [method.loss(net, batch, batch.x, cross_entropy(net)) for _ in range(2)]
    assert torch.equal(*losses)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(method.memory.rows) == 20


def test_without_the_draws_of_a_step_there_is_no_loss(batch):
    method, net = ier()
    with pytest.raises(RuntimeError, match="before_step"):
        method.loss(net, batch, batch.x, cross_entropy(net))


def test_one_image_that_nothing_contrasts_with():
    """A training set of one image: no negative, so nothing to be told from."""
    projected, stored = torch.randn(16, 1, 3), torch.randn(1, 3)
    assert contrastive_loss(projected, stored, torch.empty(0, 3), 1.0) == 0


# ---- memory ----------------------------------------------------------------------------------


def test_the_memory_grows_to_the_largest_position_and_keeps_what_it_has():
    torch.manual_seed(0)
    memory = Memory(4)
    memory.reserve(torch.tensor([2, 9]))
    before = memory.rows.clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(10))
    memory.reserve(torch.tensor([4]))
    assert torch.equal(memory.rows, before)
    memory.reserve(torch.tensor([30, 1]))
    assert memory.rows.shape == (31, 4)
    assert torch.equal(memory.rows[:10], before)
    assert len(memory.rows.unique(dim=0)) == 31


def test_negatives_are_other_images_each_at_most_once_and_equally_often():
    torch.manual_seed(0)
    memory, idx = Memory(2), torch.tensor([7, 2, 4])
    memory.reserve(torch.arange(11))
    counts = torch.zeros(11)
    for _ in range(800):
        drawn = memory.draw_negatives(idx, 4)
        assert len(drawn.unique()) == 4
        counts[drawn] += 1
    assert counts[idx].sum() == 0
    others = torch.tensor([i for i in range(11) if i not in idx.tolist()])
    assert (counts[others] - 400).abs().max() < 5 * math.sqrt(800 / 4)  # binomial, p = 1/2
    assert sorted(memory.draw_negatives(idx, 6400).tolist()) == others.tolist()


def test_a_step_takes_one_percent_of_the_first_view_into_the_memory(batch):
    method, net = ier()
    method.before_step(batch)
    before, places = method.memory.rows.clone(), method.drawn.places
    method.loss(net, batch, batch.x, cross_entropy(net))
    method.after_step(batch, batch.x)
    features = net.features(sixteen_transforms(batch.x, places))
    first = method.heads["invariance"](features)[:6].detach().float()
    expected = before.clone()
    for row, position in enumerate(batch.idx.tolist()):
        expected[position] = 0.99 * before[position] + 0.01 * first[row]
    torch.testing.assert_close(method.memory.rows, expected)
    untouched = [i for i in range(20) if i not in batch.idx.tolist()]
    assert torch.equal(method.memory.rows[untouched], before[untouched])


@pytest.mark.parametrize("around", ["plain", "awp"])
def test_training_descends_and_a_resumed_run_goes_on_bit_for_bit(batch, update, train, around):
    method, net = ier()
    losses = train(net, method, update(around), batch, steps=12)
    assert losses[-1] < losses[0] - 0.5
    file = io.BytesIO()
    torch.save(
        {
            "net": net.state_dict(),
            "extra": {name: head.state_dict() for name, head in method.extra_modules().items()},
            "method": method.state_dict(),
        },
        file,
    )
    ends = [train(net, method, update(around), batch, steps=2, seed=5)]
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, other = ier(seed=1)
    other.load_state_dict(state["net"])
    for name, head in again.extra_modules().items():
        head.load_state_dict(state["extra"][name])
    again.load_state_dict(state["method"])
    ends.append(train(other, again, update(around), batch, steps=2, seed=5))
    assert ends[0] == ends[1]
    assert torch.equal(method.memory.rows, again.memory.rows)


def test_loading_copies_so_that_two_methods_share_no_memory(batch):
    method, _ = ier()
    method.before_step(batch)
    other, _ = ier()
    other.load_state_dict(method.state_dict())
    other.memory.rows.zero_()
    assert method.memory.rows.abs().sum() > 0


# ---- among others ----------------------------------------------------------------------------


class AttackedIER(FGSM, IER):
    """IER on images attacked by FGSM."""

    attacks = True


class AALIER(AAL):
    """The same, confined to the mask."""

    base = AttackedIER


def test_the_attack_is_fgsm_on_the_classes_and_its_image_replaces_the_first_view(batch):
    method, net = ier(kind=AttackedIER)
    method.before_step(batch)
    net.eval()
    x = batch.x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net(x), batch.targets, reduction="sum"), x)
    x_adv = method.attack(net, batch, cross_entropy(net))
    torch.testing.assert_close(x_adv, (batch.x + 8 / 255 * g.sign()).clamp(0, 1).detach())
    found = method.loss(net, batch, x_adv, cross_entropy(net))
    terms = by_hand(method, net, batch._replace(x=x_adv), 1.0)
    assert found.item() == pytest.approx(sum(terms.values()), rel=1e-9)
    assert found > method.loss(net, batch, batch.x, cross_entropy(net))
    plain, other = ier()
    assert plain.attack(other, batch, cross_entropy(other)) is batch.x


def test_aal_wraps_it_gate_heads_memory_and_all(batch, update, train):
    method = AALIER(AALIER.Options(), THREAT)
    torch.manual_seed(0)
    net = method.build(Embedding().double().train())
    weight = gate_of(net).conv.weight
    before = weight.detach().clone()
    losses = train(net, method, update("plain"), batch, steps=3)
    assert all(math.isfinite(loss) for loss in losses)
    assert not torch.equal(weight, before)
    assert set(method.extra_modules()) == {"equivariance", "invariance"}
    assert method.state_dict()["memory"].shape == (20, 64)


def test_a_batch_of_episodes_leaves_the_memory_alone(batch):
    method, net = ier()
    method.before_step(batch)
    method.loss(net, batch, batch.x, cross_entropy(net))
    rows, state = method.memory.rows.clone(), torch.get_rng_state()
    episodes = batch._replace(targets=EpisodeTargets(batch.targets, 1, 2, 1, 2))
    method.before_step(episodes)
    method.after_step(episodes, episodes.x)
    assert torch.equal(method.memory.rows, rows)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_heads_are_trained_beside_the_network_and_hold_no_statistics():
    method, net = ier()
    assert "equivariance" not in "".join(net.state_dict())
    assert [head[-1].out_features for head in method.extra_modules().values()] == [16, 3]
    for head in method.extra_modules().values():
        assert [type(layer).__name__ for layer in head] == [
            *("Linear", "BatchNorm1d", "ReLU") * 2,
            "Linear",
        ]
        assert head[0].weight.shape == head[3].weight.shape == (6, 6)
        assert head[0].weight.dtype == torch.float64
        assert not list(head.buffers())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_of_ours_trains_in_the_objectives_precision(update, train, bf16):
    torch.manual_seed(0)
    x = torch.rand(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    batch = Batch(x, torch.tensor([0, 3, 1, 4, 2, 0]), torch.arange(6))
    method = IER(IER.Options(), THREAT)
    net = method.build(build("cnn4-8", 5, 16, Normalisation())).train()
    objective = EpisodeObjective(
        net, Head(None), lambda: torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    )
    seen = []
    for head in (net.network.classifier, *method.extra_modules().values()):
        head.register_forward_hook(lambda _, __, output: seen.append((output.dtype, len(output))))
    method.before_step(batch)
    loss = method.loss(net, batch, x, objective)
    assert seen == [(torch.bfloat16 if bf16 else torch.float32, 96)] * 3
    assert loss.dtype == torch.float32
    exact = method.loss(net, batch, x, cross_entropy(net))
    assert loss.item() == pytest.approx(exact.item(), rel=0.02 if bf16 else 0)
    loss.backward()
    assert all(weight.grad is not None for weight in method.param_groups(net))
