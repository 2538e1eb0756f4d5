"""Six hypotheses about printed numbers: the tests behind them, constructed cases, a real run."""

import json
import shlex
from itertools import product
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional

from aal_bench.aal.attention import SpatialGate
from aal_bench.aal.options import Kernel, Selective
from aal_bench.audit.bank import Bank
from aal_bench.audit.significance import ALPHA
from aal_bench.audit.subject import Part, Subject
from aal_bench.audit.table import QUICK
from aal_bench.cli import main
from aal_bench.config import Choice, Run, read_task
from aal_bench.diagnosis import printed
from aal_bench.diagnosis.hypotheses import Evidence, judge
from aal_bench.diagnosis.measure import measure
from aal_bench.diagnosis.measured import KERNELS, Labels, Measured, Network
from aal_bench.diagnosis.paired import Difference, above, clopper_pearson
from aal_bench.diagnosis.record import Diagnosis, Epoch
from aal_bench.registry import task_file
from aal_bench.threat import Threat

BUDGET = QUICK._replace(steps=10, restarts=2)

# ---- exact tests -----------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 9), (3, 9), (9, 9), (40, 512)])
def test_bounds_of_a_share_are_those_of_clopper_and_pearson(k, n):
    exact = binomtest(k, n).proportion_ci(1 - 2 * ALPHA, "exact")
    assert clopper_pearson(k, n, ALPHA) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (0.3, 0.1), (0.05, 0.05), (0.0, 0.4)])
def test_bounds_of_a_paired_difference_miss_it_no_oftener_than_they_say(gain, loss):
    n, low_misses, high_misses = 14, 0.0, 0.0
    for gained, lost in product(range(n + 1), repeat=2):
        if gained + lost > n:
            continue
        rest = n - gained - lost
        ways = comb(n, gained) * comb(n - gained, lost)
        chance = ways * gain**gained * loss**lost * (1 - gain - loss) ** rest
        low, high = Difference(gained, lost, n).bounds
        low_misses += chance * (low > gain - loss + 1e-12)
        high_misses += chance * (high < gain - loss - 1e-12)
    assert max(low_misses, high_misses) <= ALPHA


@pytest.mark.parametrize(
    ("gained", "lost", "n", "answer"),
    [
        (30, 2, 100, "yes"),
        (2, 2, 6, "not decided"),
        (0, 30, 100, "no"),
        (0, 0, 1000, "no"),
        (0, 0, 20, "not decided"),  # nothing seen on 20 images is no proof of 2 points at most
        (12, 0, 1000, "not decided"),  # significant, but below the margin and near it
    ],
)
def test_a_difference_is_denied_only_by_a_bound(gained, lost, n, answer):
    assert Difference(gained, lost, n).larger("", margin=0.02).answer == answer


def test_a_share_is_above_or_below_only_significantly():
    answers = [above("", k, 100, 0.5).answer for k in (70, 50, 30)]
    assert answers == ["yes", "not decided", "no"]


# ---- constructed verdicts --------------------------------------------------------------------


def right(share, n):
    """The first images right: of nested attacks the weaker's right images hold the stronger's."""
    return np.arange(n) < round(share * n)


def network(
    n=500, clean=0.95, fgsm=0.4, pgd=0.35, masked=(0.9, 0.8, 0.55), k=0.25, kernel: Kernel = "m2"
):
    by_kernel = dict(zip(KERNELS, masked, strict=True))
    return Network(
        name="network",
        kernel=kernel,
        clean=right(clean, n),
        fgsm=right(fgsm, n),
        pgd=right(pgd, n),
        masked={
            (kind, one): right(by_kernel[one], n) for kind in ("fgsm", "pgd") for one in KERNELS
        },
        k=np.full(n, k),
    )


