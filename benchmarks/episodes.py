"""Test episodes per second, ours against learn2learn's plain loop of `Taskset.sample()`.

Measured on an AMD EPYC (two cores), torch 2.15.0, three rounds, in episodes per second:
prototype 1-shot 47.8 plain, 416.6 ours (8.6x), 5-shot 41.2, 345.0 (8.2x); logistic regression
1-shot 41.6, 191.4 (4.7x), 5-shot 37.4, 220.5 (6.0x). A list of 10,000 1-shot episodes takes 7.7 s
with prototypes and 39.6 s with logistic regression.

Both answer 5-way episodes with 15 queries of each class on the same noise, of the size of
Omniglot's test split (1,692 classes of 20 images, 28 px), with the same CNN4 and the same head, in
one process, in turn. A round draws its episodes, extracts features and classifies; nothing is kept
between rounds. Support images have no augmented copies.

plain   learn2learn's tutorial loop: `MetaDataset` over a dataset with torchvision's transforms,
        `Taskset` with NWays, KShots, LoadData, RemapLabels and ConsecutiveLabels, `sample()`,
        `partition_task`, one forward for the episode's images, the head
ours    positions drawn by `Taskset`, the split's features extracted once in batches, episodes that
        look them up, the head

A list of 2,000 episodes, the default of our tasks, is set against 100 of plain's; the last lines
are the seconds of a list of 10,000. Ratios are medians over rounds of ratios within one round.

    python benchmarks/episodes.py [--rounds N] [--episodes N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench import environment, registry
from aal_bench.config import Episodes, Normalisation
from aal_bench.data.splits import InMemory
from aal_bench.fewshot.answer import answers
from aal_bench.fewshot.heads.base import Head
from aal_bench.fewshot.sampling import Sampler
from aal_bench.methods.base import Options
from aal_bench.methods.episodes import episode_labels
from aal_bench.models.build import build
from aal_bench.toolkits import learn2learn_import

CLASSES, EACH, SIZE = 1692, 20, 28
WAYS, QUERIES = 5, 15
PLAIN = 100
"""Episodes of the plain loop in a round."""
LONG = 10_000
LIMIT = 180.0
"""Seconds that a list of `LONG` 1-shot episodes may take on two cores."""
HEADS = ("prototype", "logistic")


def noise() -> InMemory:
    """A split of Omniglot's size: speed does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (CLASSES * EACH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator
    )
    return InMemory(pixels, torch.arange(CLASSES).repeat_interleave(EACH))


def head_of(name: str) -> Head:
    """A head with its default options."""
    return registry.load(registry.find("head", name).row.target)(Options())


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The split as torchvision's datasets are: one image at a time, transformed."""

    def __init__(self, split: InMemory) -> None:
        from torchvision.transforms import v2

        self.images = split.pixels(torch.arange(len(split))).permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        self.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(self.images[position]), self.labels[position]


def plain_tasks(split: InMemory, shots: int) -> Any:
    """learn2learn's tasks with its own transforms."""
    from learn2learn.data import MetaDataset, Taskset
    from learn2learn.data import transforms as t

    labels = split.labels.tolist()
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    data = MetaDataset(
        Pictures(split), indices_to_labels=dict(enumerate(labels)), labels_to_indices=members
    )
    chain = [
        t.NWays(data, WAYS),
        t.KShots(data, shots + QUERIES),
        t.LoadData(data),
        t.RemapLabels(data),
        t.ConsecutiveLabels(data),
    ]
    return Taskset(data, chain, num_tasks=-1)


def plain(model: Any, head: Head, tasks: Any, shots: int, count: int) -> list[float]:
    """Accuracies of `count` episodes by the plain loop."""
    from learn2learn.data.utils import partition_task

    found = []
    with torch.no_grad():
        for _ in range(count):
            x, y = tasks.sample()
            (support, y_support), (query, y_query) = partition_task(x, y, shots=shots)
            features = model.features(torch.cat([support, query]))
            readout = head.fit(features[: len(support)], y_support, WAYS, model)
            logits = readout(features[len(support) :])
            found.append(float((logits.argmax(1) == y_query).double().mean()))
    return found


