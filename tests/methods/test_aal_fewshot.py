"""AAL for few-shot learning: which images each reading attacks, and what it then descends."""

import pytest
import torch
from torch.nn import functional

from aal_bench.aal.attention import gate_of
from aal_bench.config import Normalisation
from aal_bench.errors import UserError
from aal_bench.fewshot.heads.attacked import LogisticAttacked
from aal_bench.fewshot.heads.base import Support
from aal_bench.fewshot.heads.prototype import Prototype
from aal_bench.fewshot.objective import EpisodeObjective
from aal_bench.methods.aal_fewshot import AALIER, AALRFS, AALPaper, SelectiveFewShot
from aal_bench.methods.base import Batch, Threat
from aal_bench.methods.episodes import EpisodeTargets, episode_labels
from aal_bench.methods.rfs import RFS
from aal_bench.models.build import build

EPS = 8 / 255


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 3, 16, 16, generator=generator) * 0.8 + 0.1


def gated(kind=AALRFS, **options):
    """(method, its gated network in train mode with a gate that is not constant, objective)."""
    torch.manual_seed(0)
    method = kind(SelectiveFewShot(**options), Threat(EPS, EPS / 4, 10))
    model = method.build(build("cnn4-8", 6, 16, Normalisation()))
    if options.get("control") != "no_gate":
        torch.nn.init.constant_(gate_of(model).bn.weight, 100.0)
    objective = EpisodeObjective(model, Prototype(method.options), torch.enable_grad)
    return method, model.train(), objective


def labelled(x):
    return Batch(x=x, targets=torch.arange(12) % 6, idx=torch.arange(12), lr=0.05)


def episodes(x):
    targets = EpisodeTargets(torch.arange(12) % 6, count=2, ways=2, shots=1, queries=2)
    return Batch(x=x, targets=targets, idx=torch.arange(12), lr=0.05)


def moved(method, model, objective, batch):
    x_adv = method.attack(model, batch, objective)
    return x_adv, (x_adv - batch.x).flatten(1).abs().amax(1) > 0


def test_the_budget_lies_off_the_mask(x):
    """Kernel 1 - M*M: |eta| = eps (1 - M*M) where the gradient is not zero and the box not near."""
    method, model, objective = gated(xi2=0.0, xi1=0.0)
    x_adv, _ = moved(method, model, objective, labelled(x))
    M = method.association.M
    assert M.std() > 0.01
    budget = EPS * (1 - M * M)
    spent = (x_adv - x).abs()
    assert (spent <= budget + 1e-6).all()
    torch.testing.assert_close(spent.amax(1, keepdim=True), budget, atol=1e-6, rtol=0)


def test_f1_attacks_every_image_f2_the_first_half(x):
    assert moved(*gated(reading="F1"), labelled(x))[1].all()
    attacked = moved(*gated(reading="F2"), labelled(x))[1]
    assert attacked[:6].all()
    assert not attacked[6:].any()


def test_f3_is_clean_on_labels_and_attacks_the_support_of_episodes(x):
    method, model, objective = gated(reading="F3")
    assert not moved(method, model, objective, labelled(x))[1].any()
    x_adv, attacked = moved(method, model, objective, episodes(x))
    # Two episodes of two classes: one support image each, then two queries each.
    support = torch.tensor([1, 1, 0, 0, 0, 0] * 2, dtype=torch.bool)
    assert torch.equal(attacked, support)
    loss = method.loss(model, episodes(x), x_adv, objective)
    features = model.features(x_adv).unflatten(0, (2, 6))
    expected = [
        functional.cross_entropy(
            -(query[:, None] - shown[None]).square().sum(2), torch.tensor([0, 0, 1, 1])
        )
        for shown, query in ((part[:2], part[2:]) for part in features)
    ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_f3_follows_the_gradient_of_the_query_loss(x):
    """With the constant control the attack is eps K sign of autograd's own gradient."""
    method, model, objective = gated(reading="F3", control="full_mask_eps_scaled")
    batch = episodes(x)
    x_adv, _ = moved(method, model, objective, batch)
    model.eval()
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(given, batch.targets, reduction="sum"), given)
    support = batch.targets.in_support()
    step = (x_adv - x)[support]
    assert torch.equal(step.sign(), gradient[support].sign())


