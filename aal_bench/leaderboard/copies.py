"""Evidence that was copied from another entry's, told apart from models that agree. numpy only.

Two honest models agree on many rows: what stands in both looks the same in both. So only rows are
compared on which at least one of the two erred or fell: there, predictions, passes and the stages
that felled an image tell models apart: honest runs agree on a tenth to two fifths of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aal_bench.evidence import STAGE, Evidence
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import rule

COPIED = 0.99
"""Share of equal rows, of those that tell models apart, from which a table is a copy."""
FEW = 10
"""With fewer such rows chance could make them equal: only equal files are copies then."""


def finding(own: Evidence, sha256: str, others: Mapping[str, tuple[str, Evidence]]) -> Finding:
    """Whether a table is another entry's.

    Args:
        own: the entry's table.
        sha256: of its file.
        others: name of every other entry of the board -> (sha256 of its file, its table).
    """
    faults = []
    for name, (digest, table) in others.items():
        share = 1.0 if digest == sha256 else overlap(own, table)
        if share is not None and share >= COPIED:
            faults.append(f"{share:.1%} of the rows that tell models apart are those of {name}")
    return rule(1, "copies", faults, f"compared with {len(others)} on this board")


def overlap(a: Evidence, b: Evidence) -> float | None:
    """Share of equal rows among those on which `a` or `b` erred or fell, in [0, 1].

    Every column of every stage that both have is compared.

    Returns:
        None where the tables are about other images, share no stage, or too few rows tell.
    """
    shared = [stage for stage in a.stages if stage in b.stages]
    if not shared or not np.array_equal(a.index, b.index) or not np.array_equal(a.label, b.label):
        return None
    telling = ~(_untouched(a, shared) & _untouched(b, shared))
    if telling.sum() < FEW:
        return None
    equal = a.clean_pred == b.clean_pred
    for stage in shared:
        for name in STAGE.names or ():
            equal &= a.column(stage, name) == b.column(stage, name)
    return float(equal[telling].mean())


def _untouched(table: Evidence, stages: list[str]) -> NDArray[np.bool_]:
    standing = table.clean_pred == table.label
    for stage in stages:
        standing = standing & table.column(stage, "ok")
    return standing
