"""Seconds of a training step of every method, against what its counted passes should cost.

Measured on an AMD EPYC with bf16 instructions (two threads, nothing else running), torch 2.15.0,
ResNet-18 at batch 128, two rounds: seconds of a step, their ratio to pgd, the ratio expected from
the counted passes, peak memory as a ratio to pgd's (557 MiB). No method is more than 4 % above what
its passes cost:

               s/step  ratio   exp.  memory                  s/step  ratio   exp.  memory
pgd             3.982   1.00   1.00    1.00   again-pgd       4.161   1.05   1.05    1.13
standard        0.567   0.14   0.15    0.90   again-mart      4.679   1.18   1.18    1.92
fgsm            0.906   0.23   0.23    1.05   again-awp       4.704   1.18   1.18    1.28
rs-fgsm         0.906   0.23   0.23    0.92   aal-fgsm        0.965   0.24   0.24    1.03
trades          4.705   1.18   1.19    1.60   aal-pgd         4.738   1.19   1.20    1.04
mart            4.555   1.14   1.14    1.60   aal-trades      5.594   1.41   1.40    1.71
ls0.8-pgd       3.938   0.99   1.00    0.98   aal-mart        5.323   1.34   1.39    1.75
ls0.9-pgd       3.946   0.99   1.00    1.01   free            4.590   1.15   1.16    1.04
awp             4.506   1.13   1.14    1.12   fat-early       1.317   0.33   0.32    0.80
trades-awp      5.825   1.46   1.48    1.76   fat-late        1.984   0.50   0.49    0.76
lbgat           4.671   1.17   1.18    1.61   iaat-warmup     4.136   1.04   1.07    0.94
iaat           11.154   2.80   2.83    0.94   las-at          5.527   1.39   1.38    0.91
atta            0.910   0.23   0.23    0.92   las-at-learns  13.983   3.51   3.49    1.58
cas             4.017   1.01   1.00    1.04   lbgat6          5.279   1.33   1.33    2.38

Every method takes steps of the real loop (`Loop.take_step`: attack, update, optimiser), all in one
process and in turn, and its seconds are shown as a ratio to `pgd`. Beside it is the ratio that its
passes predict. These are counted in the very steps that are timed, by two hooks on each whole
network, which cost microseconds; a forward pass is told apart by network, mode (batch norm makes
training passes dearer) and what it keeps a graph to (nothing, the images, the weights), a backward
pass likewise. Right after every step each kind of pass in it is timed on its own network, gates,
heads and all, in the loop's precision and memory format: the unit costs. A step's expected seconds
are its passes times their units. The optimiser, the drawing of starts and the bookkeeping of a
method are in no unit: they are what may make a method dearer than expected.

Ratios are medians over rounds of ratios within one round, so that a machine whose speed drifts
does not decide. Memory is the growth of the resident set (on a GPU: of the allocated memory) during
two steps (with attacks of two) of a process of its own, above what it held once networks and data
were there.

Passes of fewer images count by their share of a batch, though they cost a little more than that:
it is why `fat` exceeds, most on small networks.

Some methods cost another amount in other steps, and are timed in each kind:

fat-early, fat-late      labels are the network's own answers, so that images are right at first,
                         and tau is 0 or 2; passes are counted in images, for fewer move each time
iaat-warmup, iaat        before and after the first eleventh of training
las-at, las-at-learns    without and with an update of the strategy network (every 20th step)
trades-awp, again-awp    after the warm-up of the perturbation of weights
lbgat, lbgat6            beta 0, the default, and 6
atta                     a step that is not the first of a new round of perturbations

    python benchmarks/methods.py [--rounds N] [--model resnet18] [--batch 128] [--methods A,B]
        [--device cpu] [--no-memory] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench import environment, registry
from aal_bench.adapters.classification import cross_entropy
from aal_bench.adapters.method import build_method, build_update, join_companions
from aal_bench.adapters.network import build_network
from aal_bench.again.heads import Headed
from aal_bench.attacks.linf import attacking
from aal_bench.config import Run
from aal_bench.data.splits import InMemory
from aal_bench.methods.base import Batch, fp32
from aal_bench.resolve import Request, resolve
from aal_bench.training.loop import Loop, Setting

REFERENCE = "pgd"
ALLOWED = 1.15
"""Times the expected ratio; above it a row is flagged."""
CLASSES, SIZE = 10, 32


class Case(NamedTuple):
    """A method in a kind of step."""

    method: str
    settings: tuple[str, ...] = ()
    """As after ``--set``."""
    progress: float = 0.5
    own_answers: bool = False
    """Labels are what the network answers."""


CASES = {
    name: Case(name)
    for name, row in registry.METHODS.items()
    if "classification" in row.families and name not in {"fat", "las-at"}
}
CASES |= {
    "fat-early": Case("fat", progress=0.1, own_answers=True),
    "fat-late": Case("fat", progress=0.9, own_answers=True),
    "iaat-warmup": Case("iaat", progress=0.0),
    "las-at": Case("las-at", ("interval=1000000",)),
    "las-at-learns": Case("las-at", ("interval=1",)),
    "lbgat6": Case("lbgat", ("beta=6",)),
}


class Kind(NamedTuple):
    """What a pass is."""

    network: str
    training: bool
    graph: str
    """To the ``weights``, to the ``images``, or ``none``."""


class Counts(NamedTuple):
    """Passes of one step, in batches."""

    forward: dict[Kind, float]
    backward: dict[Kind, float]

    def total(self, way: str, graph: str | None = None) -> float:
        """Of all networks."""
        passes: dict[Kind, float] = getattr(self, way)
        return sum(n for kind, n in passes.items() if graph in {None, kind.graph})

    def seconds(self, units: Units) -> float:
        """What they cost."""
        forward = sum(n * units[kind][0] for kind, n in self.forward.items())
        return forward + sum(n * units[kind][1] for kind, n in self.backward.items())


Units = dict[Kind, tuple[float, float]]
"""Seconds of a forward and of a backward pass of each kind."""


class Compared(NamedTuple):
    """A step of a method."""

    taken: float
    """Its seconds."""
    expected: float
    """What its passes cost one by one, measured right after it."""
    counts: Counts


class Prepared:
    """A method's loop and its one batch, ready to take steps."""

    def __init__(self, case: Case, model: str, batch: int, device: str, folder: Path) -> None:
        settings = ("train.augment=none", f"train.batch_size={batch}", *case.settings)
        asked = Request("cifar10", case.method, model=model, device=device, settings=settings)
        self.run: Run = resolve(asked)
        torch.manual_seed(0)
        method = build_method(self.run)
        network = method.build(build_network(self.run))
        join_companions(self.run, method)
        pixels, y = images(batch)
        self.loop = Loop(
            Setting(
                run=self.run,
                model=network,
                method=method,
                update=build_update(self.run),
                make_objective=cross_entropy,
                train=InMemory(pixels, y),
                validate=None,
                folder=folder,
            )
        )
        self.device = torch.device(device)
        x = (pixels.float() / 255).to(self.device).contiguous(memory_format=torch.channels_last)
        if case.own_answers:
            y = self.answers(x)
        self.batch = Batch(
            x=x,
            targets=y.to(self.device),
            idx=torch.arange(batch, device=self.device),
            progress=case.progress,
            lr=0.0 if case.own_answers else 0.01,  # the answers stay what they are
        )
        self.loop.model.train()
        self.networks = {"model": self.loop.model, **method.extra_modules()}
        self.names = {name: signature(module) for name, module in self.networks.items()}

    def answers(self, x: Tensor) -> Tensor:
        """The network's own classes, once its batch norms know these images."""
        network = self.loop.stepper.network
        with torch.no_grad():
            for _ in range(30):
                network.train()(x)
            return network.eval()(x).argmax(1)

    def step(self) -> tuple[float, Counts]:
        """Seconds of a step, and the passes in it."""
        with counting(self.networks, self.names, len(self.batch.x)) as counts:
            taken = seconds(lambda: self.loop.take_step(self.batch), self.device)
        return taken, counts

    def compared(self) -> Compared:
        """A step, and right after it the unit costs of its passes."""
        taken, counts = self.step()
        return Compared(taken, counts.seconds(units_of(counts, self)), counts)