def verdicts(n=500, small=0.85, predicted=None, strong=0.3, labels=None, own=None, **told):
    """The six verdicts on a network that is honest unless something is said otherwise."""
    own = own or network(n)
    at_test = {"changed": 0.0, "true": 0.4, "shuffled": 0.4, "none": 0.4} | (labels or {})
    measured = Measured(
        own=own,
        small_step=right(small, n),
        raw_fgsm=own.fgsm,
        raw_predicted=own.fgsm if predicted is None else right(predicted, n),
        strong=right(strong, n),
        labels=Labels(**{name: right(share, n) for name, share in at_test.items()}),
    )
    evidence = Evidence(measured, 8 / 255, "PGD-50 x 10", printed.by_kernel(), {}, **told)
    return {one.id: one.verdict for one in judge(evidence)}


def test_an_honest_network_with_a_selective_mask():
    assert verdicts() == {
        "H1": "supported",
        "H2": "supported",
        "H3": "contradicted",
        "H4": "contradicted",
        "H5": "contradicted",
        "H6": "not tested",
    }


def test_few_images_decide_nothing():
    few = verdicts(n=5)
    assert set(few.values()) == {"not decided", "not tested"}


def test_h1_is_contradicted_by_a_mask_that_hides_nothing_or_orders_the_other_way():
    assert verdicts(own=network(masked=(0.4, 0.4, 0.4)))["H1"] == "contradicted"
    assert verdicts(own=network(masked=(0.55, 0.8, 0.9)))["H1"] == "contradicted"


def test_h1_is_contradicted_where_training_with_the_kernels_gives_the_order_at_full_eps():
    flat = [network(kernel="m"), network(kernel="one_minus_m2")]
    ordered = [network(kernel="m", fgsm=0.3), network(kernel="one_minus_m2", fgsm=0.2)]
    assert verdicts(kernels=flat)["H1"] == "supported"
    assert verdicts(kernels=ordered)["H1"] == "contradicted"


def test_h2_is_contradicted_where_the_small_step_does_no_less():
    assert verdicts(small=0.4)["H2"] == "contradicted"


def test_h2_is_measured_against_the_printed_share_of_clean():
    cases = {
        "contradicted": (network(fgsm=0.92), 0.95),  # the full step leaves the printed share, too
        "supported": (network(fgsm=0.4), 0.85),
        "not decided": (network(fgsm=0.2), 0.4),  # not even the small step leaves it
    }
    table = {one.name.split(",")[0]: one for one in printed_of_cifar10().values()}
    for verdict, (own, small) in cases.items():
        n = len(own.clean)
        honest = Labels(*(right(share, n) for share in (0, 0.4, 0.4, 0.4)))
        found = Measured(own, right(small, n), own.fgsm, own.fgsm, own.pgd, honest)
        evidence = Evidence(found, 8 / 255, "PGD-50 x 10", {}, table)
        assert judge(evidence)[1].verdict == verdict


def printed_of_cifar10():
    task = read_task(task_file("cifar10"))
    return printed.of_run(
        Run.model_validate(
            {
                "task": task,
                "method": Choice(name="aal-fgsm"),
                "model": Choice(name="resnet18"),
                "protocol": "fast",
            }
        )
    )


def test_the_printed_numbers_are_those_of_tables_2_and_8():
    assert {stage: one.value for stage, one in printed_of_cifar10().items()} == {
        "clean": 0.954,
        "fgsm": 0.8385,
        "pgd-10": 0.4289,
    }
    assert {kernel: one.value for kernel, one in printed.by_kernel().items()} == {
        "m2": 0.8919,
        "m": 0.8728,
        "one_minus_m2": 0.5112,
    }


def test_h3_is_supported_by_a_collapsed_network_and_by_a_leaked_label():
    collapsed = network(clean=0.9, fgsm=0.95, pgd=0.05)
    assert verdicts(own=collapsed, strong=0.0)["H3"] == "supported"
    assert verdicts(predicted=0.35)["H3"] == "supported"


def test_h4_is_supported_by_a_closed_mask_unless_full_attacks_are_withstood_all_the_same():
    closed = network(fgsm=0.1, pgd=0.02, k=0.001)
    assert verdicts(own=closed, strong=0.0)["H4"] == "supported"
    clean_trained = network(fgsm=0.1)
    assert verdicts(own=closed, strong=0.0, undefended=clean_trained)["H4"] == "supported"
    robust = network(fgsm=0.4, k=0.001)
    assert verdicts(own=robust, undefended=clean_trained)["H4"] == "contradicted"


