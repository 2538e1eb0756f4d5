"""AutoAttack in float32 against its search in bfloat16 with confirmation: time and verdicts.

Measured on an AMD EPYC (bf16 instructions, one thread, other processes beside it), torch 2.15.0,
512 real test images of CIFAR-10, Linf 8/255, batches of 512:

wrn-10-2 (rs-fgsm, five epochs): 806 s of CPU time against 367 s, 2.2 times as fast (2.6 by the
wall clock); AutoAttack accuracy 21.29 % in both, no verdict differs.
wrn-10-1 (pgd, five epochs): 284 s against 183 s, 1.6 times; 18.75 % in both, no verdict differs.
So small a network is too little of the work: a third of FAB-T is its projections, in either suite.

Images in doubt cost 1 % to 2 % more forwards under APGD, none under FAB-T and Square. Of the
wrn-10-1, APGD in plain bfloat16 left 100 images where 96 stand in float32; with the last layer in
float32, 98; with doubts repeated besides, the same 96.

APGD-CE and APGD-T alone, other wrn-10-1 (five epochs), CPU time: `aal-fgsm` 1.4 times as fast, one
image of 512 stands in float32 and falls in the search; `cas` 0.87 times, one image differs either
way: its gates turn over in bfloat16, so nearly every image is in doubt and attacked twice.

``torch.compile`` is not used: a forward of 128 images took 11.7 ms in eager bfloat16 and 12.8 ms
compiled (wrn-10-1), of 64 images 45.0 ms and 44.1 ms (wrn-10-4), and a graph for another kind of
size takes 3 to 9 s to compile. Weights cast and laid out beforehand: the same times within a tenth.

Both suites attack the same images of the same checkpoint in one process, stage by stage in turn,
each on its own survivors. The time of a stage is measured twice, as wall-clock and as the process's
CPU time; the latter is what counts on a machine that others use meanwhile (with one thread the
two agree on an idle one).

    python benchmarks/search.py --checkpoint FILE --data-dir DIR [--task TASK] [--images N]
                                [--json FILE]

`FILE` is a ``model.safetensors`` of a run, which says itself what it is; `DIR` holds the task's
images in any layout that ``aal-bench run`` takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

from torch import nn

from aal_bench import environment
from aal_bench.adapters.classification import Classification
from aal_bench.adapters.method import build_method
from aal_bench.adapters.network import build_network
from aal_bench.config import Choice, Run
from aal_bench.evidence import Evidence
from aal_bench.grid import grid
from aal_bench.models import weights
from aal_bench.registry import AUTOATTACK, SEARCHED
from aal_bench.resolve import Request, resolve

TASK = Path(__file__).with_name("cifar10-512.toml")
HEAD = ("stage", "attacked", "stand", "forwards", "backwards", "wall, s", "CPU, s")


class Spent(NamedTuple):
    """What a stage took."""

    wall: float
    cpu: float


def prepared(options: argparse.Namespace) -> tuple[Classification, nn.Module]:
    """The images, and the checkpoint's network as the evaluation feeds it."""
    told = weights.describe(options.checkpoint)
    assert told is not None, f"{options.checkpoint}: does not describe itself"
    run: Run = resolve(Request(str(options.task), model=told.model, limit_eval=options.images))
    run = run.model_copy(update={"method": Choice(name=told.method, options=told.options)})
    model = build_method(run).build(build_network(run))
    weights.load_into(model, weights.read(options.checkpoint), options.checkpoint, told.model)
    adapter = Classification(run, options.data_dir)
    return adapter, model.to(run.device).eval().requires_grad_(False)


def attack(adapter: Classification, model: nn.Module, name: str, evidence: Evidence) -> Spent:
    """Run one stage on what stands before it."""
    wall, cpu = time.perf_counter(), time.process_time()
    adapter.run_stage(name, model, evidence, lambda *_: None, lambda *_: None)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def row(name: str, evidence: Evidence, spent: Spent) -> tuple[str, ...]:
    """One line of the table."""
    attacked = evidence.column(name, "attacked")
    passes = [evidence.column(name, way)[attacked].mean() for way in ("forwards", "backwards")]
    stand = evidence.column(name, "ok").sum()
    told = (*passes, spent.wall, spent.cpu)
    return (name, f"{attacked.sum()}", f"{stand}", *(f"{value:.1f}" for value in told))


def ratios(evidence: Evidence, spent: dict[str, Spent]) -> dict[str, float]:
    """How many times faster the search is, and how far its verdicts are from the plain ones."""
    found: dict[str, float] = {}
    for clock in Spent._fields:
        took = [sum(getattr(spent[name], clock) for name in suite) for suite in SUITES]
        found[f"plain_over_searched_{clock}"] = took[0] / took[1]
    for exact, searched in zip(*SUITES, strict=True):
        found[f"plain_over_searched_cpu_{exact}"] = spent[exact].cpu / spent[searched].cpu
    plain, fast = (evidence.robust(suite) for suite in SUITES)
    return found | {
        "images": len(evidence),
        "clean": float(evidence.clean_correct().mean()),
        "plain_robust": float(plain.mean()),
        "searched_robust": float(fast.mean()),
        "points": 100 * float(fast.mean() - plain.mean()),
        "stands_only_in_search": int((fast & ~plain).sum()),
        "stands_only_in_plain": int((plain & ~fast).sum()),
    }


SUITES = (AUTOATTACK, SEARCHED)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--task", type=Path, default=TASK)
    parser.add_argument("--images", type=int, help="(default: all of the task's)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    adapter, model = prepared(options)
    evidence, spent = adapter.new_evidence(), {}
    attack(adapter, model, "clean", evidence)
    for name in (name for pair in zip(*SUITES, strict=True) for name in pair):
        spent[name] = attack(adapter, model, name, evidence)
        print(" ".join(row(name, evidence, spent[name])), file=sys.stderr, flush=True)
    described, found = environment.describe(), ratios(evidence, spent)
    print(f"{adapter.run.model.name}, {adapter.run.method.name}, {adapter.task.title}")
    print(f"{described['cpu']}, {described['threads']} threads, torch {described['torch']}\n")
    print(grid(HEAD, [row(name, evidence, spent[name]) for suite in SUITES for name in suite]))
    print()
    for name, value in found.items():
        print(f"{name:32} {value:.4g}")
    if options.json is not None:
        keys = ("cpu", "threads", "gpu", "torch", "python", "packages")
        hardware = {key: described[key] for key in keys}
        model_of = {"model": adapter.run.model.name, "method": adapter.run.method.name}
        text = json.dumps(found | model_of | {"hardware": hardware}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
