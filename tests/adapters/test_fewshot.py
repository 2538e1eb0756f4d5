"""Episodes: the list, its answers with and without attack, training, and what is refused."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from aal_bench.adapters.fewshot import FewShot
from aal_bench.attacks.linf import linf_pgd
from aal_bench.data import glyphs
from aal_bench.errors import RunFailed, UserError
from aal_bench.fewshot.answer import answers, support_of
from aal_bench.methods.rfs_distill import RFSDistill
from aal_bench.methods.updates import Plain, PlainOptions
from aal_bench.metrics import METRICS
from aal_bench.resolve import Request, resolve
from aal_bench.training.checkpoint import load

SMALL = {"model": "cnn4-8", "episodes": 6}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """The glyphs are drawn once for this file: nothing here changes their pixels."""
    with pytest.MonkeyPatch.context() as patch:
        kept = functools.cache(glyphs.read)
        patch.setattr(glyphs, "read", lambda size: dict(kept(size)))
        yield


def make(*settings, method="rfs", **options) -> FewShot:
    """The adapter of a small run on glyphs."""
    request = Request("glyphs", method, settings=settings, **SMALL | options)
    return FewShot(resolve(request), None)


@pytest.fixture(scope="module")
def adapter() -> FewShot:
    return make(protocol="episodes")


@pytest.fixture
def model(adapter):
    return adapter.build().eval().requires_grad_(False)


def test_episodes_do_not_depend_on_the_method_the_run_seed_or_the_limit(adapter):
    others = [
        make(method="protonet"),
        make(method="rfs", seed=5),
        make(method="rfs", limit_eval=2),
        make(method="rfs", model="cnn4-32"),
    ]
    for other in others:
        assert other.fingerprint() == adapter.fingerprint()
        assert other.run.task.hash(other.fingerprint()) == adapter.task.hash(adapter.fingerprint())
    assert len(others[2].episodes) == 2


@pytest.mark.parametrize("changed", [{"shots": 2}, {"ways": 4}, {"episodes": 7}])
def test_another_list_is_another_question(adapter, changed):
    other = make(method="rfs", **changed)
    assert other.run.task.hash(other.fingerprint()) != adapter.task.hash(adapter.fingerprint())


def clean(adapter, model):
    evidence = adapter.new_evidence()
    saved = []
    adapter.run_stage("clean", model, evidence, lambda *_: None, lambda *a: saved.append(a))
    assert saved
    return evidence


def test_rows_are_the_queries_of_the_episodes_in_order(adapter, model):
    evidence = clean(adapter, model)
    assert len(evidence) == 6 * 5 * 15
    listed = adapter.episodes
    assert np.array_equal(evidence.index, listed.query.flatten().numpy())
    classes = adapter.test.labels[listed.query[:, :, 0]]
    for row in (0, 74, 75, 200, 449):
        episode, label = row // 75, int(evidence.label[row])
        assert int(adapter.test.labels[evidence.index[row]]) == int(classes[episode, label])


def test_clean_accuracy_is_that_of_scikit_learn_on_the_same_features(adapter, model):
    """RFS's protocol, written out for one episode at a time."""
    from sklearn.linear_model import LogisticRegression

    evidence, config = clean(adapter, model), adapter.config
    for episode in range(3):
        shown = support_of(
            adapter.test, adapter.episodes.support[episode], config, True, torch.device("cpu")
        )
        assert shown.copies.shape[:2] == (5, 5)
        pixels = adapter.test.pixels(adapter.episodes.query[episode].flatten()).float() / 255
        with torch.no_grad():
            fitted_to = model.features(shown.copies.flatten(0, 1)).double()
            asked = model.features(pixels).double()
        fitted_to, asked = (f / f.norm(dim=1, keepdim=True) for f in (fitted_to, asked))
        known = LogisticRegression(C=1.0, max_iter=1000)
        known.fit(fitted_to.numpy(), np.repeat(np.arange(5), 5))
        expected = known.predict(asked.numpy())
        found = evidence.clean_pred[episode * 75 : (episode + 1) * 75]
        assert (expected == found).mean() > 0.98  # float32 features in batches of other sizes


def test_kept_features_give_the_logits_of_the_episodes_own_classifier(adapter, model):
    head, config, device = adapter.head(), adapter.config, torch.device("cpu")
    found = answers(model, head, adapter.test, adapter.episodes.first(2), config, device)
    for episode, logits in enumerate(found):
        support = support_of(adapter.test, adapter.episodes.support[episode], config, True, device)
        queries = adapter.test.pixels(adapter.episodes.query[episode].flatten()).float() / 255
        whole = head.classifier(model, support)(queries)
        torch.testing.assert_close(logits, whole, atol=2e-4, rtol=0)


