"""Labelled images: the splits, the network, the loss, the stages and the pictures of a run."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from aal_bench import registry
from aal_bench.adapters.classification import Classification, cross_entropy, limited
from aal_bench.attacks.linf import attacking
from aal_bench.config import Choice, Limits, Run, read_task
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.methods.base import Method, Options, Threat
from aal_bench.methods.updates import Plain, PlainOptions

TINY = """
from torch import nn
def build(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make(tmp_path):
    """``make(train={...}, limits=..., method=...)`` -> the adapter of a run on digits."""
    (tmp_path / "tiny.py").write_text(TINY)

    def build(method="standard", **changes):
        tree = read_task(registry.task_file("digits")).model_dump(mode="json")
        for section in ("train", "threat", "attack", "data", "evaluation"):
            tree[section] |= changes.pop(section, {})
        fields = {
            "task": tree,
            "method": Choice(name=method),
            "model": Choice(name=f"{tmp_path}/tiny.py:build"),
            "protocol": "smoke",
        }
        return Classification(Run.model_validate(fields | changes), None)

    return build


def method_of(adapter, **options):
    kind = registry.load(registry.METHODS[adapter.run.method.name].target)
    task = adapter.task
    threat = Threat(task.threat.radius, float(task.attack.step), task.attack.steps)
    return kind(kind.Options(**options), threat)


# ---- data ----------------------------------------------------------------------------------------


def test_the_held_out_part_is_training_data_disjoint_and_balanced(make):
    adapter = make(train={"validation": 100})
    train, held = adapter.training_split()
    assert held is not None
    assert (len(train), len(held)) == (len(adapter.images.train) - 100, 100)
    assert not set(train.origin.tolist()) & set(held.origin.tolist())
    counts = np.bincount(held.labels.numpy())
    assert counts.max() - counts.min() <= 1


def test_without_validation_nothing_is_held_out(make):
    train, held = make(train={"validation": 0}).training_split()
    assert held is None
    assert len(train) == 1437


def test_a_limit_draws_from_everywhere_in_the_split(make):
    """Sets in class folders are stored class by class: the first images would all be of one."""
    split = make().images.train
    by_class = split.subset(torch.argsort(split.labels, stable=True))
    part = limited(by_class, 200)
    assert len(part) == 200
    assert len(torch.unique(part.labels)) == 10
    smaller = limited(by_class, 50)
    assert set(smaller.origin.tolist()) < set(part.origin.tolist())
    assert limited(by_class, None) is by_class
    assert limited(by_class, 10**6) is by_class


def test_a_limit_cuts_the_work_and_keeps_the_question(make):
    whole, cut = make(), make(limits=Limits(train=64, eval=30))
    assert (len(cut.test), len(cut.new_evidence())) == (30, 30)
    assert len(cut.training_split()[0]) == 64
    assert cut.fingerprint() == whole.fingerprint()
    assert cut.task.hash(cut.fingerprint()) == whole.task.hash(whole.fingerprint())


def test_evidence_addresses_images_by_their_place_in_the_whole_test_split(make):
    adapter = make(limits=Limits(eval=30))
    evidence = adapter.new_evidence()
    whole = adapter.images.test
    np.testing.assert_array_equal(whole.labels[evidence.index].numpy(), evidence.label)


# ---- network and loss ----------------------------------------------------------------------------


def test_the_seed_alone_decides_the_initial_weights(make):
    torch.manual_seed(99)
    first = make(seed=3).build().state_dict()
    torch.manual_seed(11)
    again, other = make(seed=3).build().state_dict(), make(seed=4).build().state_dict()
    for name, weight in first.items():
        torch.testing.assert_close(weight, again[name], rtol=0, atol=0)
    assert any(not torch.equal(weight, other[name]) for name, weight in first.items())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_objective_is_cross_entropy_in_float32_under_autocast(reduction):
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(8, 3), torch.randn(5, 8), torch.tensor([0, 1, 2, 1, 0])
    loss = cross_entropy(model)(x, y, reduction=reduction)
    torch.testing.assert_close(loss, functional.cross_entropy(model(x), y, reduction=reduction))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert cross_entropy(model)(x, y, reduction=reduction).dtype == torch.float32


# ---- stages --------------------------------------------------------------------------------------


OF_IMAGES = [registry.PROTOCOLS[name][0] for name in registry.PROTOCOLS.keys() - {"detection"}]


@pytest.mark.parametrize("name", sorted({stage for stages in OF_IMAGES for stage in stages}))
def test_every_stage_of_every_protocol_can_be_made_and_describes_itself(make, name):
    stage = make().stage(name)
    assert stage.name == name
    assert stage.implementation["package"] in {"aal-bench", "torchattacks", "pyautoattack"}
    assert not [value for value in stage.params.values() if isinstance(value, float)]
    if name != "clean":
        assert stage.params["eps"] == make().task.model_dump(mode="json")["threat"]["eps"]


def test_what_cannot_be_is_refused_before_any_work(make):
    with pytest.raises(UserError, match="stage fgsm is Linf"):
        make(threat={"norm": "L2"}).check(["clean", "fgsm"], training=False)
    late = make(train={"validation": 1437})
    late.check(["clean", "fgsm"], training=False)  # nobody trains: nothing is held out
    with pytest.raises(UserError, match="to train on"):
        late.check(["clean", "fgsm"], training=True)
    with pytest.raises(UserError, match="unknown attack 'fgsn'"):
        make().check(["clean", "fgsn"], training=False)


def test_a_last_batch_too_small_for_the_method_is_refused_before_any_work(make):
    """1,237 digits train: batches of 64 end with one of 21, batches of 103 with one of 1."""
    make("again-pgd", train={"batch_size": 64}).check(["clean"], training=True)
    alone = {"batch_size": 103}
    make("pgd", train=alone).check(["clean"], training=True)
    with pytest.raises(UserError, match=r"batches of 103 end with one of 1: choose another --b"):
        make("again-pgd", train=alone).check(["clean"], training=True)
    with pytest.raises(UserError, match="again-pgd needs batches of 2 images at least"):
        make("again-pgd", train={"batch_size": 1}).check(["clean"], training=True)


def test_fgsm_verdicts_are_those_of_the_closed_form(make):
    """For a linear network FGSM moves every pixel by eps * sign(w_y - sum_k p_k w_k)."""
    adapter = make(limits=Limits(eval=40), evaluation={"batch_size": 16}, threat={"eps": "10/255"})
    model = trained(adapter)
    evidence = adapter.new_evidence()
    adapter.run_stage("clean", model, evidence, *nothing())
    adapter.run_stage("fgsm", model, evidence, *nothing())

    weight, bias = (p.detach().double() for p in model.network[1].parameters())
    x = adapter.test.pixels(torch.arange(40)).double().flatten(1) / 255
    y = torch.from_numpy(evidence.label.astype(np.int64))
    p = torch.softmax(x @ weight.T + bias, 1)
    gradient = p @ weight - weight[y]
    moved = (x + 10 / 255 * gradient.sign()).clamp(0, 1)
    clean = (x @ weight.T + bias).argmax(1)
    fallen = (moved @ weight.T + bias).argmax(1)
    np.testing.assert_array_equal(evidence.clean_pred, clean.numpy())
    attacked = evidence.column("fgsm", "attacked")
    np.testing.assert_array_equal(attacked, (clean == y).numpy())
    np.testing.assert_array_equal(evidence.column("fgsm", "pred")[attacked], fallen[attacked])
    assert 0 < evidence.column("fgsm", "ok").sum() < attacked.sum()


def nothing():
    """Callbacks that keep neither adversarials nor accounts."""

    def forget(*_):
        pass

    return forget, forget


def trained(adapter):
    """A linear network, trained by the least squares of the training images."""
    model = adapter.build()
    x = adapter.images.train.pixels(torch.arange(1437)).double().flatten(1) / 255
    y = functional.one_hot(adapter.images.train.labels, 10).double()
    x1 = torch.cat([x, torch.ones(len(x), 1)], 1)
    solution = torch.linalg.solve(x1.T @ x1 + torch.eye(x1.shape[1]), x1.T @ y)
    with torch.no_grad():
        model.network[1].weight.copy_(10 * solution[:-1].T)
        model.network[1].bias.copy_(10 * solution[-1])
    return model.eval().requires_grad_(False)


def test_a_checkpoint_near_chance_is_refused_with_the_usual_causes(make):
    adapter = make()
    labels = np.arange(400) % 10
    for correct, refused in ((40, True), (57, True), (60, False), (400, False)):
        evidence = Evidence(np.arange(400), labels)
        rows = np.arange(400)
        pred = np.where(rows < correct, labels, (labels + 1) % 10)
        evidence.record("clean", rows, pred=pred)
        if refused:  # 10 % +- 3 standard errors of 400 draws: up to 14.5 %
            with pytest.raises(UserError, match=r"near chance .*--normalise.*label order"):
                adapter.check_clean(evidence)
        else:
            adapter.check_clean(evidence)


# ---- training and validation ---------------------------------------------------------------------


def test_training_selects_on_the_held_out_part_and_leaves_its_curves(make, tmp_path):
    adapter = make(method="pgd", train={"epochs": 2, "validation": 100}, attack={"steps": 2})
    method = method_of(adapter)
    found = adapter.fit(method, Plain(PlainOptions()), adapter.build(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]

    # The recorded accuracies of the last epoch, measured again on the same images by hand.
    model = adapter.build()
    model.load_state_dict(found.last)
    model.eval()
    _, held = adapter.training_split()
    x, y = held.pixels(torch.arange(100)).float() / 255, held.labels
    assert rows[-1]["val_clean"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert rows[-1]["val_pgd"] <= rows[-1]["val_clean"]
    best = max(row["val_pgd"] for row in rows)
    assert found.record["final"]["val_pgd"] <= best
    assert found.best is not None


# ---- figures -------------------------------------------------------------------------------------


class Rounding(torch.nn.Module):
    """A classifier of rounded pixels: its logits have no gradient, and look robust to PGD."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 8).round() / 8)


class Knowing(Method):
    """Knows where the rounding network is weak: at what it rounds."""

    def weaknesses(self, model, targets):
        return [lambda x: functional.cross_entropy(model.inner(x), targets, reduction="sum")]


def test_validation_believes_no_network_that_hides_its_gradient_from_its_own_method(make):
    adapter = make(train={"validation": 100})
    _, held = adapter.training_split()
    model = Rounding(trained(adapter)).eval()
    plain, knowing = (
        adapter._validator(held, kind(Options(), Threat(0.1, 0.03, 10)))(model)
        for kind in (Method, Knowing)
    )
    assert plain["val_clean"] == knowing["val_clean"] > 0.8
    assert plain["val_pgd"] > 0.95 * plain["val_clean"]  # the random start is all that acts
    assert knowing["val_pgd"] < 0.5 * plain["val_pgd"]


def test_the_pictures_show_the_training_and_the_evaluated_model(make, tmp_path):
    adapter = make(limits=Limits(eval=20), evaluation={"batch_size": 8}, attack={"steps": 2})
    model = trained(adapter)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "step": 9, "loss": 1.0, "lr": 0.1}\n')
    drawn = adapter.figures(method_of(adapter), model, tmp_path)
    assert drawn == ["figures/training.png", "figures/accuracy_eps.png"]
    for name in drawn:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_gated_model_gets_the_picture_of_the_selective_attack(make, tmp_path):
    adapter = make(
        method="aal-fgsm", model=Choice(name="cnn4"), limits=Limits(eval=8), attack={"steps": 1}
    )
    method = method_of(adapter)
    method.craft_bn = "train"  # and the attack of the picture moves running statistics: a copy's
    model = method.build(adapter.build()).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = adapter.figures(method, model, tmp_path)
    assert drawn == ["figures/selective_attack.png", "figures/accuracy_eps.png"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_the_curve_over_eps_begins_at_clean_accuracy_and_falls(make, tmp_path):
    from aal_bench.adapters.classification_figures import _attacks, _batches

    adapter = make(evaluation={"batch_size": 64}, attack={"steps": 5})
    model = trained(adapter)
    accuracies = []
    for eps in (0.0, 12 / 255, 32 / 255):
        correct = [0, 0]
        for x, y, *_ in _batches(adapter, 100):
            for place, x_adv in enumerate(_attacks(adapter, model, x, y, eps)):
                assert float((x_adv - x).abs().max()) <= eps + 1e-6
                correct[place] += int((model(x_adv).argmax(1) == y).sum())
        accuracies.append(correct)
    with attacking(model), torch.no_grad():
        clean = sum(int((model(x).argmax(1) == y).sum()) for x, y, *_ in _batches(adapter, 100))
    assert accuracies[0] == [clean, clean]
    for attack in (0, 1):
        assert accuracies[0][attack] > accuracies[1][attack] > accuracies[2][attack]
