"""RobustBench's published rows, and those nearest to a model under the same threat. No torch.

``leaderboards/reported/robustbench-<dataset>-<threat>.json`` restate RobustBench's ``model_info``
(Croce et al. 2021). A row is comparable only under exactly the same norm and eps: rows published
at "0.031" are no neighbours of a model attacked at 8/255.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from functools import cache
from math import inf, log2
from pathlib import Path
from typing import Any, NamedTuple

from aal_bench.config import Task
from aal_bench.paths import data_folder
from aal_bench.threat import format_fraction, parse_fraction

_SIZES = {"resnet18": 11.2e6, "preactresnet18": 11.2e6, "resnet20": 0.27e6, "resnet32": 0.46e6}
_SIZES |= {"resnet110": 1.7e6, "densenet121": 7.0e6, "resnet50": 25e6}
"""Parameters, roughly: they order neighbours and are printed nowhere."""
_SAME = {
    "wrn28": "wrn28x10",
    "cnn464": "cnn4",
    "32323232": "cnn432",
    "646464": "cnn4",
    "646465": "cnn4",
}
"""Keys of few-shot networks under other names: learn2learn's, and the papers' lists of filters (of
which one is short of a layer and one misprinted)."""


BROKEN = 0.1
"""Below this AutoAttack accuracy a row is a defence that fell, or standard training."""


class Row(NamedTuple):
    """One published model; accuracies are fractions in [0, 1]."""

    entry: str
    """Its name in RobustBench's zoo: ``Rice2020Overfitting``."""
    architecture: str
    eps: str | None
    """As published; None for most corruption rows."""
    clean: float
    robust: float
    """AutoAttack accuracy."""
    external: float | None
    """Best known accuracy under another evaluation, where there is one."""
    additional_data: bool
    """As flagged there; generated data often counts as none."""
    unreliable: bool
    """AutoAttack's own checks cast doubt on the number."""
    venue: str
    link: str


class Neighbours(NamedTuple):
    """The nearest rows, or why there are none."""

    rows: list[Row]
    reason: str = ""
    """Empty when there are rows."""


def nearest(
    task: Task,
    architecture: str,
    parameters: int | None = None,
    n: int = 3,
    clean: float | None = None,
) -> Neighbours:
    """The published models most like this one, on the task's data set and under its threat.

    Same architecture first; then rows that still stand (`BROKEN`), without additional data, of
    similar size (to a factor of about 1.4), of similar clean accuracy, and among equals the most
    robust.

    Args:
        task: its ``paper.robustbench`` names the data set there.
        architecture: ``resnet18``, ``wrn-34-10``, ``WideResNet-34-10``, ...
        parameters: count of the model's own; None: estimated from the architecture's name.
        n: at most so many rows.
        clean: the model's clean accuracy in [0, 1], if known.
    """
    if task.family == "fewshot":
        return Neighbours([], "RobustBench has no few-shot")
    if task.family == "detection":
        return Neighbours([], "RobustBench has no detectors")
    dataset = task.paper.get("robustbench")
    if dataset is None:
        return Neighbours([], f"RobustBench has no data set for task {task.name}")
    published = rows(dataset, task.threat.norm)
    same = [row for row in published if row.eps and parse_fraction(row.eps) == task.threat.eps]
    if not same:
        others = sorted({row.eps for row in published if row.eps})
        ranks = f"its rows are at {', '.join(others)}" if others else "it has no such rows"
        eps = format_fraction(task.threat.eps)
        return Neighbours([], f"RobustBench, {dataset} {task.threat.norm}: none at {eps}; {ranks}")
    own_size = parameters or size(architecture)

    def distance(row: Row) -> tuple[Any, ...]:
        return (
            not same_architecture(row.architecture, architecture),
            row.robust < BROKEN or row.unreliable,
            row.additional_data,
            _apart(size(row.architecture), own_size),
            abs(row.clean - clean) if clean is not None else 0.0,
            -row.robust,
            row.entry,
        )

    return Neighbours(sorted(same, key=distance)[:n])


def rows(dataset: str, threat: str) -> tuple[Row, ...]:
    """Every published row of a data set (``cifar10``) and threat (``Linf``); () where none."""
    path = data_folder("leaderboards") / "reported" / f"robustbench-{dataset}-{threat}.json"
    return _read(path) if path.is_file() else ()


def same_architecture(a: str, b: str) -> bool:
    """Whether two names mean one network: ``wrn-34-10``, ``WRN-34-10`` and ``WideResNet-34-10``."""
    return _key(a) == _key(b)


def fraction(printed: str | None) -> float | None:
    """A printed percentage as a fraction in [0, 1]: "95.46" -> 0.9546, rounded once."""
    return None if printed is None else float(Decimal(printed) / 100)


def size(architecture: str) -> float | None:
    """About how many parameters a named network has; None: not known."""
    wide = re.fullmatch(r"wrn(\d+)x(\d+)", _key(architecture))
    if wide is None:
        return _SIZES.get(_key(architecture))
    depth, width = int(wide[1]), int(wide[2])
    if (depth - 4) % 6:
        return None
    blocks, total, channels = (depth - 4) // 6, 3 * 16 * 9.0, 16
    for wider in (16 * width, 32 * width, 64 * width):
        total += 9 * channels * wider + channels * wider + (2 * blocks - 1) * 9 * wider**2
        channels = wider
    return total


def _apart(a: float | None, b: float | None) -> float:
    # Half powers of two: 11.17 and 11.18 million parameters are the same size.
    return inf if a is None or b is None else abs(round(2 * log2(a / b)))


def _key(name: str) -> str:
    text = name.lower().replace("wideresnet", "wrn").replace(" ", "")
    wide = re.fullmatch(r"wrn-?(\d+)-(\d+)", text)
    key = f"wrn{wide[1]}x{wide[2]}" if wide else text.replace("-", "")
    return _SAME.get(key, key)


@cache
def _read(path: Path) -> tuple[Row, ...]:
    tree = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Row(
            entry=row["entry"],
            architecture=row["architecture"],
            eps=row["eps"],
            clean=float(Decimal(row["clean"]) / 100),
            robust=float(Decimal(row["robust"]) / 100),
            external=fraction(row["external"]),
            additional_data=bool(row["additional_data"]),
            unreliable=bool(row["unreliable"]),
            venue=row["venue"],
            link=row["link"],
        )
        for row in tree["rows"]
    )
