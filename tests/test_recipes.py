"""``--recipe official``: a method's own settings, over the task's and under what is typed."""

from fractions import Fraction

import pytest

from aal_bench import registry
from aal_bench.config import read_task
from aal_bench.errors import UserError
from aal_bench.resolve import Request, resolve
from aal_bench.training.schedule import learning_rate

CIFAR = read_task(registry.task_file("cifar10"))
STEPS = 391  # of an epoch: 50,000 images in batches of 128


def resolved(method, *settings, task="cifar10", recipe: str | None = "official", **options):
    return resolve(
        Request(task, method=method, recipe=recipe, device="cpu", settings=settings, **options)
    )


def dropping(rate, *drops):
    """The scripts' own words: from this epoch on, counted from 1, this share of the rate."""
    return lambda epoch: rate * next((s for at, s in reversed(drops) if epoch >= at), 1.0)


# method -> epochs, batch, weight decay, and the rate in each epoch counted from 1
OFFICIAL = {
    "pgd": (200, 128, 5e-4, dropping(0.1, (101, 0.1), (151, 0.01))),
    "awp": (200, 128, 5e-4, dropping(0.1, (101, 0.1), (151, 0.01))),
    "trades": (76, 128, 2e-4, dropping(0.1, (75, 0.1), (90, 0.01), (100, 0.001))),
    "trades-awp": (200, 128, 5e-4, dropping(0.1, (100, 0.1), (150, 0.01))),
    "mart": (120, 128, 3.5e-3, dropping(0.01, (75, 0.1), (90, 0.01), (100, 0.001))),
    "fat": (120, 128, 2e-4, dropping(0.1, (60, 0.1), (90, 0.01), (110, 0.005))),
    "ls0.8-pgd": (110, 128, 5e-4, dropping(0.1, (101, 0.1), (106, 0.01))),
    "ls0.9-pgd": (110, 128, 5e-4, dropping(0.1, (101, 0.1), (106, 0.01))),
}
OFFICIAL |= {
    "cas": (200, 128, 1e-4, dropping(0.1, (75, 0.1), (90, 0.01))),
    "again-pgd": (200, 128, 5e-4, dropping(0.1, (100, 0.1), (150, 0.01))),
    "again-awp": (200, 128, 5e-4, dropping(0.1, (100, 0.1), (150, 0.01))),
    "again-mart": (120, 128, 2e-4, dropping(0.1, (75, 0.1), (90, 0.01), (100, 0.001))),
    "lbgat": (100, 128, 2e-4, dropping(0.02, (2, 5), (76, 0.5), (91, 0.05))),
    "las-at": (110, 128, 5e-4, dropping(0.1, (100, 0.1), (105, 0.01))),
    "iaat": (110, 256, 5e-4, dropping(0.1, (71, 0.2), (91, 0.04), (101, 0.008))),
    "atta": (38, 64, 2e-4, dropping(0.1, (30, 0.1), (36, 0.01))),
}
CYCLIC = {"rs-fgsm": (15, 0.2), "free": (10, 0.04)}
ROUNDED = ("trades", "mart", "fat", "lbgat", "again-mart")
"""Whose scripts train at .031 with steps of .007."""


@pytest.mark.parametrize("method", OFFICIAL)
def test_the_schedule_is_that_of_the_official_script_in_every_epoch(method):
    epochs, batch, decay, rate = OFFICIAL[method]
    train = resolved(method).task.train
    assert (train.epochs, train.batch_size, train.weight_decay) == (epochs, batch, decay)
    assert (train.optimizer, train.momentum, train.nesterov) == ("sgd", 0.9, False)
    for epoch in range(1, epochs + 1):
        for step in ((epoch - 1) * STEPS, epoch * STEPS - 1):
            found = learning_rate(train, step, epochs * STEPS)
            assert found == pytest.approx(rate(epoch), rel=1e-12), epoch


@pytest.mark.parametrize("method", CYCLIC)
def test_a_cyclic_schedule_rises_from_0_to_its_peak_and_returns(method):
    train = resolved(method).task.train
    epochs, peak = CYCLIC[method]
    assert (train.epochs, train.batch_size, train.weight_decay) == (epochs, 128, 5e-4)
    rates = [learning_rate(train, step, epochs * STEPS) for step in range(epochs * STEPS)]
    assert max(rates) == pytest.approx(peak, rel=1e-3)
    assert max(rates[0], rates[-1]) < 1e-3 * peak


def test_options_and_attack_are_the_scripts_where_they_are_not_our_defaults():
    for method in ("rs-fgsm", "pgd", "awp"):
        assert resolved(method).method.options["craft_bn"] == "train"
        assert resolved(method, recipe=None).method.options["craft_bn"] == "eval"
    for method in ("trades", "trades-awp", "mart", "fat", "ls0.8-pgd"):
        assert resolved(method).method.options["craft_bn"] == "eval"
    assert resolved("free").method.options == {"replays": 8}
    for method in OFFICIAL:
        step = Fraction(7, 1000) if method in ROUNDED else CIFAR.attack.step
        assert resolved(method).training_attack == (CIFAR.threat.eps, step, 10)


def test_an_update_that_is_part_of_the_method_has_its_authors_options():
    assert resolved("awp").update.options == {"gamma": 0.01, "warmup": 0.0}
    assert resolved("trades-awp").update.options == {"gamma": 0.005, "warmup": 9 / 200}
    assert resolved("mart", update="awp").update.options == {"gamma": 0.01, "warmup": 0.0}