def test_the_interval_is_scipys_over_the_episodes(adapter, model):
    evidence = clean(adapter, model)
    accuracies = (evidence.clean_pred == evidence.label).reshape(6, 75).mean(1)
    known = stats.t.interval(0.95, 5, accuracies.mean(), stats.sem(accuracies))
    metrics = METRICS["fewshot"](evidence, ["clean"])
    assert metrics["clean"]["n"] == 6
    assert metrics["clean"]["ci95"] == pytest.approx(np.clip(known, 0, 1))


def test_a_killed_clean_stage_continues_where_it_was(adapter, model):
    """In the very batches of an uninterrupted one: in others the features would round otherwise."""
    batches = []
    seen = model.network.features.register_forward_hook(
        lambda _, given, __: batches.append(given[0].clone())
    )
    whole = clean(adapter, model)
    uninterrupted, batches[:] = batches[:], []
    half = adapter.new_evidence()
    rows = np.arange(2 * 75)
    half.record("clean", rows, pred=whole.clean_pred[rows])
    adapter.run_stage("clean", model, half, lambda *_: None, lambda *_: None)
    seen.remove()
    assert np.array_equal(half.clean_pred, whole.clean_pred)
    assert len(batches) == len(uninterrupted)
    assert all(torch.equal(a, b) for a, b in zip(batches, uninterrupted, strict=True))


# ---- attacks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(adapter):
    """A network that answers better than by guessing: three passes over 1,440 images."""
    torch.manual_seed(0)
    network = adapter.build().train()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    order = torch.randperm(len(adapter.images.train))[:1440]
    for seed in range(3):
        for images in adapter.images.train.batches(
            order, 64, augment="shift", pad=2, seed=seed, device="cpu"
        ):
            functional.cross_entropy(network(images.x), images.y).backward()
            optimiser.step()
            optimiser.zero_grad()
    return network.eval().requires_grad_(False)


def test_queries_are_attacked_through_the_episodes_classifier(adapter, trained):
    evidence = clean(adapter, trained)
    adapter.run_stage("fgsm", trained, evidence, lambda *_: None, lambda *_: None)
    eps, device = adapter.task.threat.radius, torch.device("cpu")
    head = adapter.head()
    for episode in range(2):
        support = support_of(
            adapter.test, adapter.episodes.support[episode], adapter.config, True, device
        )
        classifier = head.classifier(trained, support)
        rows = np.arange(episode * 75, (episode + 1) * 75)
        rows = rows[evidence.clean_correct()[rows]]
        x = adapter.test.pixels(torch.from_numpy(evidence.index[rows]).long()).float() / 255
        y = torch.from_numpy(evidence.label[rows]).long()

        def loss(v, classifier=classifier, y=y):
            return functional.cross_entropy(classifier(v), y, reduction="sum")

        expected = classifier(linf_pgd(loss, x, x, eps, eps, 1)).argmax(1).numpy()
        assert np.array_equal(expected, evidence.column("fgsm", "pred")[rows])
        norms = evidence.column("fgsm", "norm")[rows]
        assert norms.max() == pytest.approx(eps, abs=1e-6)


def test_passes_are_counted_for_each_query_and_do_not_depend_on_a_restart(adapter, trained):
    evidence = clean(adapter, trained)
    adapter.run_stage("pgd-2", trained, evidence, lambda *_: None, lambda *_: None)
    attacked = evidence.column("pgd-2", "attacked")
    assert set(evidence.column("pgd-2", "forwards")[attacked]) == {3}
    assert set(evidence.column("pgd-2", "backwards")[attacked]) == {2}
    again = clean(adapter, trained)
    rows = np.arange(75)
    names = ("pred", "ok", "norm", "forwards", "backwards")
    first = {name: evidence.column("pgd-2", name)[rows] for name in names}
    kept = attacked[rows]
    again.skip("pgd-2", rows[~kept])
    again.record("pgd-2", rows[kept], **{name: value[kept] for name, value in first.items()})
    adapter.run_stage("pgd-2", trained, again, lambda *_: None, lambda *_: None)
    for name in names:
        assert np.array_equal(again.column("pgd-2", name), evidence.column("pgd-2", name))


def test_autoattacks_targets_are_the_other_ways():
    adapter = make(method="rfs", protocol="robust-episodes")
    assert adapter.stage("apgd-t").params["targets"] == 4
    assert make(method="rfs", ways=6).stage("fab-t").params["targets"] == 5
    assert make(method="rfs", ways=3, protocol="robust-episodes").run.protocol == (
        "robust-episodes-no-apgd-t"
    )


# ---- training --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ("rfs", [1, 1]),
        ("protonet", [1, 1]),
        ("ier", [16, 16]),
        ("aal-rfs", [2, 2]),
        ("aal-ier", [17, 17]),
        ("fgsm", [2, 2]),
    ],
)
def test_what_a_step_costs_for_each_image(method, passes, tmp_path):
    adapter = make(method=method, limit_train=320, epochs=1)
    network = adapter.method.build(adapter.build())
    trained = adapter.fit(adapter.method, Plain(PlainOptions()), network, tmp_path)
    assert trained.record["passes"] == passes