def test_h5_is_supported_by_one_prediction_that_knows_its_label():
    assert verdicts(labels={"changed": 0.002})["H5"] == "supported"


def test_h5_is_supported_where_the_mask_of_true_labels_helps_and_that_of_shuffled_ones_does_not():
    assert verdicts(labels={"true": 0.6})["H5"] == "supported"
    # Wrong labels that do harm are no gain from right ones.
    assert verdicts(labels={"shuffled": 0.2})["H5"] == "contradicted"


def test_h6_needs_its_control_and_says_how_to_train_it():
    honest = Labels(*(right(share, 500) for share in (0, 0.4, 0.4, 0.4)))
    own = network()
    found = Measured(own, right(0.85, 500), own.fgsm, own.fgsm, own.pgd, honest)
    h6 = judge(Evidence(found, 8 / 255, "PGD", {}, {}, commands={"H6": "aal-bench run x"}))[5]
    assert (h6.verdict, h6.command) == ("not tested", "aal-bench run x")


def test_h6_is_contradicted_by_a_control_that_does_worse_and_supported_by_one_that_does_not():
    worse, better = network(fgsm=0.2, pgd=0.15), network(fgsm=0.45, pgd=0.38)
    assert verdicts(control=worse)["H6"] == "contradicted"
    assert verdicts(control=better)["H6"] == "supported"


def test_the_watched_epochs_are_told():
    rows = [
        Epoch(epoch=1, watch_fgsm=0.5, watch_pgd=0.45),
        Epoch(epoch=2, watch_fgsm=0.9, watch_pgd=0.1),
    ]
    own = network()
    honest = Labels(*(right(share, 500) for share in (0, 0.4, 0.4, 0.4)))
    found = Measured(own, own.fgsm, own.fgsm, own.fgsm, own.pgd, honest)
    h3 = judge(Evidence(found, 8 / 255, "PGD-50 x 10", {}, {}, epochs=rows))[2]
    assert "epoch 2: 90.0 % against 10.0 %" in h3.sentence


# ---- what is measured ------------------------------------------------------------------------


