"""Images per second of one adversarial training step, ours against a plain torchattacks loop.

Measured on an AMD EPYC (two cores, bf16 instructions), torch 2.15.0, five rounds:
plain 6.1 images/s, pgd 16.6 (2.71x plain), pgd-gated 15.3, aal-pgd 14.0 (0.92x gated, 0.85x pgd);
peak memory 0.60x plain. Nine tenths of the pgd step are bf16 convolutions of oneDNN, which on this
processor are 2.4 times as fast as its fp32 ones: they bound the ratio.

Four steps are timed in one process, interleaved, on ResNet-18 at 32 px and batch 128:

plain       fp32, contiguous, `torchattacks.PGD` + `loss.backward()` + SGD, as tutorials write it
pgd         our loop's step with method `pgd`: bf16 autocast where the hardware has it,
            channels_last, input-only gradients, fused SGD
pgd-gated   the same on the network with AAL's attention gate
aal-pgd     our loop's step with method `aal-pgd` on that gated network

Ratios are medians over rounds of ratios within one round, so that a machine whose speed drifts
does not decide. Memory is the growth of the resident set during the first steps of a process of
its own, above what it held once network and data were there.

    python benchmarks/training_step.py [--rounds N] [--model resnet18] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from aal_bench import environment, registry
from aal_bench.adapters.classification import cross_entropy
from aal_bench.config import Choice
from aal_bench.data.splits import InMemory
from aal_bench.methods.base import Batch, Method, Threat
from aal_bench.methods.updates import Plain, PlainOptions
from aal_bench.models.build import build
from aal_bench.resolve import Request, resolve
from aal_bench.training.loop import Loop, Setting

BATCH, SIZE, STEPS = 128, 32, 10
EPS, ALPHA = 8 / 255, 2 / 255
STEP_NAMES = ("plain", "pgd", "pgd-gated", "aal-pgd")
Step = Callable[[], None]


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of noise: speed does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return x, torch.randint(0, 10, (BATCH,), generator=generator)


def plain_step(model_name: str) -> Step:
    """The loop of the tutorials."""
    import torchattacks

    run = resolve(Request("cifar10"))
    net = build(model_name, 10, SIZE, run.task.normalisation).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    attack = torchattacks.PGD(net, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=True)
    pixels, y = images()
    x = pixels.float() / 255

    def step() -> None:
        x_adv = attack(x, y)
        optimizer.zero_grad()
        functional.cross_entropy(net(x_adv), y).backward()
        optimizer.step()

    return step


class GatedPGD(registry.load("aal_bench.methods.pgd:PGD")):
    """PGD on the network that AAL trains: the gate is there, the selective attack is not."""

    def build(self, model: nn.Module) -> nn.Module:
        selective = registry.load("aal_bench.methods.aal:AALPGD")
        return selective(selective.Options(), self.threat).build(model)


def our_step(name: str, model_name: str, folder: Path) -> Step:
    """One `take_step` of the real loop, with the real method."""
    run = resolve(Request("cifar10", model=model_name))
    run = run.model_copy(update={"method": Choice(name=name)})
    cls = GatedPGD if name == "pgd-gated" else registry.load(registry.method_row(name).target)
    method: Method = cls(cls.Options(), Threat(EPS, ALPHA, STEPS))
    net = method.build(build(model_name, 10, SIZE, run.task.normalisation))
    pixels, y = images()
    loop = Loop(
        Setting(
            run=run,
            model=net,
            method=method,
            update=Plain(PlainOptions()),
            make_objective=cross_entropy,
            train=InMemory(pixels, y),
            validate=None,
            folder=folder,
        )
    )
    loop.model.train()
    x = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
    batch = Batch(x=x, targets=y, idx=torch.arange(BATCH), lr=0.01)
    return lambda: loop.take_step(batch)


def make(name: str, model_name: str, folder: Path) -> Step:
    """The step of that name."""
    torch.manual_seed(0)
    return plain_step(model_name) if name == "plain" else our_step(name, model_name, folder)


def seconds(step: Step) -> float:
    """Wall-clock of one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def peak_growth(name: str, model_name: str) -> int:
    """Bytes by which a fresh process grows during two steps."""
    code = f"import training_step as t; t.report_growth({name!r}, {model_name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def report_growth(name: str, model_name: str) -> None:
    """In a process of its own: print the growth of the resident set during two steps."""
    with tempfile.TemporaryDirectory() as folder:
        step = make(name, model_name, Path(folder))
        # Linux: 5 resets the high-water mark, which imports and the parent's fork have raised.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_peak()
        step()
        step()
        print(resident_peak() - before)


def resident_peak() -> int:
    """Bytes of the resident set's high-water mark."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell the peak of the resident set")


def measure(model_name: str, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of every step in every round, and each step's memory."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: make(name, model_name, Path(folder)) for name in STEP_NAMES}
        for step in steps.values():
            step()
        times: dict[str, list[float]] = {name: [] for name in STEP_NAMES}
        for number in range(rounds):
            for name, step in steps.items():
                times[name].append(seconds(step))
            print(f"round {number + 1}/{rounds}", file=sys.stderr, flush=True)
    memory = {name: peak_growth(name, model_name) for name in ("plain", "pgd", "aal-pgd")}
    return times, memory


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of how many times faster `fast` is than `slow`."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times, memory = measure(options.model, options.rounds)
    ratios = {
        "pgd_over_plain": ratio(times, "plain", "pgd"),
        "aal_pgd_over_pgd_gated": ratio(times, "pgd-gated", "aal-pgd"),
        "aal_pgd_over_pgd": ratio(times, "pgd", "aal-pgd"),
        "peak_memory_over_plain": max(memory["pgd"], memory["aal-pgd"]) / memory["plain"],
    }
    described = environment.describe()
    print(f"{options.model}, batch {BATCH}, {SIZE} px, PGD-{STEPS}; {options.rounds} rounds")
    print(f"{described['cpu']}, {described['threads']} threads, torch {described['torch']}\n")
    for name, values in times.items():
        median = statistics.median(values)
        grown = f"{memory[name] / 2**20:6.0f} MiB" if name in memory else ""
        print(f"{name:10} {BATCH / median:7.1f} images/s  {median:7.2f} s/step  {grown}")
    print()
    for name, value in ratios.items():
        print(f"{name:24} {value:.2f}")
    if options.json is not None:
        hardware = {key: described[key] for key in ("cpu", "threads", "gpu", "torch", "python")}
        options.json.write_text(json.dumps(ratios | {"hardware": hardware}, indent=1) + "\n")


if __name__ == "__main__":
    main()
