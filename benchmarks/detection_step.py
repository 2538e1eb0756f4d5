"""A detector's training steps per second, ours against MMDetection's Runner; AAL against FGSM.

Measured on a quiet AMD EPYC (two cores, two threads), torch 2.15.0, onedl-mmdetection 3.5.1,
SSD-512 ResNet-34 at 320 px, batch 8, eleven rounds: standard 1.09x MMDetection's Runner with the
loading of the data (middle half 1.04 to 1.12), 1.12x without (1.10 to 1.13): our weights and images
lie in channels_last. aal-fgsm 0.998x fgsm on the same gated network (0.984 to 0.998).

Both questions are asked in one process, in turn, a few steps each, on the embedded scenes:

whole step      `standard` through our path (its data set, hooks and record) against
                `Runner.from_cfg` of MMDetection's own config in ``tasks/detection``, with its own
                detector and data set and without our hooks; fp32 both. Once with the loading of
                the data, once on one batch.
aal-fgsm        against `fgsm` on the same network, AAL's attention gate in it, on one batch, in
                the precision that the hardware has

Both Runners do all that they do up to the first epoch's first step; from there `Loop` takes the
steps: data, hooks, forward, backward, optimiser. What an epoch's end costs (a checkpoint, a row of
metrics) is not in them. Ratios are medians over rounds of ratios within one round, so that a
machine whose speed drifts does not decide; beside them is the range of the middle half.

    python benchmarks/detection_step.py [--size 320] [--batch 8] [--workers N] [--steps N]
        [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from aal_bench import environment, registry
from aal_bench.adapters.method import build_method, build_update
from aal_bench.adapters.network import build_network
from aal_bench.config import Run
from aal_bench.data import scenes
from aal_bench.detection import mmconfig
from aal_bench.detection import register as register
from aal_bench.detection.adversarial import Adversarial
from aal_bench.detection.layouts import find
from aal_bench.detection.resize import resize
from aal_bench.detection.train import train
from aal_bench.methods.base import Method
from aal_bench.resolve import Request, resolve

TASK, MODEL = "scenes", "ssd512-resnet34"
"""The data whose config is raced, and its network."""
LIMITS = {"standard_over_mmdetection": 0.95, "aal_fgsm_over_fgsm": 0.9}
"""Least speeds, as shares, on a machine that does nothing else."""


class Ready(Exception):
    """A Runner stands at its first step: no error, it carries the loop out of `Runner.train`."""

    def __init__(self, loop: Loop) -> None:
        super().__init__("ready")
        self.loop = loop


@LOOPS.register_module()
class Loop(EpochBasedTrainLoop):
    """MMEngine's loop, whose steps are taken from outside."""

    def run(self) -> Any:
        """Begin the first epoch, and hand the loop over."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self.batches = iter(self.dataloader)
        self.kept = next(self.batches)
        raise Ready(self)

    def step(self) -> None:
        """Load a batch and train on it."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.dataloader)
            batch = next(self.batches)
        self.run_iter(self.iter, batch)

    def again(self) -> None:
        """Train on the first batch."""
        self.run_iter(self.iter, self.kept)


class Setting(NamedTuple):
    """What the options say."""

    size: int
    batch: int
    workers: int
    steps: int
    rounds: int


class GatedFGSM(registry.load("aal_bench.methods.fgsm:FGSM")):
    """FGSM on the network that AAL trains: the gate is there, the selective attack is not."""

    def build(self, model: nn.Module) -> nn.Module:
        """Put AAL's gate in."""
        selective = registry.load("aal_bench.methods.aal:AALFGSM")
        return selective(selective.Options(), self.threat).build(model)


def loop_of(start: Callable[[], Any]) -> Loop:
    """The loop of a Runner that `start` starts, in silence."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            start()
        except Ready as ready:
            return ready.loop
    raise RuntimeError("the Runner never came to its loop")


def theirs(setting: Setting, folder: Path) -> Loop:
    """MMDetection's Runner on the config as it lies in ``tasks/detection``."""
    config = mmconfig.plain(MODEL, TASK)
    resize(config, setting.size)
    config.train_dataloader.dataset.pipeline = config.train_pipeline
    config.model.type = "SingleStageDetector"
    config.custom_hooks = []
    config.train_dataloader.dataset.data_root = str(scenes.ensure())
    config.train_dataloader.batch_size = setting.batch
    config.train_dataloader.num_workers = setting.workers
    config.train_dataloader.persistent_workers = setting.workers > 0
    config.test_dataloader = config.test_evaluator = config.test_cfg = None
    config.train_cfg.type = "Loop"
    config.work_dir = str(folder)
    return loop_of(lambda: Runner.from_cfg(config).train())


