"""What papers claim: their printed tables, looked up by task and method. No torch.

The tables are ``leaderboards/reported/<paper>.json``: numbers as printed, with a map from each
table's columns to this project's stages. A claim is shown beside a measurement only when data set,
norm and eps are those of the task (of detection: classes and metric); the backbone may differ, and
is then named.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

from aal_bench import registry
from aal_bench.config import Task, read_task
from aal_bench.leaderboard import conventions
from aal_bench.leaderboard.robustbench import fraction, same_architecture
from aal_bench.paths import data_folder
from aal_bench.threat import parse_fraction

PAPERS = ("aal", "again")
PRINTED: dict[str, tuple[str, ...]] = {
    "standard": ("Clean", "Clean+CBAM"),
    "fgsm": ("FGSM", "FGSM+CBAM"),
    "pgd": ("PGD", "PGD-AT"),
    "trades": ("TRADES",),
    "mart": ("MART",),
    "fat": ("FAT",),
    "lbgat": ("LBGAT",),
    "cas": ("CAS",),
    "awp": ("AWP",),
    "pgd-awp": ("AWP",),
    "las-at": ("LAS-AT",),
    "ls0.8-pgd": ("LS0.8",),
    "ls0.9-pgd": ("LS0.9",),
    "iaat": ("IAAT",),
    "aal-fgsm": ("AAL+FGSM", "AAL"),
    "aal-pgd": ("AAL+PGD",),
    "again-pgd": ("AGAIN-PGD-AT",),
    "again-mart": ("AGAIN-MART",),
    "again-awp": ("AGAIN-AWP",),
    "maml": ("MAML",),
    "protonet": ("Proto-Net",),
    "relationnet": ("RelationNet",),
    "metaoptnet": ("MetaOptNet",),
    "baseline-finetune": ("Fine-tuning",),
    "rfs": ("RFS-Simple",),
    "ier": ("IER",),
    "aal": ("AAL",),
    "aal-ier": ("AAL",),
}
"""Method -> its names in the papers. AAL's FGSMR is left out: the work it cites is MART."""


class Claim(NamedTuple):
    """One row of a paper's table."""

    paper: str
    """Short name of the paper: ``AAL``."""
    table: str
    """Where it is printed: ``Table 2``."""
    method: str
    """The method's name as printed."""
    backbone: str | None
    """The network it was claimed for, as printed; None: not printed."""
    same_backbone: bool
    """True when that is the network asked about."""
    values: dict[str, float]
    """Stage -> fraction in [0, 1]; what was not printed is absent."""
    notes: tuple[str, ...]
    """Remarks on the table and the row (the kernel of an ablation, what is not printed)."""

    def __str__(self) -> str:
        return (
            f"{self.paper}, {self.table}: {self.method} on {self.backbone or 'an unnamed network'}"
        )


def claims(task: Task, method: str, model: str) -> list[Claim]:
    """The rows that papers print for this task and method.

    Args:
        task: its ``paper.dataset``, norm and eps must be the table's.
        method: a registered name; any other has no claims.
        model: a registered name (``wrn-34-10``); rows for this network come first.

    Returns:
        Claims, those for the same network first, then in the papers' order; [] where none. Of a
        few-shot task those for its ways and shots, as ``clean``.
    """
    if task.detection is not None and not _own_classes(task):
        return []
    found = [
        _claim(paper, table, row, model, _stages(table, task))
        for paper, table in _tables()
        if _same_threat(table, task) and _same_metric(table, task) and _stages(table, task)
        for row in table["rows"]
        if row.get("method") in PRINTED.get(method, ())
        and row.get("dataset", table.get("dataset")) == task.paper.get("dataset")
    ]
    return sorted(found, key=lambda claim: not claim.same_backbone)


@cache
def read(paper: str) -> dict[str, Any]:
    """One file of ``leaderboards/reported``, without its ``.json``."""
    path = data_folder("leaderboards") / "reported" / f"{paper}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _tables() -> list[tuple[str, dict[str, Any]]]:
    files = [read(paper) for paper in PAPERS]
    return [
        (file["key"], table) for file in files for table in file["tables"] if "columns" in table
    ]


def _same_threat(table: dict[str, Any], task: Task) -> bool:
    if "dataset" not in task.paper:
        return False
    if "eps" not in table:
        return True  # few-shot and detection tables are measured on clean images
    return table["norm"] == task.threat.norm and parse_fraction(table["eps"]) == task.threat.eps


def _same_metric(table: dict[str, Any], task: Task) -> bool:
    """Whether a table of mean average precisions is for detection, and taken as the task does."""
    metric = table.get("metric")
    named = metric.get(task.paper.get("dataset")) if isinstance(metric, dict) else None
    if task.detection is None:
        return not isinstance(metric, dict)
    return task.detection.metric in conventions.PRINTED.get(named or "", ())


def _own_classes(task: Task) -> bool:
    """Whether the classes are the task file's: with others the images are others too."""
    file = registry.task_files().get(task.name)
    own = None if file is None else read_task(file).detection
    return own is None or task.detection is None or own.names == task.detection.names


def _stages(table: dict[str, Any], task: Task) -> dict[str, str]:
    """A table's columns -> the stages of this task that they are about."""
    if task.episodes is None:
        return table["columns"]
    asked = task.id.removeprefix(f"{task.name}-")
    return {column: "clean" for column, stage in table["columns"].items() if stage == asked}


def _claim(
    paper: str, table: dict[str, Any], row: dict[str, Any], model: str, stages: dict[str, str]
) -> Claim:
    backbone = row.get("backbone", table.get("backbone"))
    if "detector" in table and backbone is not None:
        backbone = f"{table['detector']} {backbone}"
    detail = [f"{key} {row[key]}" for key in ("attention", "kernel") if key in row]
    notes = [*detail, *(place["note"] for place in (row, table) if "note" in place)]
    values = {stage: fraction(row[column]) for column, stage in stages.items()}
    return Claim(
        paper=paper,
        table=table["label"],
        method=row["method"],
        backbone=backbone,
        same_backbone=backbone is not None and same_architecture(backbone, model),
        values={stage: value for stage, value in values.items() if value is not None},
        notes=tuple(notes),
    )
