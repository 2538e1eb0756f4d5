"""The further networks of a method: where they come from, and what training does for them."""

import pytest
import torch

from aal_bench.adapters.classification import Classification
from aal_bench.adapters.method import build_method, build_update, join_companions
from aal_bench.errors import UserError
from aal_bench.methods.base import Batch
from aal_bench.resolve import Request, resolve
from aal_bench.training.loop import Loop
from aal_bench.training.step import Setting

NET = """
from torch import nn
def build(classes, size):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * (size // 2) ** 2, classes),
    )
"""


@pytest.fixture
def joined(tmp_path):
    """joined("lbgat", seed=3) -> the adapter of a run on digits, and its method with companions."""
    (tmp_path / "net.py").write_text(NET)

    def build(name, precision="fp32", seed=0, settings=()):
        request = Request(
            "digits",
            method=name,
            model=f"{tmp_path}/net.py:build",
            device="cpu",
            precision=precision,
            seed=seed,
            batch_size=8,
            limit_train=32,
            epochs=1,
            settings=("attack.steps=2", "train.validation=0", *settings),
        )
        run = resolve(request)
        method = build_method(run)
        join_companions(run, method)
        return Classification(run, None), method

    return build


def weights(module):
    return torch.cat([value.flatten() for value in module.parameters()])


def loop(adapter, method, folder):
    train, _ = adapter.training_split()
    setting = Setting(
        run=adapter.run,
        model=adapter.build(),
        method=method,
        update=build_update(adapter.run),
        make_objective=adapter.objective,
        train=train,
        validate=None,
        folder=folder,
    )
    return Loop(setting)


@pytest.mark.parametrize(("name", "key"), [("lbgat", "teacher"), ("las-at", "strategy")])
def test_the_seed_alone_decides_how_a_companion_begins(joined, name, key):
    torch.manual_seed(99)
    first = weights(joined(name)[1].extra_modules()[key])
    torch.manual_seed(11)
    again = weights(joined(name)[1].extra_modules()[key])
    other = weights(joined(name, seed=1)[1].extra_modules()[key])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_teacher_begins_otherwise_than_its_student_of_the_same_architecture(joined):
    adapter, method = joined("lbgat")
    student, teacher = adapter.build(), method.extra_modules()["teacher"]
    assert [p.shape for p in student.parameters()] == [p.shape for p in teacher.parameters()]
    assert not torch.allclose(weights(student), weights(teacher), atol=1e-2)


def test_the_generators_stay_where_they_are(joined):
    """So the model's initial weights and the first attack are those of every other method."""
    adapter, method = joined("lbgat")
    before = weights(adapter.build())
    state = torch.get_rng_state()
    join_companions(adapter.run, method)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(adapter.build()), before)


def test_outputs_and_architecture_are_what_was_asked_for(joined):
    x = torch.rand(2, 3, 32, 32)
    _, lbgat = joined("lbgat", settings=["method.teacher=cnn4-8"])
    adapter, las = joined(
        "las-at", settings=[f"method.{n}" for n in ("eps=[8,9]", "steps=[2,2]", "alpha=[1,3]")]
    )
    x = x[..., : adapter.task.data.size, : adapter.task.data.size]
    teacher, strategy = lbgat.extra_modules()["teacher"], las.extra_modules()["strategy"]
    assert teacher(x).shape == (2, adapter.task.data.classes)
    assert strategy(x).shape == (2, 2 + 1 + 3)
    assert len(weights(teacher)) != len(weights(adapter.build()))


def test_a_teacher_is_a_registered_model_that_takes_the_tasks_images(joined):
    """Code of one's own would be in no hash; the digits have 16 px."""
    with pytest.raises(UserError, match=r"method\.teacher is a registered model, not mine\.py"):
        joined("lbgat", settings=["method.teacher=mine.py:build"])
    with pytest.raises(UserError, match=r"its teacher network, --set method\.teacher=: model resn"):
        joined("lbgat", settings=["method.teacher=resnet18"])


def test_a_teacher_that_is_no_model_is_named(joined):
    with pytest.raises(UserError, match="resnet81"):
        joined("lbgat", settings=["method.teacher=resnet81"])


@pytest.mark.parametrize(("name", "key"), [("lbgat", "teacher"), ("las-at", "strategy")])
def test_a_companion_runs_in_the_precision_of_the_network(joined, tmp_path, name, key):
    """bf16 inside, float32 out: what autocast around its forward pass does."""
    for precision, inside in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        adapter, method = joined(name, precision=precision)
        made = loop(adapter, method, tmp_path / f"{name}-{precision}")
        companion = method.extra_modules()[key]
        seen = []
        hooks = [
            net.network[0].register_forward_hook(
                lambda _, __, out, seen=seen: seen.append(out.dtype)
            )
            for net in (companion, made.stepper.model)
        ]
        x = torch.rand(2, 3, adapter.task.data.size, adapter.task.data.size)
        outputs = companion(x), made.stepper.network(x)
        assert seen == [inside, inside]
        assert [out.dtype for out in outputs] == [torch.float32, torch.float32]
        for hook in hooks:
            hook.remove()
        first = companion.network[0].weight
        assert first.dtype == torch.float32
        assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lbgat", []),
        ("lbgat", ["method.beta=6"]),
        ("las-at", ["interval=2"]),
        ("iaat", ["warmup=0.5"]),
        ("atta", ["reset=1"]),
        ("atta", ["method.loss=trades"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_epoch_trains_and_test_images_may_be_attacked_after_it(
    joined, tmp_path, name, settings, precision
):
    adapter, method = joined(name, precision=precision, settings=settings)
    made = loop(adapter, method, tmp_path)
    before = weights(made.stepper.model).clone()
    beside = {key: weights(net).clone() for key, net in method.extra_modules().items()}
    made.fit()
    assert not torch.equal(weights(made.stepper.model), before)
    for key, net in method.extra_modules().items():
        assert not torch.equal(weights(net), beside[key])
    state = {key: str(value) for key, value in method.state_dict().items()}
    images = next(
        adapter.test.batches(
            torch.arange(40), 40, augment="none", pad=0, seed=0, device=torch.device("cpu")
        )
    )
    model = made.stepper.model
    batch = Batch(images.x, images.y, images.idx, progress=1.0, lr=0.1)
    x_adv = method.attack(model, batch, adapter.objective(model))
    eps = float(adapter.task.threat.radius) * (15 / 8 if name == "las-at" else 1)
    assert 0 < (x_adv - images.x).abs().max() <= eps + 1e-6
    assert {key: str(value) for key, value in method.state_dict().items()} == state


@pytest.mark.parametrize("around", ["plain", "awp"])
def test_a_teachers_statistics_move_once_in_a_step_of_training(joined, tmp_path, around):
    adapter, method = joined("lbgat")
    adapter.run = adapter.run.model_copy(
        update={"update": adapter.run.update.model_copy(update={"name": around})}
    )
    made = loop(adapter, method, tmp_path)
    made.model.train()
    counter = method.extra_modules()["teacher"].network[1].num_batches_tracked
    for number, batch in enumerate(made._batches(), 1):
        made.take_step(batch)
        assert counter.item() == number
