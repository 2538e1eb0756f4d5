"""Training that collapses says so: real collapses, real honest trainings, and what the watch costs.

A small convolutional network that is trained by FGSM at 56/255 on 1,024 digits learns, within a
dozen epochs, to mislead that one step; trained by PGD in the same way it does not.
"""

import io
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch.nn import functional

from aal_bench.adapters.classification import Classification
from aal_bench.config import Train
from aal_bench.errors import RunFailed
from aal_bench.resolve import Request, resolve
from aal_bench.runner import build_method, build_update
from aal_bench.training import checkpoint, overfitting
from aal_bench.training.loop import seed_of
from aal_bench.training.overfitting import Reading, Watch, read, rule_of, significant
from aal_bench.training.passes import counting_passes
from aal_bench.training.step import Stepper

EPS = 56 / 255
SETTINGS = (
    *("threat.eps=56/255", "attack.step=14/255", "attack.steps=5"),
    *("train.lr=0.05", "train.schedule=constant", "train.batch_size=64", "train.validation=200"),
)
STEPS_PER_EPOCH = 1024 // 64


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums of floats depend on the number of threads, and a collapse on every one of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def request(method: str, *settings: str, **changed: Any) -> Request:
    fixed: dict[str, Any] = {"model": "cnn4-32", "epochs": 14, "limit_train": 1024, "seed": 2}
    fixed |= {"device": "cpu", "precision": "fp32", "protocol": "clean,fgsm"}
    return Request("digits", method=method, **{**fixed, **changed}, settings=(*SETTINGS, *settings))


def fit(folder, method, *settings, **changed):
    """Train as a run does; returns the training's record."""
    run = resolve(request(method, *settings, **changed))
    adapter, trained_by = Classification(run, None), build_method(run)
    model = trained_by.build(adapter.build())
    return adapter.fit(trained_by, build_update(run), model, folder).record


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state_of(folder):
    return checkpoint.load(folder / "checkpoints" / "state.pt")


def watched(row):
    return tuple(row[f"watch_{name}"] for name in ("clean", "fgsm", "pgd"))


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    """One run up to its report, what it printed, and its network after every epoch."""
    from aal_bench import runner

    folder = tmp_path_factory.mktemp("collapsed") / "run"
    spoken, networks, make = io.StringIO(), [], Classification._validator

    def keeping(adapter, held, method):
        validate = make(adapter, held, method)

        def keep(network):
            networks.append({name: value.clone() for name, value in network.state_dict().items()})
            return validate(network)

        return keep

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", spoken)
        patch.setattr(Classification, "_validator", keeping)
        result = runner.run(request("fgsm"), out=folder)
    training = json.loads((folder / "run.json").read_text())["training"]
    return SimpleNamespace(
        folder=folder,
        result=result,
        printed=spoken.getvalue(),
        networks=networks,
        found=training["overfitting"],
    )


# ---- a collapse and an honest training -----------------------------------------------------------


def plainly(model, x, y, start):
    """Accuracy under no attack, FGSM and PGD-5, in float64 and written down once more."""
    model = model.double().eval()

    def step(at, size):
        at = at.clone().requires_grad_()
        functional.cross_entropy(model(at), y).backward()
        moved = at.detach() + size * at.grad.sign()
        return torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(0, 1)

    iterated = start
    for _ in range(5):
        iterated = step(iterated, EPS / 4)
    return [
        (model(images).argmax(1) == y).double().mean().item()
        for images in (x, step(x, EPS), iterated)
    ]


def test_a_collapse_is_reported_at_the_epoch_in_which_pgd_accuracy_goes(collapsed):
    """Every epoch's network is attacked once more, here, and the rule is read off that."""
    run = resolve(request("fgsm"))
    adapter: Any = Classification(run, None)
    seed = seed_of(run.seed, 0, 2)
    x, y = make_watch(adapter, seed).batch
    torch.manual_seed(seed)
    start = (x + EPS * torch.empty_like(x).uniform_(-1, 1)).clamp(0, 1).double()
    model, again = adapter.build(), []
    for weights in collapsed.networks:
        model.load_state_dict(weights)
        again.append(plainly(model, x.double(), y, start))
    near = 2 / 64
    for row, expected in zip(rows_of(collapsed.folder), again, strict=True):
        assert watched(row) == pytest.approx(expected, abs=near)

    epoch = collapsed.found["epoch"]
    gaps = [fgsm - pgd for _, fgsm, pgd in again]
    assert max(gaps[: epoch - 1]) < 0.25 + 2 * near
    assert gaps[epoch - 1] > 0.25 - 2 * near
    pgd = [accuracy for _, _, accuracy in again]
    assert max(pgd[: epoch - 1]) > 0.15
    assert max(pgd[-2:]) < 0.10
    assert collapsed.found["before"] == pytest.approx(pgd[epoch - 2], abs=near)
    assert collapsed.found["now"] == pytest.approx(pgd[epoch - 1], abs=near)
    assert not collapsed.found["recovered"]


