"""Level 2: stored adversarials replayed on the rebuilt model, one forward for each image.

It proves the part of a claim that is not robust: clean accuracy, and that every image which is
called fallen really falls within eps. That survivors survive is level 3's question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aal_bench.errors import UserError
from aal_bench.evidence import NOT_MEASURED, Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard.audit_sample import TOLERATED, explained
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.extend import is_extra
from aal_bench.leaderboard.findings import Finding
from aal_bench.threat import TOLERANCE
from aal_bench.verification.rebuild import LEVEL, Rebuilt
from aal_bench.verification.stored import Replay, Stored, read, replay


def clean(rebuilt: Rebuilt) -> Finding:
    """Whether the model predicts the clean images as the evidence says.

    Another machine's arithmetic may flip a borderline image: the rule is broken when more images
    differ than accident explains. Clean accuracy cannot then be lower by more than that either.
    """
    table = rebuilt.adapter.new_evidence()
    rebuilt.adapter.run_stage("clean", rebuilt.model, table, _ignored, _ignored)
    count, own = len(table), rebuilt.evidence
    differing = int((table.clean_pred != own.clean_pred).sum())
    told = (
        f"{differing} of {count:,} predictions differ; clean accuracy"
        f" {table.clean_correct().mean():.2%}, claimed {own.clean_correct().mean():.2%}"
    )
    return _tolerant("clean", differing, count, told)


def replayed(entry: Entry, rebuilt: Rebuilt, adversarials: Path | None) -> list[Finding]:
    """Apply level 2's rules about stored adversarials.

    Args:
        entry: whose ``adversarials`` block names the file.
        rebuilt: its model.
        adversarials: the file; None where the entry has none.

    Raises:
        UserError: the file is missing.
        RunFailed: the model's logits are not finite.
    """
    stated = entry.result.adversarials
    fallen = fallen_under_protocol(rebuilt.evidence)
    if stated is None:
        text = "no image fell" if not fallen.any() else f"none stored, {fallen.sum():,} fell"
        return [Finding(LEVEL, "adversarials", not fallen.any(), text)]
    if adversarials is None or not adversarials.is_file():
        raise UserError(f"{adversarials}: no such file of adversarials")
    digest = sha256_file(adversarials)
    if digest != stated.sha256:
        text = f"{adversarials} is {digest[:8]}, the entry names {stated.sha256[:8]}"
        return [Finding(LEVEL, "adversarials", False, text)]
    try:
        # The very file of the entry: what is wrong with it is wrong with the entry.
        stored = read(adversarials, rebuilt.evidence, rebuilt.run.task.data.size)
    except UserError as error:
        return [Finding(LEVEL, "adversarials", False, str(error))]
    if stored.stage is None or len(stored) != stated.count:
        text = f"{len(stored):,} images{'' if stored.stage is not None else ' without their stage'}"
        return [Finding(LEVEL, "adversarials", False, f"{text}, the entry says {stated.count:,}")]
    found = replay(stored, rebuilt)
    return [
        Finding(LEVEL, "adversarials", True, f"{len(stored):,} images, sha256 {digest[:8]}"),
        _bounds(stored, found, rebuilt),
        _fooled(stored, found, rebuilt.evidence),
        _fallen(stored, fallen, rebuilt.evidence),
    ]


def fallen_under_protocol(evidence: Evidence) -> NDArray[np.bool_]:
    """Rows (n,) that the protocol's own stages felled: their adversarials are stored."""
    own = [stage for stage in evidence.stages if not is_extra(stage)]
    return evidence.clean_correct() & ~evidence.robust(own)


def first_violation(stored: Stored, found: Replay, evidence: Evidence) -> str | None:
    """The first image that leaves ball or box, and by how much; None: all are within 1e-6."""
    bad = (found.over > TOLERANCE) | (found.outside > TOLERANCE)
    if not bad.any():
        return None
    first = int(np.flatnonzero(bad)[0])
    image = (
        f"image {evidence.index[stored.rows[first]]} of the test split (row {stored.place[first]}"
        " of the file)"
    )
    more = f" ({bad.sum():,} such images)" if bad.sum() > 1 else ""
    if found.over[first] > TOLERANCE:
        return f"{image} exceeds eps by {found.over[first]:.2e}{more}"
    return f"{image} leaves the box [0, 1] by {found.outside[first]:.2e}{more}"


def _bounds(stored: Stored, found: Replay, rebuilt: Rebuilt) -> Finding:
    wrong = first_violation(stored, found, rebuilt.evidence)
    told = f"all within {rebuilt.run.task.threat} and the box; largest norm {found.norm.max():.6f}"
    return Finding(LEVEL, "bounds", wrong is None, wrong or told)


def _fooled(stored: Stored, found: Replay, evidence: Evidence) -> Finding:
    still = int((found.pred == evidence.label[stored.rows]).sum())
    differing = int((found.pred != _claimed(stored, evidence)[0]).sum())
    told = (
        f"{still} of {len(stored):,} are classified correctly; {differing} predictions differ from"
        " the evidence's"
    )
    return _tolerant("fooled", still, len(stored), told)


def _fallen(stored: Stored, fallen: NDArray[np.bool_], evidence: Evidence) -> Finding:
    """The rows with a stored image are exactly those that the evidence calls fallen, and where."""
    held = np.zeros(len(evidence), bool)
    held[stored.rows] = True
    misplaced = np.zeros(len(evidence), bool)
    misplaced[stored.rows] = ~_claimed(stored, evidence)[1]
    wrong = {
        "fallen images have none": fallen & ~held,
        "belong to images that stand": held & ~fallen,
        "name a stage under which theirs did not fall": misplaced & fallen,
    }
    told = "; ".join(
        f"{rows.sum():,} {text} (the first is {evidence.index[rows][0]})"
        for text, rows in wrong.items()
        if rows.any()
    )
    return Finding(LEVEL, "fallen", not told, told or f"one for each of {fallen.sum():,} images")


def _claimed(stored: Stored, evidence: Evidence) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """What the evidence says of each image (n,) under the stage that stored it: class, fallen."""
    assert stored.stage is not None
    pred = np.full(len(stored), NOT_MEASURED, np.int16)
    fell = np.zeros(len(stored), bool)
    for stage in set(stored.stage.tolist()) & set(evidence.stages):
        here = stored.stage == stage
        rows = stored.rows[here]
        pred[here] = evidence.column(stage, "pred")[rows]
        fell[here] = (evidence.column(stage, "attacked") & ~evidence.column(stage, "ok"))[rows]
    return pred, fell


def _tolerant(rule: str, flips: int, count: int, told: str) -> Finding:
    ok = explained(flips, count)
    more = "" if ok else f": more than {TOLERATED:.1%} of flips explain"
    return Finding(LEVEL, rule, ok, told + more)


def _ignored(*_: Any) -> None:
    """Nothing is fooled on clean images, and nothing is saved."""
