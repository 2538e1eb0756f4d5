"""What two entries of a board may not share: weights, a run, a seed, evidence. numpy only.

Weights, run and seed are compared as the records state them (level 0), the evidence itself (level
1) so that a copy is told apart from models that agree.

Two honest models agree on many rows: what stands in both looks the same in both, and where both err
without attack there is nothing but a class, often the same. So only rows are compared that one of
the two classified and on which one of the two fell or erred: there, predictions, passes and the
stages that felled an image tell models apart. Of few-shot tables without a common attack there is
nothing but classes: rows are compared on which one of the two erred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from aal_bench.evidence import STAGE, Evidence, same_samples
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import placed, rule
from aal_bench.record import Result

COPIED = 0.75
"""Share of equal rows, of those that tell models apart, from which a table is a copy.

The most that honest pairs share is measured: 0.51 for two weak models of one seed, and so of equal
first weights (fgsm and pgd on CIFAR-10), 0.43 on the digits, 0.19 of the errors on glyphs (two
seeds of rfs). A forger who would stay below must invent a quarter of the rows, each of which level
2 replays.
"""
FEW = 10
"""With fewer such rows chance could make them equal: only equal files are copies then."""


def once(own: Result, others: Mapping[str, Result]) -> Finding:
    """Whether an entry's checkpoint, run and seed are its own on this board.

    Args:
        own: the entry.
        others: name -> every other entry of the board that can be read.
    """
    told = f"checkpoint, run and seed, among {1 + len(others)} on this board"
    return rule(0, "once", _shared(own, others), told)


def _shared(own: Result, others: Mapping[str, Result]) -> Iterator[str]:
    stated = _identity(own)
    for name, other in others.items():
        theirs = _identity(other)
        same = [key for key, value in stated.items() if theirs.get(key) == value]
        if same:
            yield f"{' and '.join(same)} of {placed(name)}"


def _identity(result: Result) -> dict[str, object]:
    """What occurs once on a board, as far as the entry has it."""
    found: dict[str, object] = {"the run_hash": result.run_hash}
    if result.model.checkpoint is not None:
        found["the checkpoint"] = result.model.checkpoint.sha256
    training = result.training
    if training is not None:
        configuration = (training.method, result.model.name, training.config_hash)
        found["configuration and seed"] = (*configuration, *training.seeds)
    return {key: value for key, value in found.items() if value is not None}


def finding(own: Evidence, sha256: str, others: Mapping[str, tuple[str, Evidence]]) -> Finding:
    """Whether a table is another entry's.

    Args:
        own: the entry's table.
        sha256: of its file.
        others: name of every other entry of the board -> (sha256 of its file, its table).
    """
    faults = []
    for name, (digest, table) in others.items():
        attacked = own.episode is None or _common(own, table)
        share = 1.0 if digest == sha256 else (overlap if attacked else errors)(own, table)
        if share is not None and share >= COPIED:
            faults.append(f"{share:.1%} of the rows that tell models apart are those of {name}")
    return rule(1, "copies", faults, f"compared with {len(others)} on this board")


def overlap(a: Evidence, b: Evidence) -> float | None:
    """Share of equal rows, in [0, 1], of those that `a` or `b` got right and `a` or `b` lost.

    Every column of every stage that both have is compared.

    Returns:
        None where the tables are about other samples, share no stage, or too few rows tell.
    """
    shared = _common(a, b)
    if not shared or not same_samples(a, b):
        return None
    telling = a.clean_correct() | b.clean_correct()
    telling &= ~(_untouched(a, shared) & _untouched(b, shared))
    if telling.sum() < FEW:
        return None
    equal = a.clean_pred == b.clean_pred
    for stage in shared:
        for name in STAGE.names or ():
            equal &= a.column(stage, name) == b.column(stage, name)
    return float(equal[telling].mean())


def errors(a: Evidence, b: Evidence) -> float | None:
    """Share of equal predictions, in [0, 1], of the rows on which `a` or `b` errs without attack.

    Returns:
        None where the tables are about other samples, or too few rows tell.
    """
    if not same_samples(a, b):
        return None
    telling = ~(a.clean_correct() & b.clean_correct())
    if telling.sum() < FEW:
        return None
    return float((a.clean_pred == b.clean_pred)[telling].mean())


def _common(a: Evidence, b: Evidence) -> list[str]:
    return [stage for stage in a.stages if stage in b.stages]


def _untouched(table: Evidence, stages: list[str]) -> NDArray[np.bool_]:
    standing = table.clean_pred == table.label
    for stage in stages:
        standing = standing & table.column(stage, "ok")
    return standing