def test_pgd_training_at_the_same_eps_is_not_called_collapsed(tmp_path, capsys):
    assert fit(tmp_path, "pgd", epochs=10)["overfitting"] is None
    assert max(row["watch_pgd"] for row in rows_of(tmp_path)[-5:]) > 0.15
    assert "overfitting" not in capsys.readouterr().err


def test_the_collapse_is_said_once_and_with_the_figures_of_its_epoch(collapsed):
    lines = [line for line in collapsed.printed.splitlines() if "overfitting" in line]
    found = collapsed.found
    assert lines == [
        f"warning: catastrophic overfitting at epoch {found['epoch']}: {overfitting.told(found)}"
    ]
    assert f"{100 * found['now']:.1f} %" in lines[0]


def test_the_collapse_is_in_the_result_and_the_report(collapsed):
    (flag,) = [one for one in collapsed.result.flags if one.code == "catastrophic-overfitting"]
    assert flag.severity == "unreliable"
    assert json.loads((collapsed.folder / "result.json").read_text())["unreliable"] is True
    assert flag.value > flag.threshold
    assert f"epoch {collapsed.found['epoch']}" in flag.note
    assert flag.note in (collapsed.folder / "report.md").read_text()


def test_stopping_ends_the_run_before_the_collapsed_weights_are_kept(tmp_path, collapsed):
    epoch = collapsed.found["epoch"]
    message = rf"overfitting at epoch {epoch}: .*set train\.stop_on_overfitting=false"
    with pytest.raises(RunFailed, match=message) as first:
        fit(tmp_path, "fgsm", "train.stop_on_overfitting=true")
    assert "\n" not in str(first.value)
    assert state_of(tmp_path)["epoch"] == epoch - 1
    assert [row["epoch"] for row in rows_of(tmp_path)] == list(range(1, epoch + 1))
    assert rows_of(tmp_path)[-1]["watch_pgd"] == collapsed.found["now"]
    with pytest.raises(RunFailed) as again:  # resumed, it trains that epoch alone and stops again
        fit(tmp_path, "fgsm", "train.stop_on_overfitting=true")
    assert str(again.value) == str(first.value)


def test_a_training_interrupted_before_and_after_the_collapse_reaches_the_same_verdicts(
    tmp_path, collapsed, monkeypatch
):
    """In the middle of the epoch that ends collapsed, and of the one that follows."""
    take, stop = Stepper.take, 0

    def interrupted(self, batch):
        if batch.progress == stop / (14 * STEPS_PER_EPOCH):
            raise KeyboardInterrupt
        return take(self, batch)

    monkeypatch.setattr(Stepper, "take", interrupted)
    for epoch, known in ((collapsed.found["epoch"] - 1, False), (collapsed.found["epoch"], True)):
        stop = epoch * STEPS_PER_EPOCH + 8
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, "fgsm", "train.checkpoint_every=3")
        state = state_of(tmp_path)
        assert stop - 3 <= state["step"] <= stop
        assert (state["watch"]["found"] is not None) == known
    monkeypatch.setattr(Stepper, "take", take)
    assert fit(tmp_path, "fgsm", "train.checkpoint_every=3")["overfitting"] == collapsed.found
    whole, resumed = state_of(collapsed.folder), state_of(tmp_path)
    last = [state["watch"].pop("last") for state in (whole, resumed)]
    assert torch.equal(*last)
    assert whole["watch"] == resumed["watch"]
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    assert [watched(row) for row in rows_of(tmp_path)] == [
        watched(row) for row in rows_of(collapsed.folder)
    ]


