"""Which fields of two records make them different questions, or different answers. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from aal_bench.config import differing, shorten
from aal_bench.grid import plain
from aal_bench.leaderboard.extend import protocol_stages
from aal_bench.record import Result

ABSENT = "absent"
"""Shown where only the other record has the field."""


class Difference(NamedTuple):
    """A field in which two records differ."""

    name: str
    """Dotted: ``stages.pgd-10.params.alpha``."""
    a: str
    """A's value as one short line of JSON."""
    b: str


def differences(
    a: Result, b: Result, of: Callable[[Result], dict[str, Any]] | None = None
) -> list[Difference]:
    """The fields in which two records differ; `of` picks them (default: `answer`)."""
    one, other = ((of or answer)(result) for result in (a, b))
    return [
        Difference(plain(name), _shown(_at(one, name)), _shown(_at(other, name)))
        for name in differing(one, other)
    ]


def question(result: Result) -> dict[str, Any]:
    """What a ``task_hash`` covers, as far as the record tells it."""
    training = result.training.config.get("task", {}) if result.training else {}
    stages = protocol_stages(result.evaluation)  # a stage that was added has a seed of its own
    alphas = {stage.params["alpha"] for stage in stages if "alpha" in stage.params}
    step = training.get("attack", {}).get("step") or "/".join(sorted(map(str, alphas))) or None
    told = training.get("evaluation", {})
    measured = {"seed": _all(stages, "seed"), "batch_size": _all(stages, "batch_size")}
    return {
        "task": result.task.model_dump(mode="json", exclude={"hash"}),
        "threat": result.threat.model_dump(mode="json"),
        "step": step,
        "evaluation": measured | told,
        "data": training.get("data", {}),
        "fingerprint": result.evidence.dataset_fingerprint if result.evidence else {},
    }


def answer(result: Result) -> dict[str, Any]:
    """Protocol, model and training of a record: what may explain that its numbers differ.

    Time, place and names are left out.
    """
    how = {"implementation", "params", "seed", "batch_size", "partition", "dtype", "tf32"}
    how |= {"deterministic", "compiled", "memory_format"}
    what = {"name", "architecture", "parameters", "loader", "source", "surgery", "normalisation"}
    training = {"method", "method_version", "config", "data", "seeds", "selection"}
    checkpoint = result.model.checkpoint
    return {
        "protocol": {
            "name": result.protocol,
            "stages": [stage.attack for stage in result.evaluation],
        },
        "stages": {
            stage.attack: stage.model_dump(mode="json", include=how) for stage in result.evaluation
        },
        "model": result.model.model_dump(mode="json", include={*what, "forward_passes"}),
        "checkpoint": checkpoint.sha256 if checkpoint else None,
        "training": result.training.model_dump(mode="json", include=training)
        if result.training
        else {},
        "environment": result.environment.model_dump(mode="json", include={"torch", "gpu"}),
    }


def _all(stages: Any, field: str) -> Any:
    values = sorted({getattr(stage, field) for stage in stages})
    return values[0] if len(values) == 1 else values


def _at(tree: Any, dotted: str) -> Any:
    """The value under a name of `differing`, whose keys may hold dots themselves (``ls0.8``)."""
    if not dotted:
        return tree
    for end in (len(dotted), *(i for i in range(len(dotted) - 1, -1, -1) if dotted[i] == ".")):
        if isinstance(tree, dict) and dotted[:end] in tree:
            return _at(tree[dotted[:end]], dotted[end + 1 :])
    return None


def _shown(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]  # of a sha256, as much as tells two apart
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shorten(plain(text), 48)
