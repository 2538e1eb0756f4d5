"""One stage on one model: what is attacked, in which batches, what is recorded, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn

from aal_bench.adapters.attack_stage import Victim, run_stage
from aal_bench.adapters.classification import make_stage
from aal_bench.again.class_gate import ClassGate
from aal_bench.again.heads import heads_of, insert_class_gates
from aal_bench.attacks.stages import Setting, Stage
from aal_bench.config import Task
from aal_bench.data.splits import InMemory
from aal_bench.errors import RunFailed, UserError
from aal_bench.evidence import Evidence
from aal_bench.threat import Threat

EPS, CLASSES, COUNT, BATCH = 0.02, 5, 30, 8
STAGES = ("clean", "fgsm", "pgd-3", "cw-inf-2", "apgd-ce", "apgd-t")


@pytest.fixture
def net():
    """A small network with batch norm whose running statistics are not the batch's."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES)
    model = nn.Sequential(*layers)
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


@pytest.fixture
def split(net):
    """30 images, of which every seventh has another label than the network says."""
    torch.manual_seed(1)
    images = torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8)
    labels = net(images / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % CLASSES
    return InMemory(images, labels)


@pytest.fixture
def task():
    return Task.model_validate(
        {
            "name": "toy",
            "title": "toy",
            "data": {"name": "toy", "classes": CLASSES, "size": 8},
            "threat": {"eps": str(EPS)},
            "attack": {"step": "0.008"},
            "train": {"epochs": 1, "lr": 0.1},
            "model": "cnn4",
            "evaluation": {"batch_size": BATCH, "seed": 3},
        }
    )


@pytest.fixture
def evidence(split):
    return Evidence(split.origin.numpy(), split.labels.numpy())


@pytest.fixture
def run(net, split, task, evidence):
    """run(stage or its name, ...): on the network, the images and the evidence of this test."""

    def go(stage, *, model=None, images=None, table=None, fooled=None, saved=None):
        stage = make_stage(stage, task) if isinstance(stage, str) else stage
        victim = Victim(
            net if model is None else model, images or split, torch.device("cpu"), BATCH
        )
        table = evidence if table is None else table
        run_stage(stage, victim, table, fooled or (lambda *_: None), saved or (lambda *_: None))
        return table

    return go


class Own(Stage):
    """An attack of one's own: any function (model, x, y) -> x'."""

    package = "aal-bench"

    def __init__(self, attack, name="own", sequential=False):
        super().__init__(name, Setting(Threat(eps=str(EPS)), 0.02, CLASSES, 3))
        self.attack, self.sequential = attack, sequential  # type: ignore[misc]

    def perturb(self, model, x, y):
        return self.attack(model, x, y)


def tables(evidence):
    """Everything that is recorded, for comparison."""
    return {
        "clean": evidence.clean_pred,
        **{
            f"{stage}.{column}": evidence.column(stage, column)
            for stage in evidence.stages
            for column in ("recorded", "attacked", "pred", "ok", "norm", "forwards", "backwards")
        },
    }


def assert_equal(one, two):
    one, two = tables(one), tables(two)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


# ---- what is recorded -----------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "passes"), [("fgsm", 1), ("pgd-3", 3), ("cw-inf-2", 2)])
def test_what_is_recorded_is_what_happened(run, net, split, task, stage, passes):
    """Prediction, norm, verdict and passes, recomputed from the adversarials themselves."""
    fooling = {}
    run("clean")
    table = run(stage, fooled=lambda rows, x: fooling.update(zip(rows.tolist(), x, strict=True)))
    x, y = split.pixels(torch.arange(COUNT)) / 255, split.labels
    clean = (net(x).argmax(1) == y).numpy()
    np.testing.assert_array_equal(table.clean_correct(), clean)
    np.testing.assert_array_equal(table.column(stage, "attacked"), clean)
    fell = clean & ~table.column(stage, "ok")
    assert 0 < fell.sum() < clean.sum()
    assert sorted(fooling) == np.flatnonzero(fell).tolist()
    for row, adversarial in fooling.items():
        image = torch.from_numpy(adversarial)
        pred = int(net(image[None]).argmax())
        assert pred == table.column(stage, "pred")[row] != y[row]
        assert table.column(stage, "norm")[row] == pytest.approx(
            float((image - x[row]).abs().max()), abs=1e-7
        )
    assert (table.column(stage, "norm")[clean] <= np.float32(EPS + 1e-6)).all()
    assert set(table.column(stage, "forwards")[clean]) == {passes + 1}
    assert set(table.column(stage, "backwards")[clean]) == {passes}
    assert not table.column(stage, "forwards")[~clean].any()


def test_fgsm_verdicts_are_those_of_torchattacks_on_the_model_in_eval_mode(run, net, split):
    run("clean")
    table = run("fgsm")
    x, y = split.pixels(torch.arange(COUNT)) / 255, split.labels
    verdicts = net(torchattacks.FGSM(net, eps=EPS)(x, y)).argmax(1) == y
    np.testing.assert_array_equal(table.robust(), (verdicts & (net(x).argmax(1) == y)).numpy())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_victim_is_evaluated_with_its_running_statistics_and_they_stay(run, net, mode):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = {}
    for name in ("clean", "fgsm", "pgd-3"):
        expected = tables(run(name))
    net.train(mode == "train")
    again = Evidence(run("clean").index, run("clean").label)
    for name in ("clean", "fgsm", "pgd-3"):
        run(name, table=again)
        assert not any(module.training for module in net.modules())
    for name, value in tables(again).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_works_under_no_grad_and_leaves_the_generator_alone(run, evidence):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        for name in ("clean", "pgd-3"):
            run(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert not evidence.robust().all()


def test_every_batch_draws_the_numbers_of_the_tasks_seed_whatever_was_drawn_before(run):
    drawn = []

    def attack(_model, x, _y):
        drawn.append(float(torch.rand(())))
        return x

    run("clean")
    for seed in (5, 6):
        torch.manual_seed(seed)
        run(Own(attack, name=f"own-{seed}"))
    assert len(drawn) > 4
    assert set(drawn) == {float(torch.rand((), generator=torch.Generator().manual_seed(3)))}


def test_arithmetic_is_exact_while_attacking_and_as_before_afterwards(run):
    def flags():
        cudnn = torch.backends.cudnn
        return (
            cudnn.allow_tf32,
            cudnn.deterministic,
            cudnn.benchmark,
            torch.backends.cuda.matmul.allow_tf32,
        )

    seen, before = [], flags()

    def attack(_model, x, _y):
        seen.append(flags())
        return x

    run("clean")
    run(Own(attack))
    assert set(seen) == {(False, True, False, False)}
    assert flags() == before


# ---- what is attacked, and in which batches -------------------------------------------------


def spy(seen):
    """An attack that notes its batches and changes nothing."""

    def attack(_model, x, _y):
        seen.append(x.clone())
        return x

    return attack


def rows_of(batches, split):
    """Positions of noted images."""
    x = split.pixels(torch.arange(COUNT)) / 255
    return [[int((image == x).flatten(1).all(1).nonzero()) for image in part] for part in batches]


def test_an_independent_stage_attacks_every_cleanly_correct_image_in_index_order(run, split):
    clean = run("clean").clean_correct()
    run("pgd-3")  # fells some, which changes nothing here
    seen = []
    run(Own(spy(seen)))
    correct = np.flatnonzero(clean).tolist()
    expected = [correct[i : i + BATCH] for i in range(0, len(correct), BATCH)]
    assert rows_of(seen, split) == expected


def test_a_sequential_stage_attacks_the_survivors_of_its_suite_only(run, split, evidence):
    """AutoAttack's stages see what stands after those before them, cut in index order."""
    run("clean")
    run("pgd-3")  # not of the suite
    run("apgd-ce")
    assert 0 < evidence.robust(["apgd-ce"]).sum() < evidence.clean_correct().sum()
    seen = []
    run(Own(spy(seen), name="apgd-t", sequential=True))
    standing = np.flatnonzero(evidence.robust(["apgd-ce"])).tolist()
    assert rows_of(seen, split) == [standing[i : i + BATCH] for i in range(0, len(standing), BATCH)]
    fallen = np.setdiff1d(np.arange(COUNT), standing)
    assert evidence.done("apgd-t").all()
    assert not evidence.column("apgd-t", "attacked")[fallen].any()
    assert not evidence.column("apgd-t", "ok")[fallen].any()


class Backwards(InMemory):
    """The same batches, the last first: as another rank might run them."""

    def batches(self, *args, **options):
        return iter(list(super().batches(*args, **options))[::-1])


def test_the_order_of_the_batches_does_not_matter(run, split):
    forwards, backwards = (Evidence(split.origin.numpy(), split.labels.numpy()) for _ in range(2))
    reverse = Backwards(split.pixels(torch.arange(COUNT)), split.labels)
    for name in STAGES:
        run(name, table=forwards)
        run(name, table=backwards, images=reverse)
    assert_equal(forwards, backwards)
    assert 0 < forwards.robust().sum() < forwards.clean_correct().sum()


def test_a_stage_with_nobody_to_attack_is_complete_without_a_batch(run, split, evidence):
    wrong = InMemory(split.pixels(torch.arange(COUNT)), (split.labels + 1) % CLASSES)
    wrong.labels[::7] = (split.labels[::7] + 3) % CLASSES
    table = Evidence(wrong.origin.numpy(), wrong.labels.numpy())
    run("clean", table=table, images=wrong)
    assert not table.clean_correct().any()
    run("fgsm", table=table, images=wrong, saved=lambda *_: pytest.fail("there was no batch"))
    assert table.done("fgsm").all()
    assert not table.robust().any()


# ---- resume ---------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.fixture
def whole(run, split):
    """The evidence of an uninterrupted run."""
    table = Evidence(split.origin.numpy(), split.labels.numpy())
    for name in STAGES:
        run(name, table=table)
    return table


@pytest.mark.parametrize(
    ("stage", "batches"), [("clean", 2), ("pgd-3", 1), ("apgd-ce", 1), ("apgd-t", 1)]
)
def test_resumed_in_the_middle_of_a_stage_the_evidence_is_the_same(
    run, split, whole, tmp_path, stage, batches
):
    """Killed right after a batch was saved, and continued by another process's reading of it."""
    path = tmp_path / "evidence.npz"
    table, left = Evidence(split.origin.numpy(), split.labels.numpy()), batches

    def saved(name):
        def save(_seconds, _violation):
            nonlocal left
            table.save(path)
            left -= name == stage
            if left == 0:
                raise Killed

        return save

    def until_killed():
        for name in STAGES:
            run(name, table=table, saved=saved(name))

    with pytest.raises(Killed):
        until_killed()
    resumed = Evidence.load(path)
    assert 0 < resumed.done(stage).sum() < COUNT
    for name in STAGES[STAGES.index(stage) :]:
        run(name, table=resumed)
    for name in STAGES[: STAGES.index(stage)]:  # and what was complete stays untouched
        run(name, table=resumed, saved=lambda *_: pytest.fail("attacked twice"))
    assert_equal(resumed, whole)


def test_a_batch_that_was_not_saved_is_attacked_again_with_the_same_result(run, split, whole):
    table = Evidence(split.origin.numpy(), split.labels.numpy())
    run("clean", table=table)

    def killed(*_):
        raise Killed

    with pytest.raises(Killed):
        run("pgd-3", table=table, fooled=killed)
    table = Evidence(split.origin.numpy(), split.labels.numpy())
    for name in STAGES:
        run(name, table=table)
    assert_equal(table, whole)


# ---- what is an error and never robustness --------------------------------------------------


def second_batch(effect):
    """An attack that does nothing in its first batch and `effect` in its second."""
    batches = []

    def attack(_model, x, y):
        batches.append(len(x))
        return x if len(batches) == 1 else effect(x, y)

    return Own(attack)


def assert_only_the_first_batch_is_recorded(evidence, saves):
    correct = np.flatnonzero(evidence.clean_correct())
    assert saves == 1
    assert evidence.done("own")[correct].tolist() == [True] * BATCH + [False] * (
        len(correct) - BATCH
    )
    with pytest.raises(UserError, match="a missing row is not robust"):
        evidence.robust()


def failing(run, evidence, stage, error, match, **options):
    saves = []
    run("clean")
    with pytest.raises(error, match=match or None):
        run(stage, saved=lambda *_: saves.append(1), **options)
    assert_only_the_first_batch_is_recorded(evidence, len(saves))


def boom(error):
    def effect(_x, _y):
        raise error

    return effect


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2\nshapes"),
        NotImplementedError("no kernel"),
        ValueError("bad"),
        TypeError("bad"),
        KeyError("bad"),
        IndexError("bad"),
        AttributeError("bad"),
        ZeroDivisionError("bad"),
        FloatingPointError("bad"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_attack_that_raises_fails_the_run(run, evidence, error):
    name = type(error).__name__
    failing(
        run, evidence, second_batch(boom(error)), RunFailed, rf"^stage own raised {name}: [^\n]*$"
    )


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), OSError(28, "full"), Killed()]
)
def test_any_other_exception_ends_the_run_as_itself(run, evidence, error):
    failing(run, evidence, second_batch(boom(error)), type(error), "")


