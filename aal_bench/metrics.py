"""Evidence in, numbers out: all that is printed about a run follows from its table. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aal_bench import detection_metrics
from aal_bench.config import Convention
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.detection_metrics import Estimate
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence, wilson
from aal_bench.registry import AUTOATTACK
from aal_bench.student import Mean, mean

LEARNT_MAP = 0.01
"""Clean mean average precision below which a detector has not learnt its task."""
PRECISION_DECIMALS = 9
"""Average precisions are stated to 1e-9: machines may add floats in another order."""


def measure(k: int, n: int) -> dict[str, Any]:
    """``{value, n, ci95}`` of k out of n, with the Wilson interval."""
    return {"value": k / n, "n": n, "ci95": list(wilson(k, n))}


def averaged(found: Mean) -> dict[str, Any]:
    """``{value, n, ci95}`` of a mean over n episodes, with Student's t interval within [0, 1]."""
    return {"value": found.value, "n": found.n, "ci95": list(found.interval(0.0, 1.0))}


def estimated(found: Estimate, n: int) -> dict[str, Any]:
    """``{value, n, ci95}`` of a mean average precision over n images, with its bootstrap."""
    value, low, high = (round(part, PRECISION_DECIMALS) for part in found)
    return {"value": value, "n": n, "ci95": [low, high]}


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


def fewshot(evidence: Evidence, stages: Sequence[str]) -> dict[str, Any]:
    """The `Metrics` of a few-shot run, from its evidence alone: means over episodes.

    A query is robust where it is correct without attack and under every stage; the accuracy of an
    episode is its share of such queries. Without an attack there is no ``robust``.

    Args:
        evidence: complete in every one of `stages`, with at least one episode.
        stages: the protocol's stages, ``clean`` among them or not.

    Raises:
        UserError: rows are missing.
        ValueError: the table has no episodes.
    """
    attacks = [stage for stage in stages if stage != "clean"]
    kinds = {"clean": [], **({"robust": attacks} if attacks else {})}
    kinds |= {stage: [stage] for stage in attacks}
    if set(AUTOATTACK) <= set(attacks):
        kinds["autoattack"] = list(AUTOATTACK)
    hits = {name: evidence.hits(evidence.robust(under)) for name, under in kinds.items()}
    queries = len(evidence) // evidence.episodes
    found = {name: mean(counts, queries) for name, counts in hits.items()}
    metrics = {name: averaged(one) for name, one in found.items() if name not in attacks}
    metrics["stages"] = {stage: averaged(found[stage]) for stage in attacks}
    spread = {name: one.sd for name, one in found.items()}
    metrics["episodes"] = {"n": evidence.episodes, "queries": queries, "sd": spread}
    return metrics


def detection(evidence: DetectionEvidence, stages: Sequence[str]) -> dict[str, Any]:
    """The `Metrics` of a detection run, from its evidence alone: mean average precisions.

    ``clean`` and ``stages`` are in the table's first convention. There is no ``robust``: a
    detection is right or wrong among those of all images, so that no image has a verdict, and the
    least of several means is no mean over any attack.

    Args:
        evidence: complete in every one of `stages` and in ``clean``.
        stages: the protocol's stages, ``clean`` among them or not.

    Raises:
        UserError: rows are missing.
    """
    found = {
        stage: detection_metrics.precisions(evidence, stage)
        for stage in dict.fromkeys(("clean", *stages))
    }
    headline, n = evidence.conventions[0], len(evidence)
    measured: dict[str, dict[Convention, Any]] = {
        stage: {name: estimated(mean, n) for name, mean in one.means.items()}
        for stage, one in found.items()
    }
    counted = evidence.objects.labels[~evidence.objects.ignore]
    objects = np.bincount(counted, minlength=len(evidence.classes)).tolist()
    return {
        "clean": measured["clean"][headline],
        "stages": {stage: one[headline] for stage, one in measured.items() if stage != "clean"},
        "detection": {
            "conventions": list(evidence.conventions),
            "stages": measured,
            "classes": {
                stage: {name: _rounded(ap) for name, ap in one.classes[headline].items()}
                for stage, one in found.items()
            },
            "objects": dict(zip(evidence.classes, objects, strict=True)),
            "samples": detection_metrics.SAMPLES,
            "seed": detection_metrics.SEED,
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, PRECISION_DECIMALS)


METRICS: dict[str, Callable[[Any, Sequence[str]], dict[str, Any]]] = {
    "classification": classification,
    "fewshot": fewshot,
    "detection": detection,
}
"""Task family -> what turns its evidence into metrics; numpy only, so that anybody can verify."""

TABLES: dict[str, type[Any]] = {
    "classification": Evidence,
    "fewshot": Evidence,
    "detection": DetectionEvidence,
}
"""Task family -> the class of its evidence."""


def near_chance(family: str, classes: int, clean: Mapping[str, Any]) -> tuple[float, float] | None:
    """The figures that say that a model has not learnt its task; None: it has.

    Of images, clean accuracy within twice chance; of few-shot episodes, whose chance 1 / K is
    large, an interval of clean accuracy within twice chance that reaches chance; of detection,
    which has no chance, a clean mean average precision below 0.01.

    Args:
        family: of the task.
        classes: chance is 1 / classes.
        clean: the ``clean`` measure of its metrics.

    Returns:
        (what was measured, what it had to exceed), to four digits.
    """
    if family == "detection":
        figure = clean["value"]
        return (round(figure, 4), LEARNT_MAP) if figure < LEARNT_MAP else None
    figure, bound = clean["value"], 2 / classes
    if figure > bound:
        return None
    if family == "fewshot":
        figure, bound = clean["ci95"][0], 1 / classes
    return (round(figure, 4), round(bound, 4)) if figure <= bound else None
