"""Search in bfloat16, verdicts in float32: against closed forms, the plain attacks and counts.

bfloat16 autocast runs on every processor; whether it is fast is what the tests say it is.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

from aal_bench import registry
from aal_bench.adapters.classification import make_stage
from aal_bench.attacks import search
from aal_bench.attacks.counting import Counted
from aal_bench.attacks.parameters import budget
from aal_bench.cli import main
from aal_bench.data.splits import InMemory
from aal_bench.errors import RunFailed
from aal_bench.registry import AUTOATTACK, SEARCHED, follows
from aal_bench.resolve import Request, resolve, stages_of

PAIRS = list(zip(AUTOATTACK, SEARCHED, strict=True))
FORWARDS, BACKWARDS = 102, 101
"""APGD-CE on one image: what it asks at first, the start and 100 steps."""
CHECKS = 2
"""One forward in either arithmetic on what the search returned."""
VERDICT = 1
WAYS = ("forwards", "backwards")


@pytest.fixture
def fast(monkeypatch):
    """fast(True), fast(False): whether this machine multiplies bfloat16 in hardware."""
    return lambda answer: monkeypatch.setattr(search, "has_fast_bf16", lambda _device: answer)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- a network that bfloat16 does not change -------------------------------------------------


@pytest.fixture(scope="module")
def crowd(images):
    """Twelve images: 2 misclassified, 8 that fall to one attack or another, 2 that stand."""
    kinds = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    labels = torch.arange(12) % 10
    told = labels.clone()
    told[10:] = (labels[10:] + 3) % 10
    return images(kinds, labels).split(told)


@pytest.fixture(scope="module")
def both(crowd, gauntlet, task, evaluate):
    """Evidence of AutoAttack's four and of the searched four, on the gauntlet's sums."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "has_fast_bf16", lambda _device: True)
        return evaluate(task(), gauntlet(), crowd, ("clean", *AUTOATTACK, *SEARCHED))


@pytest.mark.parametrize(("exact", "searched"), PAIRS)
def test_such_a_network_loses_the_same_images_to_the_same_attacks(both, exact, searched):
    for column in ("attacked", "ok", "pred"):
        np.testing.assert_array_equal(both.column(exact, column), both.column(searched, column))
    assert (both.column(searched, "attacked") & ~both.column(searched, "ok")).any()


@pytest.mark.parametrize(("exact", "searched"), PAIRS)
def test_its_images_cost_two_more_forwards_each(both, exact, searched):
    attacked = both.column(exact, "attacked")
    more = both.column(searched, "forwards") - both.column(exact, "forwards")
    np.testing.assert_array_equal(more, CHECKS * attacked)
    np.testing.assert_array_equal(
        both.column(searched, "backwards"), both.column(exact, "backwards")
    )


def test_the_searched_four_follow_each_other_and_not_autoattack(both):
    np.testing.assert_array_equal(both.column(SEARCHED[0], "attacked"), both.clean_correct())
    for place, stage in enumerate(SEARCHED):
        left = both.robust(SEARCHED[:place])
        np.testing.assert_array_equal(both.column(stage, "attacked"), left)
        assert follows(stage) == SEARCHED[:place]
        assert follows(AUTOATTACK[place]) == AUTOATTACK[:place]
    assert follows("pgd-10") == follows("clean") == ()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("hardware", [True, False])
def test_without_bfloat16_in_hardware_it_is_the_plain_attack(
    fast, gauntlet, images, task, evaluate, norm, hardware
):
    """With it, the verdicts are still the same ones here, and the passes are not."""
    fast(hardware)
    question = task(eps="0.05" if norm == "Linf" else "0.6", norm=norm)
    pictures, found, spent = images([0, 1, 2, 3], range(4)), {}, {}
    for name in ("apgd-ce", "bf16-apgd-ce"):
        kept = []
        evidence = evaluate(
            question,
            gauntlet(),
            pictures.split(),
            ("clean", name),
            fooled=lambda _rows, x_adv, kept=kept: kept.append(x_adv),
        )
        found[name] = evidence.column(name, "ok")
        spent[name] = [*kept, *(evidence.column(name, way) for way in WAYS)]
    assert 0 < found["apgd-ce"].sum() < 4
    np.testing.assert_array_equal(*found.values())
    same = [np.array_equal(a, b) for a, b in zip(*spent.values(), strict=True)]
    assert all(same) == (not hardware)


# ---- a network that bfloat16 blinds ----------------------------------------------------------


