"""Evidence in, numbers out: all that is printed about a run follows from its table. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aal_bench.errors import UserError
from aal_bench.evidence import Evidence, wilson
from aal_bench.registry import AUTOATTACK


def measure(k: int, n: int) -> dict[str, Any]:
    """``{value, n, ci95}`` of k out of n, with the Wilson interval."""
    return {"value": k / n, "n": n, "ci95": list(wilson(k, n))}


def classification(evidence: Evidence, stages: Sequence[str]) -> dict[str, Any]:
    """The `Metrics` of a classification run, from its evidence alone.

    Args:
        evidence: complete in every one of `stages`.
        stages: the protocol's stages, ``clean`` among them or not.

    Raises:
        UserError: rows are missing, or there is no attack to be robust against.
    """
    attacks = [stage for stage in stages if stage != "clean"]
    if not attacks:
        raise UserError("without an attack there is no robust accuracy: the protocol has none")
    n = len(evidence)

    def under(names: Sequence[str]) -> dict[str, Any]:
        return measure(int(evidence.robust(names).sum()), n)

    metrics: dict[str, Any] = {
        "clean": under([]),
        "robust": under(attacks),
        "stages": {stage: under([stage]) for stage in attacks},
    }
    if set(AUTOATTACK) <= set(attacks):
        metrics["autoattack"] = under(AUTOATTACK)
    return metrics


METRICS: dict[str, Callable[[Evidence, Sequence[str]], dict[str, Any]]] = {
    "classification": classification
}
"""Task family -> what turns its evidence into metrics; numpy only, so that anybody can verify."""