def images(batch: int) -> tuple[Tensor, Tensor]:
    """One batch of noise: speed does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, CLASSES, (batch,), generator=generator)


def signature(network: nn.Module) -> str:
    """Networks of one signature share their unit costs."""
    weights = sum(weight.numel() for weight in network.parameters())
    return f"{type(network).__name__}-{weights}"


@contextmanager
def counting(networks: dict[str, nn.Module], names: dict[str, str], batch: int) -> Iterator[Counts]:
    """Count the passes through whole networks, in batches, inside the context."""
    counts = Counts(Counter(), Counter())

    def watch(name: str) -> Callable[..., None]:
        def went_forward(network: nn.Module, _: Any, output: Tensor) -> None:
            # Read now: a functional call and an attack change what the weights require.
            learns = any(weight.requires_grad for weight in network.parameters())
            graph = "none" if not output.requires_grad else "weights" if learns else "images"
            kind = Kind(name, network.training, graph)
            counts.forward[kind] += len(output) / batch
            if output.requires_grad:
                output.register_hook(lambda gradient: went_backward(kind, len(gradient)))

        return went_forward

    def went_backward(kind: Kind, count: int) -> None:
        counts.backward[kind] += count / batch

    hooks = [
        network.register_forward_hook(watch(names[role])) for role, network in networks.items()
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def seconds(take: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock of a call."""
    _wait(device)
    began = time.perf_counter()
    take()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- unit costs ----------------------------------------------------------------------------------