@pytest.mark.parametrize(
    ("effect", "match"),
    [
        (lambda x, _: (x + 2 * EPS).clamp(0, 1), r"left its bounds: eps exceeded by 2\.00e-02"),
        (lambda x, _: x + EPS, r"left its bounds: eps exceeded by .*, the box by [12]\.\d\de-02"),
        (lambda x, _: x - EPS, r"the box by [12]\.\d\de-02"),
        (lambda x, _: x + torch.nan, "left its bounds: eps exceeded by nan"),
        (lambda x, _: torch.where(x > 0.999, torch.inf, x), "left its bounds: eps exceeded by inf"),
        (lambda x, _: x.sub_(3 * EPS).clamp_(0, 1), r"eps exceeded by 4\.00e-02"),
        (lambda x, _: x[:, :1], r"returned images of shape \(8, 1, 8, 8\), not \(8, 3, 8, 8\)"),
        (lambda *_: None, "raised AttributeError"),
    ],
    ids=["ball", "box above", "box below", "nan", "inf", "in place", "shape", "nothing"],
)
def test_an_attack_that_breaks_the_rules_fails_the_run(run, evidence, effect, match):
    failing(run, evidence, second_batch(effect), RunFailed, match)


def leaves_it_training(model, x, _y):
    model.train()
    return x