class Blurred(nn.Module):
    """Two logits z = 100 +- s sum(v (x - 1/2)) by a convolution, +50 for class 0 if x is `sure`.

    bfloat16 counts in halves from 64 to 128: there both logits of an image that is not sure are
    100 at every point of the ball, so that it looks like class 0 and as if nothing fooled it
    further. In float32 the network is linear, and an image at 1/2 + c v of class 0 (of class 1:
    1/2 - c v) falls exactly if c < eps.
    """

    def __init__(self) -> None:
        super().__init__()
        sign = torch.tensor([1.0, -1.0]).repeat(96).view(1, 3, 8, 8)
        sign[0, 0, 0, :2] = 0
        self.sign = sign
        self.scores = nn.Conv2d(3, 2, 8)
        self.scores.weight.data = torch.cat([sign, -sign]) * 0.005
        self.scores.bias = nn.Parameter(torch.full((2,), 100.0))

    def forward(self, x):
        scores = self.scores(x - 0.5).flatten(1)
        sure = (x[:, 0, 0, 0].detach() > 0.75).to(scores.dtype)
        return scores + 50 * torch.stack([sure, torch.zeros_like(sure)], 1)


NEAR, FAR = 8 / 255, 20 / 255
"""Within eps = 0.05, and beyond it."""
CLAIMED = [(1, NEAR, 0), (1, FAR, 0), (1, FAR, 0)]
"""(label, c, sure): class 1 looks like class 0 in bfloat16: fooled before anything was done."""
CLOSE = [(0, NEAR, 0), (0, FAR, 0), (0, FAR, 0)]
"""Never fooled in bfloat16, and never further from it than a tie."""
CERTAIN = [(0, FAR, 1), (0, NEAR, 1), (0, FAR, 1)]
"""A margin of 50."""
BATCH = [one for three in zip(CLAIMED, CLOSE, CERTAIN, strict=True) for one in three]


@pytest.fixture
def blurred():
    return Blurred().eval().requires_grad_(False)


@pytest.fixture
def pictures(blurred):
    """The nine images (9, 3, 8, 8) in [0, 1], multiples of 1/255, and their labels (9,)."""
    labels = torch.tensor([label for label, _, _ in BATCH])
    side = 1.0 - 2 * labels
    x = 0.5 + (side * torch.tensor([c for _, c, _ in BATCH]))[:, None, None, None] * blurred.sign
    x[:, 0, 0, 0] = torch.tensor([float(sure) for _, _, sure in BATCH])
    x[:, 0, 0, 1] = 0
    return (x * 255).round() / 255, labels


@pytest.fixture
def batch(pictures):
    """They as a test set."""
    x, labels = pictures
    return InMemory((x * 255).round().to(torch.uint8), labels)


STANDING = np.array([sure == 1 or c == FAR for _, c, sure in BATCH])
OF = {"claimed": np.arange(0, 9, 3), "close": np.arange(1, 9, 3), "certain": np.arange(2, 9, 3)}


def arithmetics(model):
    """What is kept by a hook of every forward: (images, type of the logits, channels_last)."""
    seen = []

    def keep(_layer, inputs, scores):
        last = inputs[0].is_contiguous(memory_format=torch.channels_last)
        seen.append((len(inputs[0]), scores.dtype, last))

    model.scores.register_forward_hook(keep)
    return seen


def test_the_network_is_right_in_float32_and_blind_in_bfloat16(blurred, pictures):
    x, labels = pictures
    assert torch.equal(blurred(x).argmax(1), labels)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = blurred(x)
    claimed = reduced.argmax(1) != labels
    assert claimed.nonzero()[:, 0].tolist() == OF["claimed"].tolist()
    assert (reduced[OF["close"], 0] == reduced[OF["close"], 1]).all()


def test_verdicts_are_the_closed_form_though_the_search_sees_nothing(
    fast, blurred, batch, task, evaluate
):
    """No claim counts that float32 refutes, and no fall is missed for want of digits."""
    fast(True)
    evidence = evaluate(task(classes=2), blurred, batch, ("clean", "bf16-apgd-ce"))
    assert evidence.clean_correct().all()
    np.testing.assert_array_equal(evidence.column("bf16-apgd-ce", "ok"), STANDING)