def test_the_line_passes_above_a_progress_bar(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(overfitting, "GAP", -1.0)  # the first reading is then a collapse
    monkeypatch.setattr(overfitting, "significant", lambda *_: True)
    fit(tmp_path, "fgsm", epochs=1, limit_train=128)
    assert "\x1b[" in terminal.getvalue()  # the bar was there
    assert terminal.getvalue().count("warning: catastrophic overfitting at epoch 1: on a") == 1


# ---- the watch disturbs nothing ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pgd", "aal-fgsm", "free", "las-at", "again-mart"])
def test_weights_are_bit_for_bit_those_of_a_training_that_is_not_watched(toy, tmp_path, method):
    settings = ("interval=3",) if method == "las-at" else ()
    runs = {
        every: toy.train(
            folder=tmp_path / str(every),
            method=method,
            settings=(*settings, f"train.watch_every={every}"),
        )
        for every in (0, 1)
    }
    assert runs[0].last.keys() == runs[1].last.keys()
    for name, value in runs[0].last.items():
        assert torch.equal(value, runs[1].last[name]), name
    assert runs[0].record["passes"] == runs[1].record["passes"]
    assert [key for key in rows_of(tmp_path / "0")[0] if key.startswith("watch")] == []
    states = [state_of(tmp_path / str(every)) for every in (0, 1)]
    assert torch.equal(states[0]["rng"]["torch"], states[1]["rng"]["torch"])


def test_a_reading_costs_eight_forwards_and_six_backwards_and_leaves_no_trace(make_loop):
    loop = make_loop(method="pgd")
    loop.take_step(next(loop._batches()))
    model = loop.stepper.model
    model.train()
    model.network[1].eval()  # frozen by somebody
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert loop.watch is not None
    with counting_passes(model) as passes:
        loop.watch.look(model, 1)
    assert passes == {"forward": 8 * 16, "backward": 6 * 16}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool((weight.grad == 1).all()) for weight in model.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.training
    assert not model.network[1].training
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_batch_is_of_training_images_as_they_are_and_always_the_same(make_loop, tmp_path):
    loops = [make_loop(tmp_path / str(n), method="pgd") for n in range(2)]
    (x, y), (x_again, _) = (loop.watch.batch for loop in loops)
    assert x.shape == (16, 3, 16, 16)
    assert torch.equal(x, x_again)
    train = loops[0].setting.train
    stored = train.pixels(torch.arange(len(train))).float() / 255
    for image, label in zip(x, y, strict=True):
        same = (stored == image).flatten(1).all(1)
        assert label in train.labels[same]
    assert not torch.equal(x, make_loop(tmp_path / "2", method="pgd", seed=1).watch.batch[0])


def test_the_eps_is_that_of_the_training_attack(make_loop):
    assert make_loop(method="fgsm").watch.eps == pytest.approx(24 / 255)
    settings = ("crafting.eps=8/255",)
    assert make_loop(method="fgsm", settings=settings).watch.eps == pytest.approx(8 / 255)


def test_only_methods_that_attack_labelled_images_are_watched(make_loop, toy, tmp_path):
    assert make_loop(method="fgsm").watch is not None
    assert make_loop(method="standard").watch is None
    trained = toy.train(folder=tmp_path, task="glyphs", method="aal-ier", epochs=1)
    assert trained.record["overfitting"] is None
    assert not any(key.startswith("watch") for row in rows_of(tmp_path) for key in row)


def test_a_reading_is_due_every_so_many_epochs_and_at_the_end(make_loop, tmp_path):
    make_loop(method="fgsm", epochs=5, settings=("train.watch_every=2",)).fit()
    assert [row["epoch"] for row in rows_of(tmp_path) if "watch_pgd" in row] == [2, 4, 5]


def test_a_checkpoint_from_before_there_was_a_watch_can_be_continued(make_loop, tmp_path):
    make_loop(method="fgsm", epochs=2).fit()
    path = tmp_path / "checkpoints" / "state.pt"
    state = checkpoint.load(path)
    del state["watch"]
    checkpoint.save(path, state)
    assert make_loop(method="fgsm", epochs=2).fit().record["overfitting"] is None


def test_a_stop_without_a_watch_is_refused():
    with pytest.raises(ValueError, match="stop_on_overfitting needs watch_every"):
        Train(epochs=1, lr=0.1, watch_every=0, stop_on_overfitting=True)


def test_by_default_the_configuration_keeps_the_hash_it_had():
    """The hash of the README's first example, from before these options existed."""
    fixed: Any = {"method": "aal-pgd", "device": "cpu", "precision": "bf16"}
    assert resolve(Request("digits", **fixed)).hash().startswith("aeab0b283f15")
    other = resolve(Request("digits", **fixed, settings=("train.stop_on_overfitting=true",)))
    assert not other.hash().startswith("aeab0b283f15")


# ---- the rules -----------------------------------------------------------------------------------


def reading(clean, fgsm, pgd, n=64):
    """The first so many images of `n` are right; PGD's lie within FGSM's where they are fewer."""
    place = torch.arange(n)
    return Reading(place < clean, place < fgsm, place < pgd)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, (64, 40, 38), None),  # a first reading of an honest network
        ((64, 40, 38), (64, 38, 36), None),
        ((64, 40, 38), (64, 40, 26), None),  # 12 of 64 are 18.8 points
        ((64, 40, 38), (64, 40, 25), "fall"),  # 13 are 20.3 points, and FGSM misses them all
        ((64, 40, 38), (64, 31, 25), None),  # of these it misses 6
        ((64, 40, 38), (64, 20, 18), None),  # an unsteady epoch, which FGSM sees too
        ((64, 40, 38), (64, 60, 4), "fall"),
        ((64, 40, 20), (64, 40, 23), "gap"),  # 17 of 64 are 26.6 points
        ((64, 40, 24), (64, 40, 24), None),  # 16 of 64 are 25.0 points, which is not more
        ((64, 5, 4), (40, 50, 49), "leak"),
        ((64, 5, 4), (40, 46, 45), None),  # 6 images: P = 1/64 is above 1 %
    ],
)
def test_a_rule_holds_beyond_its_threshold_and_on_images_enough(before, now, expected):
    assert rule_of(before and reading(*before), reading(*now)) == expected


