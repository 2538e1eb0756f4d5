"""From plain values in a config to the method that a detector trains with."""

from __future__ import annotations

from typing import Any

from torch import nn

from aal_bench import registry
from aal_bench.detection.adversarial import Adversarial
from aal_bench.methods.base import Threat
from aal_bench.threat import parse_fraction


def armed(
    detector: nn.Module,
    method: str,
    eps: str,
    step: str,
    steps: int = 10,
    options: dict[str, Any] | None = None,
    update: str = "plain",
    update_options: dict[str, Any] | None = None,
    bf16: bool = False,
    channels_last: bool = False,
) -> Adversarial:
    """Build a registered method and its update, and do the method's surgery on `detector`.

    Args:
        detector: changed in place.
        method: its registered name.
        eps: the budget, an exact fraction of [0, 1] as in ``8/255``.
        step: step size of multi-step attacks, likewise.
        steps: of multi-step attacks.
        options: of the method.
        update: the update's registered name.
        update_options: of the update.
        bf16: see `Adversarial`.
        channels_last: see `Adversarial`.

    Raises:
        UserError: an unknown name, or a method that does not serve detection.
    """
    row = registry.method_row(method)
    registry.serves(row, method, "detection")
    kind = registry.load(row.target)
    threat = Threat(float(parse_fraction(eps)), float(parse_fraction(step)), steps)
    own = kind.family_defaults("detection") | (options or {})
    chosen = kind(kind.Options(**own), threat)
    around = registry.load(registry.find("update", update).row.target)
    chosen.build(detector)
    return Adversarial(
        chosen, around(around.Options(**(update_options or {}))), bf16, channels_last
    )