def test_only_images_in_doubt_are_attacked_in_float32(fast, blurred, batch, task, evaluate):
    fast(True)
    seen = arithmetics(blurred)
    evaluate(task(classes=2), blurred, batch, ("clean", "bf16-apgd-ce"))
    half = [size for size, kind, _ in seen if kind == torch.bfloat16]
    full = [size for size, kind, _ in seen if kind == torch.float32]
    assert all(last == (kind == torch.bfloat16) for _, kind, last in seen)
    # In bfloat16 those that look fooled already leave at once; at the end all are asked again.
    assert half == [9, *[6] * (FORWARDS - 1), 9]
    # Clean, confirmation, claimed and close once more, verdict.
    assert full == [9, 9, *[6] * FORWARDS, 9]


def test_passes_of_both_attacks_are_counted_for_the_right_images(
    fast, blurred, batch, task, evaluate
):
    """The sets of six that the search and float32 attack are not the same six."""
    fast(True)
    evidence = evaluate(task(classes=2), blurred, batch, ("clean", "bf16-apgd-ce"))
    spent = {way: evidence.column("bf16-apgd-ce", way) for way in WAYS}
    once, twice = FORWARDS + CHECKS + VERDICT, 2 * FORWARDS + CHECKS + VERDICT
    assert spent["forwards"][OF["certain"]].tolist() == [once] * 3
    assert spent["forwards"][OF["close"]].tolist() == [twice] * 3
    assert spent["forwards"][OF["claimed"]].tolist() == [once + 1] * 3  # 1 in bfloat16
    assert spent["backwards"][OF["certain"]].tolist() == [BACKWARDS] * 3
    assert spent["backwards"][OF["close"]].tolist() == [2 * BACKWARDS] * 3
    assert spent["backwards"][OF["claimed"]].tolist() == [BACKWARDS] * 3


def test_what_the_search_finds_is_kept_where_float32_confirms_it(fast, task):
    """A steep network: bfloat16 fools it, and nothing is attacked in float32."""
    fast(True)
    model = Blurred().eval().requires_grad_(False)
    model.scores.weight.data *= 200
    x = (0.5 + NEAR * model.sign).expand(4, -1, -1, -1)
    seen = arithmetics(model)
    x_adv = make_stage("bf16-apgd-ce", task(classes=2)).perturb(
        model, x.clone(), torch.zeros(4, dtype=torch.long)
    )
    assert [size for size, kind, _ in seen if kind == torch.float32] == [4]
    assert not model(x_adv).argmax(1).eq(0).any()
    assert (x_adv - x).abs().max() <= 0.05 + 1e-6


def test_what_fab_finds_beyond_the_ball_raises_no_doubt(fast, task, blurred):
    """It crosses the boundary of every image, here in an arithmetic that is exact."""

    class Sums(Blurred):
        def forward(self, x):
            score = ((x - 0.5) * self.sign).sum((1, 2, 3))
            return torch.stack([score, -score], 1)

    fast(True)
    model, question = Counted(Sums().eval().requires_grad_(False)), task(classes=2)
    x = (0.5 + FAR * blurred.sign).expand(3, -1, -1, -1)
    model.watch(x)
    x_adv = make_stage("bf16-fab-t", question).perturb(
        model, x.clone(), torch.zeros(3, dtype=torch.long)
    )
    plain = budget("fab-t", make_stage("fab-t", question).params)
    assert plain is not None
    assert torch.equal(x_adv, x)
    assert model.counts()[0].tolist() == [plain.forwards - VERDICT + CHECKS] * 3


# ---- failing -----------------------------------------------------------------------------------


def test_logits_that_only_the_search_finds_broken_are_an_error(
    fast, gauntlet, images, evaluate, task
):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = gauntlet()

        def forward(self, x):
            logits = self.network(x)
            return logits * torch.nan if torch.is_autocast_enabled("cpu") else logits

    fast(True)
    pictures = images([0, 0], [2, 5])
    with pytest.raises(RunFailed, match="not finite on the way"):
        evaluate(task(), Broken().eval(), pictures.split(), ("clean", "bf16-apgd-ce"))


def test_an_attack_that_raises_leaves_the_network_as_it_was(fast, blurred, pictures, task):
    class Failing(Blurred):
        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no kernel")
            return super().forward(x)

    fast(True)
    model = nn.Sequential(Failing(), nn.Linear(2, 2)).eval()
    with pytest.raises(RuntimeError, match="no kernel"):
        make_stage("bf16-apgd-ce", task(classes=2)).perturb(model, *pictures)
    assert not any(part._forward_hooks for part in model.modules())


# ---- the last layer ----------------------------------------------------------------------------


