"""Every classification method at one budget: clean, PGD-20 and APGD accuracy, in one table.

Each method is one ``aal-bench run`` in a folder of its own, so that a stopped table goes on where
it was, in the middle of a method included. Same network, training images, epochs, schedule, seed
and test images for all; what differs is the method, and the passes that it costs. A table of small
budgets is no claim about any method: it shows that all of them run, and what they cost.

    python benchmarks/all_methods.py --data-dir DIR --out DIR [--methods a,b]

`DIR` of the data holds CIFAR-10 in any layout that ``aal-bench run cifar10`` takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from aal_bench import environment, registry, results
from aal_bench.grid import grid

TASK = Path(__file__).with_name("cifar10-512.toml")
TRAINING_IMAGES = 10_000
HEAD = (
    *("method", "clean, %", "PGD-20, %", "APGD-CE, %", "fast, %", "95 %"),
    *("passes", "training, s", "commit"),
)


def methods() -> list[str]:
    """Every registered method of classification, in the registry's order."""
    return [name for name, row in registry.METHODS.items() if "classification" in row.families]


def run(name: str, options: argparse.Namespace) -> bool:
    """Run one method, or finish what an earlier call began; False: it failed."""
    command = [sys.executable, "-m", "aal_bench.cli", "run", str(TASK), "--method", name]
    command += ["--data-dir", str(options.data_dir), "--limit-train", str(options.limit_train)]
    command += ["--seed", str(options.seed), "--out", str(options.out / name), "--resume"]
    done = subprocess.run(command, check=False)
    return done.returncode == 0


def row(name: str, folder: Path) -> tuple[str, ...]:
    """One line of the table, from the run's record; dashes where there is none."""
    path = folder / "result.json"
    if not path.exists():
        return (name, *["-"] * (len(HEAD) - 1))
    result = results.read(path)
    training, metrics = result.training, result.metrics
    assert metrics is not None
    assert training is not None, f"{path}: an evaluation, not a run"
    assert training.passes is not None
    assert metrics.robust is not None
    robust = metrics.robust
    stages = metrics.stages
    shares = [100 * metrics.clean.value]
    shares += [100 * stages[stage].value for stage in ("pgd-20", "apgd-ce")]
    return (
        name,
        *(f"{share:.1f}" for share in (*shares, 100 * robust.value)),
        "[{:.1f}, {:.1f}]".format(*(100 * bound for bound in robust.ci95)),
        f"{training.passes.forward:.1f} + {training.passes.backward:.1f}",
        f"{training.wall_seconds:.0f}",
        (training.code.commit or "-")[:8],
    )


def main() -> None:
    """Run what is missing, then print the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(methods()), help="a,b (default: all)")
    parser.add_argument("--limit-train", type=int, default=TRAINING_IMAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-table", action="store_true", help="Run nothing.")
    options = parser.parse_args()
    names = options.methods.split(",")
    if unknown := sorted(set(names) - set(methods())):
        parser.error(f"no methods of classification: {', '.join(unknown)} (aal-bench list methods)")
    failed = [name for name in names if not options.only_table and not run(name, options)]
    described = environment.describe()
    rows = [row(name, options.out / name) for name in names]
    print(grid(HEAD, rows))
    print(f"\n{described['cpu']}, {described['threads']} threads, torch {described['torch']}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