def test_on_few_images_no_difference_is_large_enough():
    """4 of 16 are 25 points, and nothing at 1 %: P = 1/16."""
    assert rule_of(reading(16, 12, 12, 16), reading(16, 12, 8, 16)) is None
    assert rule_of(reading(16, 12, 12, 16), reading(16, 12, 5, 16)) == "fall"


def test_the_exact_test_is_scipys():
    for a in range(20):
        for b in range(20):
            exact = a + b and binomtest(a, a + b, 0.5, alternative="greater").pvalue <= 0.01
            assert significant(a, b) == bool(exact and a >= 3), (a, b)


@pytest.mark.parametrize(
    ("readings", "epoch", "recovered"),
    [
        ([(64, 40, 38), (64, 60, 4), (64, 62, 3)], 2, False),
        ([(64, 40, 38), (64, 60, 4), (64, 12, 10)], 2, False),  # the gap is gone, the fall is not
        ([(64, 40, 38), (64, 60, 4), (64, 40, 39)], 2, True),
        ([(64, 40, 38), (64, 60, 4), (64, 40, 39), (64, 60, 20)], 2, False),
    ],
)
def test_a_collapse_lasts_until_pgd_accuracy_is_back(toy, tmp_path, readings, epoch, recovered):
    watch = make_watch(toy.setting(tmp_path, method="fgsm")[0])
    for number, one in enumerate(readings, 1):
        watch.judge(number, reading(*one))
    found = watch.record(evaluated=len(readings))
    assert found is not None
    assert (found["epoch"], found["recovered"]) == (epoch, recovered)
    assert watch.collapsed is not recovered


def test_weights_of_an_epoch_before_the_collapse_are_not_called_collapsed(toy, tmp_path):
    """``train.select = "best"`` evaluates them."""
    watch = make_watch(toy.setting(tmp_path, method="fgsm")[0])
    for number, one in enumerate([(64, 40, 38), (64, 60, 4), (64, 62, 3)], 1):
        watch.judge(number, reading(*one))
    before, then = watch.record(evaluated=1), watch.record(evaluated=2)
    assert before == {**watch.found, "recovered": True} if watch.found else False
    assert then == {**watch.found, "recovered": False} if watch.found else False


def make_watch(adapter: Any, seed: int = 0) -> Watch:
    setting: Any = SimpleNamespace(run=adapter.run, train=adapter.training_split()[0])
    return Watch(setting, seed)


def test_a_network_that_diverged_answers_nothing():
    """It is no collapse either: the loop stops such a training with a message of its own."""
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    now = read(broken, torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.long), 0.1)
    assert now.accuracies() == {"clean": 0, "fgsm": 0, "pgd": 0}
    assert rule_of(reading(64, 40, 38, 8), now) is None


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        ("fall", "PGD-5 on a fixed training batch fell from 62.5 % to 3.1 %", 0.594),
        ("gap", "on a fixed training batch 90.0 % stand against FGSM, 3.1 % against PGD-5", 0.869),
        ("leak", "on a fixed training batch 90.0 % are right under FGSM, 80.0 % without", 0.1),
    ],
)
def test_what_was_seen_is_said_in_figures(rule, text, value):
    found = {"rule": rule, "before": 0.625, "now": 0.031, "clean": 0.8, "fgsm": 0.9, "epoch": 7}
    assert overfitting.told(found).startswith(text)
    assert overfitting.measured(found) == pytest.approx(value)