def test_a_layer_with_an_output_for_each_class_computes_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5))
    x = torch.randn(4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        features = model[:2](x)
        with search.exact_heads(model, 5):
            logits = model(x)
        after = model(x)
    assert features.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    head: nn.Linear = model[2]  # pyright: ignore[reportAssignmentType]
    expected = functional.linear(features.float(), head.weight, head.bias)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert after.dtype == torch.bfloat16
    assert not torch.equal(after.float(), expected)


def test_what_a_network_does_to_the_output_of_its_last_layer_is_done_after():
    model = nn.Linear(4, 3)

    def doubled(_layer, _inputs, logits):
        return 2 * logits

    model.register_forward_hook(doubled)
    x = torch.randn(2, 4)
    with search.exact_heads(model, 3):
        torch.testing.assert_close(model(x), 2 * (x @ model.weight.T + model.bias))


def test_a_layer_that_only_inherits_from_a_linear_one_is_left_alone():
    class Cosine(nn.Linear):
        def forward(self, input):
            return functional.linear(input, functional.normalize(self.weight, dim=1))

    model = Cosine(4, 3)
    x = torch.randn(2, 4)
    expected = model(x)
    with search.exact_heads(model, 3):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


# ---- what is said of it ------------------------------------------------------------------------


def test_parameters_are_the_plain_attacks_and_the_arithmetic(fast, task):
    for exact, searched in PAIRS:
        stage = make_stage(searched, task())
        plain = make_stage(exact, task()).params
        told = {"dtype": "bfloat16", "memory_format": "channels_last", "compile": False}
        assert stage.params == plain | told
        fast(True)
        assert search.arithmetic(stage, "cpu") == told
        fast(False)
        slow = {"dtype": "float32", "memory_format": "contiguous", "compile": False}
        assert search.arithmetic(stage, "cpu") == slow
        assert search.arithmetic(make_stage(exact, task()), "cpu") == {}


def test_the_protocol_is_never_ranked_and_leaves_out_what_needs_more_classes(tmp_path):
    assert registry.protocol("searched") == ("clean", *SEARCHED)
    assert not set(AUTOATTACK) & set(registry.protocol("searched"))
    run = resolve(Request("digits", protocol="searched"))
    assert stages_of(run) == ("clean", *SEARCHED)
    text = registry.task_file("digits").read_text()
    for ours, theirs in (("classes = 10", "classes = 3"), ('name = "digits"', 'name = "three"')):
        text = text.replace(ours, theirs, 1)
    (tmp_path / "three.toml").write_text(text)
    few = resolve(Request(str(tmp_path / "three.toml"), protocol="searched"))
    assert few.protocol == "searched-no-bf16-apgd-t"
    assert stages_of(few) == ("clean", *(one for one in SEARCHED if one != "bf16-apgd-t"))


MODEL = """
from torch import nn

def build(classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))
"""


@pytest.mark.parametrize("hardware", [True, False])
def test_the_record_of_a_run_says_what_was_searched_in(fast, tmp_path, hardware):
    fast(hardware)
    (tmp_path / "linear.py").write_text(MODEL)
    out = tmp_path / "run"
    done = CliRunner().invoke(
        main,
        [
            *("run", "digits", "--model", f"{tmp_path / 'linear.py'}:build", "--out", str(out)),
            *("--epochs", "2", "--limit-train", "256", "--limit-eval", "12", "--device", "cpu"),
            *("--set", "train.validation=0", "--audit", "none"),
            *("--protocol", "clean,pgd-2,bf16-apgd-ce"),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    record = json.loads((out / "result.json").read_text())
    stages = {stage["attack"]: stage for stage in record["evaluation"]}
    for name in ("clean", "pgd-2"):
        how = [stages[name][key] for key in ("dtype", "memory_format", "compiled")]
        assert how == ["float32", "contiguous", False]
        assert "dtype" not in stages[name]["params"]
    found = stages["bf16-apgd-ce"]
    wanted = ["bfloat16", "channels_last"] if hardware else ["float32", "contiguous"]
    assert [found["dtype"], found["memory_format"], found["compiled"]] == [*wanted, False]
    assert [found["params"][key] for key in ("dtype", "memory_format", "compile")] == [
        *wanted,
        False,
    ]
    assert record["protocol"] == "clean,pgd-2,bf16-apgd-ce"
    assert "autoattack" not in record["metrics"] or record["metrics"]["autoattack"] is None