def test_f4_trains_clean_and_has_a_head_of_its_own(x):
    method, model, objective = gated(reading="F4")
    assert not moved(method, model, objective, labelled(x))[1].any()
    assert method.head == "logistic-attacked"
    assert gated()[0].head == "logistic"


def support_set(x):
    return Support(x[:4], x[:4, None].repeat(1, 3, 1, 1, 1), episode_labels(2, 2), 2)


def test_f4s_head_is_the_regression_on_copies_and_attacked_images(x):
    method, model, _ = gated(reading="F4")
    model.eval().requires_grad_(False)
    head, support = LogisticAttacked(method.options, method.threat), support_set(x)
    seen = []
    fit = head.fit
    head.fit = lambda f, y, ways, net: seen.append((f, y)) or fit(f, y, ways, net)  # type: ignore[method-assign]
    classifier = head.classifier(model, support)
    (first, labels), (second, all_labels) = seen
    assert len(first) == 4 * 3
    assert len(second) == 4 * 3 + 4
    assert torch.equal(second[:12], first)
    assert torch.equal(all_labels, torch.cat([labels, support.labels]))
    # The attack is within eps, raises the first fit's loss, and leaves the model as it was.
    x_adv = head._attack(model, fit(first, labels, 2, model), support)
    assert ((x_adv - support.images).abs() <= EPS + 1e-6).all()
    assert not model.training
    assert all(not weight.requires_grad for weight in model.parameters())
    assert classifier(x[4:]).shape == (8, 2)


@pytest.mark.parametrize("control", ["random_mask", "shuffled_mask"])
def test_f4s_classifier_is_the_same_in_every_stage(x, control):
    """It is made anew for each stage and after a restart, whatever was drawn in between."""
    method, model, _ = gated(reading="F4", control=control)
    model.eval().requires_grad_(False)
    head, support = LogisticAttacked(method.options, method.threat), support_set(x)
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        weights.append(head.classifier(model, support).readout.weight)
    assert torch.equal(*weights)


def test_f4_without_a_gate_attacks_the_whole_image(x):
    method, model, _ = gated(reading="F4", control="no_gate")
    model.eval()
    head, support = LogisticAttacked(method.options, method.threat), support_set(x)
    with torch.no_grad():
        readout = head.fit(model.features(x[:4]), support.labels, 2, model)
    spent = (head._attack(model, readout, support) - support.images).abs()
    assert spent.flatten(1).amax(1) == pytest.approx(torch.full((4,), EPS), abs=1e-6)


def test_without_budget_aal_rfs_is_rfs_on_the_gated_network(x):
    method, model, objective = gated()
    method.wrapped.threat = method.threat = Threat(0.0, 0.0, 1)
    batch = labelled(x)
    x_adv = method.attack(model, batch, objective)
    assert torch.equal(x_adv, x)
    plain = RFS(RFS.Options(), method.threat).loss(model, batch, x, objective)
    torch.testing.assert_close(method.loss(model, batch, x_adv, objective), plain)


def test_iers_other_views_are_made_of_the_attacked_image(x):
    method, model, objective = gated(AALIER)
    batch = labelled(x)
    method.before_step(batch)
    x_adv = method.attack(model, batch, objective)
    seen = []
    handle = model.normalise.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.loss(model, batch, x_adv, objective)
    handle.remove()
    assert [len(views) for views in seen] == [16 * 12]
    views = seen[0].detach()
    first = [part for part in (views[:12], views[::16]) if torch.equal(part, x_adv)]
    assert first, "the attacked image is no view"


def test_the_papers_row_differs_by_its_rate_alone():
    assert AALPaper.train_defaults == {"lr": 0.1}
    assert AALIER.train_defaults == {}
    assert AALPaper.base is AALIER.base


def test_injected_masks_are_refused_where_the_training_pass_has_other_images():
    with pytest.raises(UserError, match="second_att=recompute"):
        gated(AALIER, second_att="inject_Ma")