def test_the_command_line_goes_before_the_recipe_and_the_recipe_before_the_task():
    run = resolved(
        *("mart", "train.lr=0.3", "method.beta=6", "crafting.step=2/255"),
        *("milestones=[0.5]", "augment=none"),
        epochs=7,
    )
    train = run.task.train
    assert (train.epochs, train.lr, train.milestones, train.augment) == (7, 0.3, (0.5,), "none")
    assert run.method.options["beta"] == 6
    assert run.training_attack == (Fraction(8, 255), Fraction(2, 255), 10)
    assert (train.weight_decay, train.schedule) == (3.5e-3, "step")  # the recipe's
    assert (train.pad, train.validation) == (CIFAR.train.pad, CIFAR.train.validation)  # the task's
    assert (CIFAR.train.weight_decay, CIFAR.train.schedule) == (5e-4, "cosine")


def test_a_recipe_leaves_the_question_alone_and_makes_another_run():
    for method in (*OFFICIAL, *CYCLIC):
        run = resolved(method)
        assert (run.task.threat, run.task.evaluation) == (CIFAR.threat, CIFAR.evaluation)
        assert run.recipe == "official"
        assert run.hash() != resolved(method, recipe=None).hash()


@pytest.mark.parametrize("method", ROUNDED)
def test_the_rounded_budget_is_a_recipe_of_its_own_and_of_training_alone(method):
    run = resolved(method, recipe="official-031")
    assert run.training_attack == (Fraction(31, 1000), Fraction(7, 1000), 10)
    assert run.task.threat == CIFAR.threat
    assert resolved(method).training_attack[0] == Fraction(8, 255)
    typed = resolved(method, "crafting.eps=8/255", recipe="official-031")
    assert typed.training_attack[0] == Fraction(8, 255)


@pytest.mark.parametrize("name", registry.with_recipe())
def test_every_recipe_resolves_and_says_where_it_comes_from(name):
    recipe = registry.load(registry.METHODS[name].target).recipe
    family = registry.METHODS[name].families
    if "classification" in family:
        run = resolved(name)
        for key, value in recipe.train.items():
            assert getattr(run.task.train, key) == value
        for key, value in recipe.options.items():
            found = run.method.options[key]
            if isinstance(value, dict):  # a part of a table
                assert found.items() >= value.items()
            else:
                assert found == value
    assert ".py" in recipe.source


@pytest.mark.parametrize("name", ["aal-trades", "aal-mart"])
def test_a_method_around_another_has_not_the_others_recipe(name):
    assert name not in registry.with_recipe()


@pytest.mark.parametrize(
    ("method", "settings", "options", "message"),
    [
        ("pgd", (), {"recipe": "offical"}, "unknown recipe 'offical'. Known: official, official-0"),
        ("fgsm", (), {}, "method fgsm has no official recipe. These have: "),
        ("standard", (), {}, "method standard has no official recipe. These have: "),
        ("pgd", (), {"recipe": "official-031"}, "its official budget is exact, not .031"),
        ("fat", ("milestones=[0.5]",), {}, "decay has 3 factors for 1 milestones"),
        ("trades", ("beta=-1",), {}, "method trades: beta: Input should be greater than or equal"),
        ("mart", ("beta=-1",), {}, "method mart: beta: Input should be greater than or equal to 0"),
        ("mart", ("start_std=-1",), {}, "method mart: start_std: Input should be greater than"),
        ("fat", ("tau=-1",), {}, "method fat: tau: Input should be greater than or equal to 0"),
        ("fat", ("tau=0.5",), {}, "method fat: tau: Input should be a valid integer"),
        ("fat", ("omega=-1",), {}, "method fat: omega: Input should be greater than or equal"),
        ("ls0.8-pgd", ("factor=0",), {}, "ls0.8-pgd: factor: Input should be greater than 0"),
        ("ls0.9-pgd", ("factor=1.1",), {}, "ls0.9-pgd: factor: Input should be less than or equal"),
        ("awp", ("gamma=-1",), {}, "update awp: gamma: Input should be greater than or equal to 0"),
        ("awp", ("warmup=2",), {}, "update awp: warmup: Input should be less than or equal to 1"),
        ("awp", (), {"update": "plain"}, "method awp includes the update awp: omit --update plain"),
        (
            "trades-awp",
            (),
            {"update": "plain"},
            "omit --update plain, or choose the method without it",
        ),
        ("aal-trades", ("beta=-1",), {"recipe": None}, "method aal-trades: beta: Input should be"),
        ("free", ("replays=0",), {}, "method free: replays: Input should be greater than or equal"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(method, settings, options, message):
    with pytest.raises(UserError) as caught:
        resolved(method, *settings, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["trades", "mart", "fat", "ls0.8-pgd", "trades-awp", "aal-mart"])
def test_a_method_that_needs_logits_names_those_that_a_detector_can_have(method):
    with pytest.raises(UserError) as caught:
        resolved(method, task="scenes", recipe=None)
    told = str(caught.value)
    assert f"method '{method}' serves classification, not detection. These can: " in told
    for name in ("fgsm", "pgd", "free", "mtd", "aal-pgd"):
        assert name in told.partition("These can: ")[2].split(", ")


def test_free_replays_less_often_on_detectors_by_default():
    assert resolved("free", recipe=None).method.options == {"replays": 8}
    assert resolved("free", task="scenes", recipe=None).method.options == {"replays": 4}
