"""Level 4: anybody's adversarials, replayed; what newly falls lowers the entry and stays on record.

Success is a proof, whoever found the images and however; failure is only a failure of search.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from aal_bench.errors import UserError
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import entries, pair
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.extend import Attacked, Extended, Verified, extend
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.verify import CHALLENGE, LOWERED
from aal_bench.schema import MaxViolation
from aal_bench.threat import format_fraction
from aal_bench.verification.rebuild import Rebuilt
from aal_bench.verification.replay import first_violation
from aal_bench.verification.stored import read, replay

LEVEL = 4
IMPLEMENTATION = {"package": "submitted adversarials"}


def challenge(entry: Entry, rebuilt: Rebuilt, path: Path, by: str) -> list[Finding]:
    """Replay the images of `path` and, where any image newly falls, lower the entry on disk.

    Args:
        entry: levels 0 and 1 hold, and its model predicts the clean images as its evidence says.
        rebuilt: its model.
        path: an npz of ``index`` (n,), positions in the task's test split, and ``x`` (n, 3, H, W)
            float32 in [0, 1]; a ``stage`` as in our own ``adversarials.npz`` is not looked at.
        by: who challenges; goes into the entry's history.

    Returns:
        What fell, and by how much that lowered the entry; or one finding, not ok: no image newly
        falls, and nothing is written.

    Raises:
        UserError: the file is no such file, an image leaves the ball or the box, or the entry has
            been replaced meanwhile.
        RunFailed: the model's logits are not finite.
    """
    began = time.perf_counter()
    stored = read(path, rebuilt.evidence, rebuilt.run.task.data.size)
    found = replay(stored, rebuilt)
    wrong = first_violation(stored, found, rebuilt.evidence)
    if wrong is not None:
        raise UserError(f"{path}: {wrong}; the whole file is refused")
    attacked = Attacked(
        kind="challenge",
        implementation=IMPLEMENTATION,
        params={
            "eps": format_fraction(rebuilt.run.task.threat.eps),
            "sha256": sha256_file(path),
            "images": len(stored),
        },
        rows=stored.rows,
        pred=found.pred,
        norm=found.norm,
        seconds=time.perf_counter() - began,
        violation=MaxViolation(norm=float(found.over.max()), box=float(found.outside.max())),
    )
    with pair.locked(entry.path.parent):
        # Somebody else may have challenged it meanwhile: what fell there is not new here.
        current = entries.read(entry.path)
        if current.result.run_hash != entry.result.run_hash:
            raise UserError(f"{entry.path}: was replaced meanwhile; challenge the new entry")
        evidence = current.evidence()
        new = evidence.robust()[stored.rows] & (found.pred != evidence.label[stored.rows])
        if not new.any():
            return [_nothing_new(evidence.robust()[stored.rows])]
        return _lower(current, attacked, by, path)


def _lower(entry: Entry, attacked: Attacked, by: str, path: Path) -> list[Finding]:
    note = f"{len(attacked.rows):,} images of a file with sha256 {attacked.params['sha256'][:8]}"
    extended = extend(entry, attacked, Verified(by=by, level=LEVEL, note=note))
    pair.write(entry.path, extended.result, extended.evidence)
    return _lowered(entry, extended, path)


def _lowered(entry: Entry, extended: Extended, path: Path) -> list[Finding]:
    before = entry.result.external or f"{entry.result.autoattack_acc} (AutoAttack)"
    fell, level = len(extended.fallen), extended.result.verification.level
    stays = "stays" if level == entry.result.verification.level else "is now"
    told = f"{fell:,} image{'s' if fell > 1 else ''} that stood fell to {path.name}"
    lowered = (
        f"external lowered {before} -> {extended.result.external} %, written; the entry {stays} at"
        f" level {level}"
    )
    return [Finding(LEVEL, CHALLENGE, True, told), Finding(LEVEL, LOWERED, True, lowered)]


def _nothing_new(stood: np.ndarray) -> Finding:
    """Not ok, for the challenge failed; of the entry it says nothing bad."""
    text = (
        f"none of the {len(stood):,} images newly falls: the entry holds against them"
        f" ({(~stood).sum():,} had fallen already, {stood.sum():,} stand)"
    )
    return Finding(LEVEL, CHALLENGE, False, text)