def unit(network: nn.Module, kind: Kind, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Seconds of one forward and one backward pass of a kind."""
    x = x.detach().clone().requires_grad_(kind.graph == "images")
    losses: list[Tensor] = []

    def forward() -> None:
        losses.append(functional.cross_entropy(fp32(network(x)), y))

    learns = kind.graph == "weights"
    with attacking(network, "train" if kind.training else "eval", weight_graph=learns):
        wanted = [w for w in network.parameters() if w.requires_grad] if learns else [x]
        with gated(network, y), torch.set_grad_enabled(kind.graph != "none"):
            taken = seconds(forward, x.device)
        if kind.graph == "none":
            return taken, 0.0
        way_back = partial(torch.autograd.grad, losses[0], wanted, allow_unused=True)
        return taken, seconds(way_back, x.device)


def gated(network: nn.Module, y: Tensor) -> AbstractContextManager[Any]:
    """What a training pass of a network with class gates needs."""
    stack = ExitStack()
    if isinstance(network, Headed) and network.training:
        stack.enter_context(network.labelled(y))
        stack.enter_context(network.attacked_pass())
    return stack


def units_of(counts: Counts, prepared: Prepared) -> Units:
    """The unit costs of every kind of pass that was counted, each the mean of two."""
    homes = {name: prepared.networks[role] for role, name in prepared.names.items()}
    units: Units = {}
    for kind in sorted(counts.forward):
        x, y = prepared.batch.x, prepared.batch.targets
        tries = [unit(homes[kind.network], kind, x, y) for _ in range(2)]
        forward, backward = zip(*tries, strict=True)
        units[kind] = statistics.mean(forward), statistics.mean(backward)
    return units


# ---- memory --------------------------------------------------------------------------------------


def peak_growth(name: str, options: argparse.Namespace) -> int:
    """Bytes by which a fresh process grows during two steps."""
    asked = (name, options.model, options.batch, options.device)
    code = f"import methods as m; m.report_growth(*{asked!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def report_growth(name: str, model: str, batch: int, device: str) -> None:
    """In a process of its own: print the growth of memory during two steps."""
    with tempfile.TemporaryDirectory() as folder:
        # The peak of an attack's second step is that of its tenth, and seconds are not measured.
        short = CASES[name]._replace(settings=(*CASES[name].settings, "attack.steps=2"))
        prepared = Prepared(short, model, batch, device, Path(folder))
        on_gpu = prepared.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            # Linux: 5 resets the high-water mark, which imports and the parent's fork have raised.
            Path("/proc/self/clear_refs").write_text("5")
        peak = torch.cuda.max_memory_allocated if on_gpu else resident_peak
        before = peak()
        for _ in range(2):
            prepared.loop.take_step(prepared.batch)
        print(peak() - before)


def resident_peak() -> int:
    """Bytes of the resident set's high-water mark."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell the peak of the resident set")


# ---- the whole measurement -----------------------------------------------------------------------


class Measured(NamedTuple):
    """One row of the table."""

    seconds: float
    ratio: float
    """To `REFERENCE`."""
    expected: float
    """Of that ratio, from the passes."""
    excess: float
    """Ratio over expected ratio."""
    passes: str


def measure(names: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Measured]:
    """Take steps of every case in turn, in every round, and time every kind of pass."""
    prepared = {
        name: Prepared(CASES[name], options.model, options.batch, options.device, folder / name)
        for name in names
    }
    for one in prepared.values():
        one.step()
    rounds: list[dict[str, Compared]] = []
    for number in range(options.rounds):
        rounds.append({name: one.compared() for name, one in prepared.items()})
        print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
    return {name: _summary(name, rounds) for name in names}


def _summary(name: str, rounds: list[dict[str, Compared]]) -> Measured:
    both = [(each[name], each[REFERENCE]) for each in rounds]
    ratios = [own.taken / reference.taken for own, reference in both]
    expected = [own.expected / reference.expected for own, reference in both]
    return Measured(
        seconds=statistics.median(own.taken for own, _ in both),
        ratio=statistics.median(ratios),
        expected=statistics.median(expected),
        excess=statistics.median(a / b for a, b in zip(ratios, expected, strict=True)),
        passes=_passes(both[-1][0].counts),
    )


def _passes(counts: Counts) -> str:
    """``11 10x 1w``: forwards, backwards to the images, backwards to the weights."""
    forward, to_x, to_w = (
        f"{number:.3g}"
        for number in (
            counts.total("forward"),
            counts.total("backward", "images"),
            counts.total("backward", "weights"),
        )
    )
    return f"{forward:>4} {to_x:>4}x {to_w:>3}w"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", help="names with commas between (default: all)")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = options.methods.split(",") if options.methods else list(CASES)
    unknown = [name for name in asked if name not in CASES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}. Known: {', '.join(CASES)}")
    names = list(dict.fromkeys([REFERENCE, *asked]))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(names, options, Path(folder))
    memory = {} if options.no_memory else {name: peak_growth(name, options) for name in names}
    described = environment.describe()
    print(f"{options.model}, batch {options.batch}, {SIZE} px; {options.rounds} rounds")
    print(
        f"{described['cpu']}, {described['threads']} threads, {described['gpu'] or 'no GPU'},"
        f" torch {described['torch']}\n"
    )
    print(f"{'':14} {'s/step':>7} {'ratio':>6} {'expected':>9} {'excess':>7}  passes")
    for name, row in found.items():
        grown = ""
        if memory:
            share = memory[name] / memory[REFERENCE]
            grown = f"{memory[name] / 2**20:7.0f} MiB {share:5.2f}"
        flag = "  OVER" if row.excess > ALLOWED else ""
        print(
            f"{name:14} {row.seconds:7.3f} {row.ratio:6.2f} {row.expected:9.2f}"
            f" {row.excess:7.2f}  {row.passes} {grown}{flag}"
        )
    if options.json is not None:
        flat: dict[str, Any] = {name: round(row.ratio, 4) for name, row in found.items()}
        flat |= {f"{name}_expected": round(row.expected, 4) for name, row in found.items()}
        flat |= {f"{n}_memory": round(m / memory[REFERENCE], 4) for n, m in memory.items()}
        hardware = {key: described[key] for key in ("cpu", "threads", "gpu", "torch", "python")}
        setting = {key: getattr(options, key) for key in ("model", "batch", "rounds", "device")}
        text = json.dumps(flat | {"setting": setting, "hardware": hardware}, indent=1)
        options.json.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