def test_training_validates_on_episodes_of_the_validation_classes(tmp_path):
    settings = ("train.validation=20", "train.lr=0.02", "train.validate_every=1")
    adapter = make(*settings, method="rfs", epochs=2)
    network = adapter.build()
    trained = adapter.fit(adapter.method, Plain(PlainOptions()), network, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["val_clean"] > 0.35  # chance is 0.2, its standard error 0.01
    assert trained.best is not None


def test_an_epoch_of_episodes_holds_as_many_images_as_the_split():
    adapter = make(method="protonet")
    plan = adapter._plan(adapter.method)
    assert plan is not None
    assert plan.per_epoch == 5760 / (20 * (1 + 15))
    limited = make("train_ways=5", "train_queries=3", method="protonet", limit_train=100)
    fewer = limited._plan(limited.method)
    assert fewer is not None
    assert fewer.per_epoch == 5


def test_weights_that_are_not_finite_end_the_run(adapter, model):
    broken = copy.deepcopy(model)
    broken.network.features[0].conv.weight[0] = torch.nan
    with pytest.raises(RunFailed, match="not finite"):
        clean(adapter, broken)


def test_a_teacher_is_trained_first_and_taught_by(tmp_path):
    adapter = make(method="rfs-distill", limit_train=128, epochs=1)
    network = adapter.build()
    trained = adapter.fit(adapter.method, Plain(PlainOptions()), network, tmp_path)
    assert (tmp_path / "teacher" / "checkpoints" / "state.pt").exists()
    assert trained.record["teacher_seconds"] > 0
    assert trained.record["seconds"] > trained.record["teacher_seconds"]
    assert isinstance(adapter.method, RFSDistill)
    teacher = adapter.method.taught_by
    assert teacher is not None
    saved = load(tmp_path / "teacher" / "checkpoints" / "state.pt")
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, saved["model"][name])
    first = "network.features.0.conv.weight"
    assert saved["seed"] != adapter.run.seed, "born again is a start of its own"
    assert not torch.equal(saved["model"][first], trained.last[first])


@pytest.mark.parametrize("finetune", ["0.5", "0.1"])
def test_reading_f3_trains_on_images_first_and_on_episodes_at_the_end(tmp_path, finetune):
    """A tenth of two epochs is the last one too: F3 without an episode would be another method."""
    settings = ("reading=F3", f"finetune={finetune}", "train.validation=0")
    adapter = make(*settings, method="aal-rfs", limit_train=128, epochs=2)
    seen = []
    method = adapter.method
    attack = method.attack
    method.attack = lambda model, batch, objective: (  # type: ignore[method-assign]
        seen.append(type(batch.targets).__name__) or attack(model, batch, objective)
    )
    network = method.build(adapter.build())
    adapter.fit(method, Plain(PlainOptions()), network, tmp_path)
    assert seen == ["Tensor", "Tensor", "EpisodeTargets", "EpisodeTargets"]


# ---- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ((), {"ways": 61}, r"60 classes"),
        (("episodes.queries=40",), {}, r"test split: .* 40"),
        (("train_ways=200",), {"method": "protonet"}, r"train split: .*144"),
        (("episodes.ways=1",), {}, r"episodes.ways: .* 2"),
        (("episodes.shots=0",), {}, r"episodes.shots: .* 1"),
        (("episodes.count=0",), {}, r"episodes.count: .* 1"),
        ((), {"model": "resnet18"}, r"resnet18' serves classification, not fewshot.*cnn4"),
        ((), {"method": "trades"}, r"trades' serves classification, not fewshot"),
        (("second_att=inject_Ma",), {"method": "aal-ier"}, r"set second_att=recompute"),
        (("reading=F4", "start=uniform"), {"method": "aal-rfs"}, r"without effect here: start"),
        (("reading=F3", "clean_weight=0.5"), {"method": "aal-rfs"}, r"effect here: clean_weight"),
        (("reading=F2", "second_att=inject_M"), {"method": "aal-rfs"}, r"here: second_att"),
        ((), {"compile": True}, r"omit it"),
    ],
)
def test_what_cannot_be_is_said_with_the_numbers(settings, options, message):
    with pytest.raises(UserError, match=message):
        make(*settings, **options).check(["clean"], training=True)


def test_episodes_are_refused_where_there_are_none():
    with pytest.raises(UserError, match="task digits has no episodes: omit --shots"):
        resolve(Request("digits", shots=1))
    with pytest.raises(UserError, match="protocol episodes is for few-shot"):
        resolve(Request("digits", protocol="episodes"))


def test_transductive_answers_are_not_attacked():
    adapter = make("transductive=true", method="maml", protocol="robust-episodes")
    with pytest.raises(UserError, match="transductive=false"):
        adapter.check(["clean", "pgd-20"], training=False)
