"""Level 3: AutoAttack once more on claimed survivors, under a seed that nobody could choose.

The union of both runs is the better claim: an image that falls now has fallen.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from aal_bench.adapters.attack_stage import Victim, run_stage
from aal_bench.adapters.classification import make_stage
from aal_bench.config import Task
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.files import replacing
from aal_bench.leaderboard import audit_sample
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.extend import Attacked, protocol_stages
from aal_bench.leaderboard.findings import Finding
from aal_bench.registry import ADAPTIVE, AUTOATTACK
from aal_bench.schema import MaxViolation
from aal_bench.threat import format_fraction
from aal_bench.verification.rebuild import Rebuilt

LEVEL = 3
SEEDS = 1 << 32
"""torch and numpy take no larger seed."""


class Reattack(NamedTuple):
    """What became of the survivors that were attacked again."""

    attacked: Attacked
    """For `extend.extend`: every survivor of the sample."""
    seed: int
    """0 <= seed < 2**64; the attacks use it modulo 2**32."""
    standing: int
    """Survivors that the entry claims."""
    fallen: NDArray[np.intp]
    """(f,) positions in the evidence of those that fell now, ascending."""
    x: NDArray[np.float32]
    """(f, 3, H, W), the images that felled them."""

    @property
    def enough(self) -> bool:
        """Whether level 3 may be recorded of so many."""
        return audit_sample.enough(len(self.attacked.rows), self.standing)


def reattack(entry: Entry, rebuilt: Rebuilt, public: str, size: int | None) -> Reattack:
    """Attack a sample of the survivors with AutoAttack's stages of the entry's protocol.

    The adaptive attacks follow where the entry had them.

    They are fed in index order, in the task's batches; each stage sees what those before it left.

    Args:
        entry: levels 0 to 2 hold.
        rebuilt: its model.
        public: a string that was not known when the entry was made.
        size: how many survivors; None: all of them.

    Raises:
        UserError: the entry has no run_hash, the string is empty, or the protocol has none of
            AutoAttack's stages.
        RunFailed: an attack raised or left its bounds.
    """
    seed = audit_sample.seed_of(entry.result.run_hash, public)
    ran = {stage.attack for stage in protocol_stages(entry.result.evaluation)}
    stages = [stage for stage in (*AUTOATTACK, ADAPTIVE) if stage in ran]
    if not set(stages) - {ADAPTIVE}:
        raise UserError(f"protocol {entry.result.protocol} has none of AutoAttack's attacks")
    survivors = np.flatnonzero(rebuilt.evidence.robust())
    rows = survivors[audit_sample.sample(len(survivors), size, seed)]
    audit = Audit(rebuilt, rows, _reseeded(rebuilt.run.task, seed % SEEDS))
    began = time.perf_counter()
    for stage in ["clean", *stages] if len(rows) else []:
        audit.run(stage)
    attacked = Attacked(
        kind="reattack",
        implementation=make_stage(stages[0], rebuilt.run.task).implementation,
        params={
            "eps": format_fraction(rebuilt.run.task.threat.eps),
            "stages": stages,
            "public_string": public,
            "seed": seed,
            "sampled": len(rows),
            "of": len(survivors),
        },
        rows=rows,
        seed=seed % SEEDS,
        seconds=time.perf_counter() - began,
        violation=MaxViolation(**audit.violation),
        **audit.columns(stages),
    )
    at, side = sorted(audit.images), rebuilt.run.task.data.size
    x = np.array([audit.images[place] for place in at], np.float32).reshape(-1, 3, side, side)
    return Reattack(attacked, seed, len(survivors), rows[at], x)


def findings(found: Reattack, public: str) -> list[Finding]:
    """Level 3's rule applied, and what it could not have seen."""
    fell, m, standing = len(found.fallen), len(found.attacked.rows), found.standing
    told = f"seed {found.seed} of public string '{public}'"
    if not standing:
        return [Finding(LEVEL, "survivors", True, "the entry claims none: nothing to attack")]
    p = audit_sample.p_value(fell, m)
    rule = (
        f"{fell} of {m:,} fell (of {standing:,} survivors), p = {p:.2g}; broken below"
        f" {audit_sample.SIGNIFICANCE:g} against a tolerated {audit_sample.TOLERATED:.1%}"
    )
    needed = min(audit_sample.SIZE, standing)
    few = f"{m:,} attacked; a record of level 3 needs {needed:,}: of this one, at most level 2"
    return [
        Finding(LEVEL, "seed", True, told),
        Finding(LEVEL, "survivors", audit_sample.explained(fell, m), rule),
        Finding(LEVEL, "power", True, audit_sample.misses(standing, m)),
        *([] if found.enough else [Finding(LEVEL, "sample", True, few)]),
    ]


def keep(found: Reattack, rebuilt: Rebuilt, path: Path) -> Finding:
    """Write the images that felled survivors as a file that a challenge takes; none, no file."""
    if not len(found.fallen):
        return Finding(LEVEL, "saved", True, f"no image fell: {path} is not written")
    with replacing(path) as handle:
        np.savez(handle, index=rebuilt.evidence.index[found.fallen], x=found.x)
    count = len(found.fallen)
    return Finding(LEVEL, "saved", True, f"{count:,} image{'s' * (count > 1)} -> {path}")


class Audit:
    """The sampled images as a test set of their own, and what the stages did to them."""

    def __init__(self, rebuilt: Rebuilt, rows: NDArray[np.intp], task: Task) -> None:
        split = rebuilt.adapter.test.subset(torch.from_numpy(rows))
        self.task, self.split = task, split
        self.victim = Victim(rebuilt.model, split, rebuilt.device, task.evaluation.batch_size)
        self.evidence = Evidence(split.origin.numpy(), split.labels.numpy())
        self.images: dict[int, NDArray[np.float32]] = {}
        """Position in the sample -> the first image that felled it."""
        self.violation = {"norm": 0.0, "box": 0.0}

    def run(self, stage: str) -> None:
        def fooled(rows: Any, x_adv: Any) -> None:
            self.images.update(zip(rows.tolist(), x_adv, strict=True))

        def saved(_seconds: float, violation: dict[str, float]) -> None:
            self.violation = {key: max(self.violation[key], violation[key]) for key in violation}

        run_stage(make_stage(stage, self.task), self.victim, self.evidence, fooled, saved)
        if stage == "clean":
            # An image that this machine gets wrong unattacked has fallen to itself.
            wrong = np.flatnonzero(~self.evidence.clean_correct())
            for batch in self.split.batches(
                torch.from_numpy(wrong), 512, augment="none", pad=0, seed=0, device="cpu"
            ):
                fooled(batch.idx.numpy(), batch.x.numpy())

    def columns(self, stages: list[str]) -> dict[str, NDArray[Any]]:
        """Prediction and norm of the last attack on each image, and all passes spent on it."""
        table = self.evidence
        columns = {
            "pred": table.clean_pred.copy(),
            "norm": np.zeros(len(table), np.float32),
            "forwards": np.zeros(len(table), np.int64),
            "backwards": np.zeros(len(table), np.int64),
        }
        for stage in stages if len(table) else []:
            held = table.column(stage, "attacked")
            for name in ("pred", "norm"):
                columns[name][held] = table.column(stage, name)[held]
            for name in ("forwards", "backwards"):
                columns[name][held] += table.column(stage, name)[held]
        return columns


def _reseeded(task: Task, seed: int) -> Task:
    return task.model_copy(update={"evaluation": task.evaluation.model_copy(update={"seed": seed})})