def leaves_a_part_training(model, x, _y):
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).train()
    return x


def answers_while_training(model, x, _y):
    model.train()
    model(x)
    model.eval()
    return x


@pytest.mark.parametrize(
    "attack", [leaves_it_training, leaves_a_part_training, answers_while_training]
)
def test_a_model_in_training_mode_fails_the_run(run, evidence, attack):
    """The batch's statistics or the labels would answer in its place."""
    run("clean")
    with pytest.raises(RunFailed, match=r"stage own: the model, .* is in training mode"):
        run(Own(attack))
    assert not evidence.done("own")[evidence.clean_correct()].any()


class Toggles(nn.Module):
    """A network whose own forward puts it into training mode."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x)
        self.net.train()
        return logits


def test_a_model_that_trains_by_itself_fails_the_run(run, net, evidence):
    with pytest.raises(RunFailed, match=r"stage clean: the model, .* is in training mode"):
        run("clean", model=Toggles(net))
    assert not evidence.done("clean").any()


@pytest.fixture
def headed(net, split):
    """The network with a class gate after its ReLU, and the images relabelled by it."""
    torch.manual_seed(2)
    model = insert_class_gates(net, {"2": ClassGate(CLASSES, 8)}).eval().requires_grad_(False)
    images = split.pixels(torch.arange(COUNT))
    return model, InMemory(images, model(images / 255).argmax(1))


def of_headed(headed):
    """The evidence of the relabelled images."""
    return Evidence(headed[1].origin.numpy(), headed[1].labels.numpy())


def test_a_network_with_class_gates_is_attacked_like_any_other(run, headed):
    (model, images), table = headed, of_headed(headed)
    for name in ("clean", "fgsm", "pgd-3", "apgd-ce"):
        run(name, model=model, images=images, table=table)
    assert table.clean_correct().all()
    assert 0 < table.robust().sum() < COUNT


def opens_gates_by_labels(model, x, y):
    with heads_of(model).labelled(y):
        return x + model(x).sum() * 0


def opens_gates_by_labels_in_training(model, x, y):
    heads_of(model).train()
    with heads_of(model).labelled(y):
        model(x)
    model.eval()
    return x


def hands_over_the_labels(model, x, y):
    return x + model(x, y).sum() * 0


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (opens_gates_by_labels, "RuntimeError: labels are for training passes"),
        (opens_gates_by_labels_in_training, "is in training mode"),
        (hands_over_the_labels, "raised TypeError"),
        (leaves_it_training, "is in training mode"),
    ],
)
def test_a_network_with_class_gates_is_not_judged_with_labels_or_while_training(
    run, headed, attack, match
):
    (model, images), table = headed, of_headed(headed)
    run("clean", model=model, images=images, table=table)
    with pytest.raises(RunFailed, match=match):
        run(Own(attack), model=model, images=images, table=table)
    assert not table.done("own").any()


def test_rounding_is_tolerated_to_a_millionth_and_no_further(run, evidence):
    def move(by):
        return lambda _model, x, _y: torch.where((x > 0.1) & (x < 0.9), x + by, x)

    run("clean")
    run(Own(move(EPS + 5e-7)))
    assert evidence.column("own", "norm").max() == pytest.approx(EPS + 5e-7, abs=1e-7)
    with pytest.raises(RunFailed, match=r"eps exceeded by [12]\.\d\de-06"):
        run(Own(move(EPS + 2e-6), name="further"))


class Broken(nn.Module):
    """The network, but with a value in the logits of images away from the originals."""

    def __init__(self, net, value, known):
        super().__init__()
        self.net, self.value, self.known = net, value, known

    def forward(self, x):
        logits = self.net(x)
        seen = (x[:, None] == self.known).flatten(2).all(2).any(1)
        return torch.where(seen[:, None], logits, logits * 0 + self.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("stage", ["fgsm", "pgd-3", "cw-inf-2", "apgd-ce"])
def test_logits_that_are_no_numbers_fail_the_run(run, net, split, evidence, value, stage):
    """The network answers clean images well and breaks on what the attack makes of them."""
    broken = Broken(net, value, split.pixels(torch.arange(COUNT)) / 255)
    run("clean", model=broken)
    with pytest.raises(RunFailed, match=rf"stage {stage}"):
        run(stage, model=broken)
    assert not evidence.done(stage)[evidence.clean_correct()].any()


class Rough(nn.Module):
    """The network with a term that is zero everywhere and has no derivative anywhere."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + (0 * x.flatten(1).sum(1, keepdim=True)).abs().sqrt()


