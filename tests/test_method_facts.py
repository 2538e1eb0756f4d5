"""What `method_facts` says of the methods is what their code does: passes are counted."""

import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

from aal_bench import method_facts, registry
from aal_bench.adapters.classification import cross_entropy
from aal_bench.adapters.method import build_method, build_update, join_companions
from aal_bench.adapters.network import build_network
from aal_bench.data.splits import InMemory
from aal_bench.leaderboard import reported
from aal_bench.method_facts import METHODS, STEPS, Cost, Facts, Passes
from aal_bench.methods.base import Batch
from aal_bench.resolve import Request, resolve
from aal_bench.training.loop import Loop, Setting

BATCH = 4
CLASSIFYING = [name for name, row in registry.METHODS.items() if "classification" in row.families]
# Where the passes are chosen or drawn: what makes them those of the table.
SETTINGS = {
    "fat": [("tau=10",)],
    "las-at": [("method.steps=[14,14]", f"interval={n}") for n in (1000, 1)],
    "lbgat": [(), ("beta=6",)],
    "atta": [(), ("loss=trades",)],
    "free": [(), ("replays=4",)],
}
BEFORE = {"iaat", "trades-awp", "again-awp"}
"""Whose second cost is that of the beginning of training."""


class _Counted(torch.autograd.Function):
    """x * weight, and a note of how many images each pass takes, and to which of the two."""

    @staticmethod
    def forward(ctx, x, weight, counts):
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        counts["forwards"] += len(x)
        return x * weight

    @staticmethod
    def backward(ctx, *grads):
        (grad,), (x, weight) = grads, ctx.saved_tensors
        to_x, to_weights, _ = ctx.needs_input_grad
        ctx.counts["to_weights" if to_weights else "to_input"] += len(x)
        by_weight = (grad * x).sum().reshape(weight.shape) if to_weights else None
        return grad * weight if to_x else None, by_weight, None


class Counting(nn.Module):
    """Stands before a network as its normalisation, and counts what passes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 1, 1))  # AWP perturbs what is no vector
        self.counts = Counter()

    def forward(self, x):
        return _Counted.apply(x, self.weight, self.counts)

    def passes(self):
        return Passes(*(self.counts[field] / BATCH for field in Passes._fields))


def counted(tmp_path, name, settings, progress):
    """Passes of the model and of every network beside it, in the second step of the loop."""
    settings = ("train.augment=none", f"train.batch_size={BATCH}", *settings)
    run = resolve(Request("cifar10", name, model="cnn4-8", precision="fp32", settings=settings))
    method = build_method(run)
    model = method.build(build_network(run))
    join_companions(run, method)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    counters = {}
    for role, network in {"model": model, **method.extra_modules()}.items():
        (inside,) = (m for m in network.modules() if hasattr(m, "normalise"))
        counters[role] = inside.normalise = Counting()
    loop = Loop(
        Setting(
            run=run,
            model=model,
            method=method,
            update=build_update(run),
            make_objective=cross_entropy,
            train=InMemory(pixels, torch.tensor([0, 3, 1, 2])),
            validate=None,
            folder=tmp_path,
        )
    )
    loop.model.train()
    x = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
    batch = Batch(x, torch.tensor([0, 3, 1, 2]), torch.arange(BATCH), progress=progress, lr=0.01)
    loop.take_step(batch)
    for counter in counters.values():
        counter.counts.clear()
    loop.take_step(batch)
    return {role: counter.passes() for role, counter in counters.items()}


def _stated():
    for name in CLASSIFYING:
        for number, cost in enumerate(METHODS[name].costs):
            given = SETTINGS.get(name, [()])
            settings = given[number] if number < len(given) else ()
            progress = 0.0 if name in BEFORE and number else 0.5
            yield pytest.param(name, settings, progress, cost, id=f"{name}-{number}")


@pytest.mark.parametrize(("name", "settings", "progress", "cost"), list(_stated()))
def test_a_step_of_the_loop_takes_the_passes_that_are_stated(
    tmp_path, name, settings, progress, cost
):
    assert resolve(Request("cifar10")).training_attack[2] == STEPS
    assert counted(tmp_path, name, settings, progress) == {"model": cost.model, **cost.others}


def test_images_leave_the_attack_of_fat_early(tmp_path):
    """On an untrained network nearly every image is misclassified: tau = 0 stops there."""
    passes = counted(tmp_path, "fat", ("tau=0",), 0.5)["model"]
    most = METHODS["fat"].costs[0].model
    assert METHODS["fat"].costs[0].at_most
    assert passes.forwards < most.forwards
    assert passes.to_input < most.to_input
    assert passes.to_weights == most.to_weights


def test_every_method_and_every_update_of_ours_has_facts_and_no_other():
    assert METHODS.keys() == registry.METHODS.keys()
    assert method_facts.UPDATES.keys() == registry.UPDATES.keys()


@pytest.mark.parametrize("name", CLASSIFYING)
def test_what_is_said_to_be_needed_is_what_the_code_asks_for(name):
    """A network beside the model, state of each image, gates: seen in the class itself."""
    run = resolve(Request("cifar10", name, model="cnn4-8"))
    method, plain = build_method(run), build_network(run)
    needs = METHODS[name].needs
    assert bool(method.companions()) == needs.endswith("network")
    assert all(companion in needs for companion in method.companions())
    remembers = type(method).remember is not registry.load("aal_bench.methods.base:Method").remember
    assert remembers == (needs == "per-image state")
    before = sum(p.numel() for p in plain.parameters())
    after = sum(p.numel() for p in method.build(plain).parameters())
    assert (after > before) == needs.endswith(("gate", "gates"))


@pytest.mark.parametrize(
    ("name", "switch"),
    [(name, f.switch) for name, facts in METHODS.items() for f in facts.faults if f.switch],
)
def test_a_fault_of_official_code_has_a_switch_that_works_and_is_off(name, switch):
    asked = resolve(Request("cifar10", name, model="cnn4-8", settings=(switch,)))
    assert asked.method.options != resolve(Request("cifar10", name)).method.options


def test_the_robustbench_entries_of_a_method_are_by_its_first_author():
    """Rice et al. trained by PGD, which is Madry's; their title is about when to stop."""
    rows = {row["entry"]: row for row in reported.read("robustbench-cifar10-Linf")["rows"]}
    for name, facts in METHODS.items():
        for entry in facts.robustbench:
            if entry not in {"Standard", "Rice2020Overfitting"}:
                assert facts.paper is not None, name
                first_author = re.split(",| and ", rows[entry]["authors"])[0]
                assert first_author.endswith(facts.paper.who)


def test_a_cost_reads_as_forwards_and_backwards_of_each_network():
    one = Cost(Passes(12, 10, 1), {"teacher": Passes(1, 0, 1)})
    assert str(one) == "12+11 and 1+1"
    assert str(Cost(Passes(11, 10, 1), at_most=True)) == "≤11+11"


def test_a_method_without_facts_has_dashes():
    assert method_facts.cells(registry.ANY, None) == ("any", "-", "-", "-", "-")
    none = Facts(loss="", attack="", costs=())
    assert method_facts.cells(("classification", "detection"), none)[0] == "not fewshot"


def test_every_paper_can_be_found_by_its_number_or_conference():
    papers = {facts.paper for facts in METHODS.values() if facts.paper}
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}|[A-Z]{4} \d{4}", paper.where) for paper in papers)


def test_the_table_is_read_without_torch_and_pydantic():
    code = "import sys; from aal_bench import method_facts as m; m.cells(('fewshot',), m.of('pgd'))"
    code += "; print(sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