def ours(model: nn.Module, head: Head, split: InMemory, shots: int, count: int) -> list[float]:
    """Accuracies of `count` episodes by the harness, the list drawn anew."""
    config = Episodes(ways=WAYS, shots=shots, queries=QUERIES, count=count)
    listed = Sampler(split.labels, WAYS, shots, QUERIES).draw(count, seed=0)
    labels = episode_labels(WAYS, QUERIES)
    return [
        float((logits.argmax(1) == labels).double().mean())
        for logits in answers(model, head, split, listed, config, torch.device("cpu"))
    ]


def seconds(work: Callable[[], list[float]]) -> float:
    """Time of one call, whose answers must be those of guessing: the images are noise."""
    began = time.perf_counter()
    found = work()
    taken = time.perf_counter() - began
    if abs(float(np.mean(found)) - 1 / WAYS) > 0.05:
        raise RuntimeError(f"accuracy {np.mean(found):.3f} on noise: the episodes are not as meant")
    return taken


def measure(rounds: int, episodes: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Episodes per second of both, per head and shots, and the seconds of long lists."""
    learn2learn_import.repair()
    torch.manual_seed(0)
    model = build("cnn4", 5, SIZE, Normalisation()).eval().requires_grad_(False)
    split, rates, long = noise(), {}, {}
    for shots in (1, 5):
        tasks = plain_tasks(split, shots)
        for name in HEADS:
            head, key = head_of(name), f"{name} {shots}-shot"
            plain(model, head, tasks, shots, 2)
            rates[f"plain {key}"], rates[f"ours {key}"] = [], []
            for number in range(rounds):
                slow = seconds(lambda: plain(model, head, tasks, shots, PLAIN))  # noqa: B023
                fast = seconds(lambda: ours(model, head, split, shots, episodes))  # noqa: B023
                rates[f"plain {key}"].append(PLAIN / slow)
                rates[f"ours {key}"].append(episodes / fast)
                print(f"{key}: round {number + 1}/{rounds}", file=sys.stderr, flush=True)
    for name in HEADS:
        head = head_of(name)
        long[f"{name} 1-shot"] = seconds(lambda: ours(model, head, split, 1, LONG))  # noqa: B023
    return rates, long


def main() -> None:
    """Measure and print; exit 1 below 3x or above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates, long = measure(options.rounds, options.episodes)
    keys = [key.removeprefix("ours ") for key in rates if key.startswith("ours ")]
    ratios = {
        key: statistics.median(
            fast / slow
            for fast, slow in zip(rates[f"ours {key}"], rates[f"plain {key}"], strict=True)
        )
        for key in keys
    }
    described = environment.describe()
    print(f"5-way, 15 queries of each class, CNN4, {SIZE} px; {options.rounds} rounds")
    print(f"{described['cpu']}, {described['threads']} threads, torch {described['torch']}\n")
    print(f"{'head':18} {'plain':>10} {'ours':>10}  episodes/s   ratio")
    for key in keys:
        slow, fast = (statistics.median(rates[f"{whose} {key}"]) for whose in ("plain", "ours"))
        print(f"{key:18} {slow:10.1f} {fast:10.1f}              {ratios[key]:5.1f}")
    print()
    for key, taken in long.items():
        print(f"{LONG:,} episodes, {key}: {taken:.1f} s")
    if options.json is not None:
        hardware = {key: described[key] for key in ("cpu", "threads", "gpu", "torch", "python")}
        flat = {f"{key.replace(' ', '_')}_over_plain": ratio for key, ratio in ratios.items()}
        flat |= {f"{key.replace(' ', '_')}_{LONG}_seconds": taken for key, taken in long.items()}
        options.json.write_text(json.dumps(flat | {"hardware": hardware}, indent=1) + "\n")
    sys.exit(int(min(ratios.values()) < 3 or max(long.values()) > LIMIT))


if __name__ == "__main__":
    main()