@pytest.mark.parametrize("stage", ["fgsm", "pgd-3", "cw-inf-2", "apgd-ce", "apgd-t", "fab-t"])
def test_gradients_that_are_no_numbers_fail_the_run(run, net, evidence, stage):
    """torch.sign(nan) is 0: the attack would stand still, and every image would survive it."""
    rough = Rough(net)
    run("clean", model=rough)
    with pytest.raises(RunFailed, match=rf"stage {stage}"):
        run(stage, model=rough)
    assert not evidence.done(stage)[evidence.clean_correct()].any()


def test_clean_logits_that_are_no_numbers_fail_the_run(run, net, evidence):
    with torch.no_grad():
        net[4].bias[2] = torch.nan
    with pytest.raises(RunFailed, match="stage clean: the model's logits are not finite"):
        run("clean")
    assert not evidence.done("clean").any()


def test_a_model_that_fails_on_a_clean_image_fails_the_run_too(run, evidence):
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, CLASSES))
    with pytest.raises(RunFailed, match=r"stage clean raised RuntimeError: .*mat1 and mat2 shapes"):
        run("clean", model=model)
    assert not evidence.done("clean").any()


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), r"logits are \(8, 7\).* need \(8, 5\)"),
        (nn.Conv2d(3, CLASSES, 8), r"logits are \(8, 5, 1, 1\)"),
    ],
)
def test_a_model_of_other_logits_than_the_task_is_bad_input(run, evidence, model, match):
    with pytest.raises(UserError, match=match):
        run("clean", model=model)
    assert not evidence.done("clean").any()