def ours(setting: Setting, folder: Path, name: str, precision: str | None = None) -> Loop:
    """The Runner of `aal-bench run scenes --method NAME`."""
    asked = (f"data.size={setting.size}", "train.validation=0")
    request = Request(TASK, batch_size=setting.batch, precision=precision, settings=asked)
    gated = name == "fgsm-gated"
    run = resolve(request._replace(method="fgsm" if gated else name))
    method = _method(run, gated)
    model = method.build(build_network(run))
    data = find(run.task, None)
    config = mmconfig.resolved(run, data.train, data.validation, data.test, folder / "mmengine")
    config.train_dataloader.num_workers = setting.workers
    config.train_cfg.type = "Loop"
    adversarial = Adversarial(method, build_update(run), run.precision == "bf16", True)
    return loop_of(lambda: train(run, config, model, adversarial, folder))


def _method(run: Run, gated: bool) -> Method:
    method = build_method(run)
    return GatedFGSM(method.options, method.threat) if gated else method


def fed(loop: Loop) -> tuple[Any, ...]:
    """What the images of a loop's batches are, and what is done to them."""
    images = loop.kept["inputs"]
    dataset: Any = loop.dataloader.dataset
    pipeline = getattr(dataset, "dataset", dataset).pipeline.transforms
    return len(dataset), len(images), images[0].shape, [repr(one) for one in pipeline]


def seconds(take: Callable[[], None], steps: int) -> float:
    """Of one step, of so many."""
    began = time.perf_counter()
    for _ in range(steps):
        take()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def race(setting: Setting, steps: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of a step of each in every round, the first to go changing."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for take in steps.values():
        take()
    for number in range(setting.rounds):
        order = list(steps.items())
        for name, take in order if number % 2 else order[::-1]:
            times[name].append(seconds(take, setting.steps))
        print(f"{' / '.join(steps)}: {number + 1}/{setting.rounds}", file=sys.stderr, flush=True)
    return times


def measure(setting: Setting) -> dict[str, list[float]]:
    """Seconds of every kind of step in every round."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mmdet = theirs(setting, root / "theirs")
        own = ours(setting, root / "standard", "standard", "fp32")
        if fed(mmdet) != fed(own):
            raise RuntimeError(f"not the same question: {fed(mmdet)} and {fed(own)}")
        times = race(setting, {"mmdetection": mmdet.step, "standard": own.step})
        fixed = {"mmdetection, one batch": mmdet.again, "standard, one batch": own.again}
        times |= race(setting, fixed)
        del mmdet, own, fixed
        plain = ours(setting, root / "fgsm", "fgsm-gated")
        selective = ours(setting, root / "aal", "aal-fgsm")
        times |= race(setting, {"fgsm, gated": plain.again, "aal-fgsm": selective.again})
    return times


def speeds(times: dict[str, list[float]], ours: str, theirs: str) -> tuple[float, float, float]:
    """How fast `ours` is as a multiple of `theirs`: median and quartiles over rounds."""
    ratios = [b / a for a, b in zip(times[ours], times[theirs], strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="of each, in a round")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = {key: value for key, value in vars(options).items() if key in Setting._fields}
    setting = Setting(**asked)
    times = measure(setting)
    pairs = {
        "standard_over_mmdetection": ("standard", "mmdetection"),
        "standard_over_mmdetection_one_batch": ("standard, one batch", "mmdetection, one batch"),
        "aal_fgsm_over_fgsm": ("aal-fgsm", "fgsm, gated"),
    }
    ratios = {name: speeds(times, *pair) for name, pair in pairs.items()}
    described = environment.describe()
    print(f"{MODEL}, {setting.size} px, batch {setting.batch}, loader workers: {setting.workers};")
    print(f"{setting.rounds} rounds of {setting.steps} steps of each")
    print(f"{described['cpu']}, {described['threads']} threads, torch {described['torch']},")
    print(f"onedl-mmdetection {described['packages']['onedl-mmdetection']}; fgsm and aal-fgsm in")
    print(f"{resolve(Request(TASK)).precision}, standard and MMDetection in fp32\n")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:24} {setting.batch / median:7.2f} images/s  {median:7.3f} s/step")
    print()
    for name, (middle, low, high) in ratios.items():
        print(f"{name:36} {middle:.3f}  (middle half {low:.3f} to {high:.3f})")
    if options.json is not None:
        hardware = {key: described[key] for key in ("cpu", "threads", "gpu", "torch", "python")}
        flat = {name: found[0] for name, found in ratios.items()}
        options.json.write_text(json.dumps(flat | {"hardware": hardware}, indent=1) + "\n")
    sys.exit(int(any(ratios[name][0] < least for name, least in LIMITS.items())))


if __name__ == "__main__":
    main()