class Gated(nn.Module):
    """A convolution, its gate, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 4, 3, padding=1), SpatialGate()
        self.head = nn.Linear(4 * 64, 5)
        nn.init.constant_(self.gate.bn.weight, 1.0)

    def forward(self, x):
        return self.head(self.gate(self.stem(x).relu()).flatten(1))


@pytest.fixture
def gated():
    torch.manual_seed(0)
    return Gated().eval()


def subject_of(model, n=40, eps: Any = "3/255"):
    """Images that the network, or what it is made of, gets right on three quarters."""
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5
    threat = Threat(eps=eps)
    part = Part(model, x, y, np.arange(n))
    return Subject((part,), model, threat, step=threat.radius / 4, classes=5)


def test_masked_and_full_fgsm_are_those_of_the_formula(gated):
    subject = subject_of(gated)
    own = measure(Bank(subject, BUDGET), Selective(), lr=0.1, step=subject.eps).own
    x, y = subject.parts[0].x.clone().requires_grad_(), subject.parts[0].y
    f = gated.stem(x).relu()
    # eval-mode batch norm with its initial statistics divides by sqrt(1 + 1e-5)
    pooled = torch.cat([f.amax(1, keepdim=True), f.mean(1, keepdim=True)], 1)
    M = torch.sigmoid(gated.gate.conv(pooled) / (1 + 1e-5) ** 0.5)
    loss = functional.cross_entropy(gated.head((f * M).flatten(1)), y, reduction="sum")
    (g,) = torch.autograd.grad(loss, x)
    k: dict[Any, torch.Tensor] = {"m2": M * M, "m": M, "one_minus_m2": 1 - M * M}
    with torch.no_grad():
        clean = gated(x).argmax(1) == y
        np.testing.assert_array_equal(own.clean, clean)
        for kernel, share in {**k, "full": torch.ones_like(M)}.items():
            x_adv = (x + share * subject.eps * g.sign()).clamp(0, 1)
            stands = clean & (gated(x_adv).argmax(1) == y)
            found = own.fgsm if kernel == "full" else own.masked["fgsm", kernel]
            np.testing.assert_array_equal(found, stands)
        np.testing.assert_allclose(own.k, (M * M).mean((1, 2, 3)), atol=1e-6)
    assert 0 < own.fgsm.mean() < own.masked["fgsm", "m2"].mean()  # the table is not trivial


def test_a_gate_that_lets_nothing_through_is_a_closed_mask(gated):
    """Features a hundred thousand times as large make up for M = 1e-4: the logits are alive."""
    nn.init.constant_(gated.gate.bn.bias, -9.2)
    with torch.no_grad():
        gated.stem.weight *= 1e4
        gated.stem.bias *= 1e4
        gated.gate.conv.weight *= 1e-5
    subject = subject_of(gated)
    found = measure(Bank(subject, BUDGET), Selective(), lr=0.1, step=subject.eps)
    hypotheses = judge(Evidence(found, subject.eps, "PGD", {}, {}))
    assert found.own.k.max() < 0.001
    np.testing.assert_array_equal(found.own.masked["pgd", "m2"], found.own.clean)
    np.testing.assert_array_equal(found.own.masked["pgd", "one_minus_m2"], found.own.pgd)
    assert hypotheses[3].verdict == "supported"


def test_the_mask_that_labels_move_is_that_of_equation_12(gated):
    """xi2 = 0: M^a = clip(M - xi1 dG/dM), with the true and with shuffled labels."""
    subject = subject_of(gated)
    options = Selective(xi1=0.5, xi2=0.0, kernel="m")
    labels = measure(Bank(subject, BUDGET), options, lr=0.1, step=subject.eps).labels
    x, y = subject.parts[0].x, subject.parts[0].y
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(subject.seed))]
    leaf = x.clone().requires_grad_()
    loss = functional.cross_entropy(gated(leaf), y, reduction="sum")
    x_adv = (x + subject.eps * torch.autograd.grad(loss, leaf)[0].sign()).clamp(0, 1)
    f = gated.stem(x).relu().detach()
    for told, found in ((y, labels.true), (shuffled, labels.shuffled)):
        M = gated.gate.mask(f).detach().requires_grad_()
        loss = functional.cross_entropy(gated.head((f * M).flatten(1)), told, reduction="sum")
        moved = (M - 0.5 * torch.autograd.grad(loss, M)[0]).clamp(0, 1)
        with torch.no_grad():
            f_adv = gated.stem(x_adv).relu()
            predicted = gated.head((f_adv * moved).flatten(1)).argmax(1)
        np.testing.assert_array_equal(found, predicted == y)
    assert (labels.true != labels.shuffled).any()
    assert not labels.changed.any()


class Leaking(Gated):
    """Takes the label where it is offered."""

    def forward(self, x, y=None):
        logits = super().forward(x)
        return logits if y is None else logits + 100 * functional.one_hot(y, 5)


def test_a_network_that_takes_the_label_is_found_out():
    torch.manual_seed(0)
    subject = subject_of(Leaking().eval())
    found = measure(Bank(subject, BUDGET), Selective(), lr=0.1, step=subject.eps)
    y = subject.parts[0].y
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(subject.seed))]
    np.testing.assert_array_equal(found.labels.changed, y != shuffled)
    assert judge(Evidence(found, subject.eps, "PGD", {}, {}))[4].verdict == "supported"


def test_what_pgd_leaves_is_right_at_no_fewer_starts_than_were_asked_for(gated):
    """More starts leave fewer images; each start is spent on those that stand."""
    subject = subject_of(gated)
    left = list[np.ndarray]()
    spent = list[int]()
    for restarts in (1, 2, 6):
        bank = Bank(subject, BUDGET._replace(restarts=restarts))
        found = measure(bank, Selective(), lr=0.1, step=subject.eps)
        left.append(found.strong)
        spent.append(bank.spent.backward)
    once, twice, often = left
    assert not (twice & ~once).any()
    assert not (often & ~twice).any()
    assert not (once & ~found.own.pgd).any()  # PGD-10 is the last iterate of the first start
    assert spent[1] - spent[0] == BUDGET.steps * once.sum()


def test_every_pass_is_counted(gated):
    subject, seen = subject_of(gated, n=8), list[int]()
    gated.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    bank = Bank(subject, BUDGET)
    measure(bank, Selective(), lr=0.1, step=subject.eps)
    assert bank.spent.forward == sum(seen)


# ---- a real run ------------------------------------------------------------------------------

COMMON = ("--smoke", "--audit", "none", "--precision", "fp32", "--device", "cpu")


def invoke(*words):
    typed = [str(word) for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["aal-bench", *typed])  # what a run records as its command
        done = CliRunner().invoke(main, typed)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of aal-fgsm, one without gate, and one without attack, all tiny."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in {
        "aal": ("aal-fgsm",),
        "bare": ("aal-fgsm", "--set", "control=no_gate"),
        "standard": ("standard",),
    }.items():
        done = invoke("run", "digits", "--method", *words, *COMMON, "--out", folder / name)
        assert done.exit_code == 0, done.output
    return folder


def test_a_run_is_diagnosed_into_its_folder_and_told_in_110_columns(runs):
    done = invoke("diagnose", "aal", runs / "aal", "--quick", "--undefended", runs / "standard")
    assert done.exit_code == 0, done.output
    for number in range(1, 7):
        assert f"H{number} " in done.output
    wide = [line for line in done.output.splitlines() if len(line) > 110]
    assert all("H6 needs:" in line or "diagnosis.json" in line for line in wide)
    read = Diagnosis.model_validate_json((runs / "aal" / "diagnosis.json").read_text())
    assert [one.id for one in read.hypotheses] == [f"H{number}" for number in range(1, 7)]
    assert read.hypotheses[5].verdict == "not tested"
    assert read.training[0].mean_k == pytest.approx(0.25, abs=0.01)  # CBAM's gate begins at 0.5
    picture = (runs / "aal" / "figures" / "diagnosis.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_clean_and_fgsm_are_those_of_the_run_itself(runs):
    """The run attacked by torchattacks, the diagnosis by the audit's bank."""
    done = invoke("diagnose", "aal", runs / "aal", "--quick", "--json")
    found = Diagnosis.model_validate_json(done.stdout)
    result = json.loads((runs / "aal" / "result.json").read_text())
    stages = result["metrics"]["stages"]
    values = {reading.name: reading for one in found.hypotheses for reading in one.measured}
    assert found.images == result["metrics"]["clean"]["n"]
    assert values["clean"].value == pytest.approx(result["metrics"]["clean"]["value"])
    assert values["FGSM, full eps"].value == pytest.approx(stages["fgsm"]["value"])
    assert done.stdout == (runs / "aal" / "diagnosis.json").read_text()


def test_the_command_that_h6_asks_for_trains_the_control_that_it_takes(runs):
    found = json.loads(invoke("diagnose", "aal", runs / "aal", "--quick", "--json").stdout)
    words = shlex.split(found["hypotheses"][5]["command"])
    assert words[0] == "aal-bench"
    control = runs / "control"
    trained = invoke(*words[1:], "--out", control)
    assert trained.exit_code == 0, trained.output
    done = invoke("diagnose", "aal", runs / "aal", "--quick", "--json", "--control", control)
    h6 = json.loads(done.stdout)["hypotheses"][5]
    assert h6["verdict"] != "not tested"
    assert {"FGSM, full eps, control", "mean k(M), control"} <= {m["name"] for m in h6["measured"]}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("bare",), "has no attention gate (control = no_gate)"),
        (("standard",), "trained by standard, the hypotheses are about AAL"),
        (("nowhere",), "not the folder of a run"),
        (("aal", "--control", "bare"), "was not trained with control = const_mask_matched_mean"),
        (("aal", "--kernel-run", "standard"), "its network has no attention gate"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_in_one_line(runs, words, told):
    paths = [word if word.startswith("--") else runs / word for word in words]
    done = invoke("diagnose", "aal", *paths, "--quick")
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())
