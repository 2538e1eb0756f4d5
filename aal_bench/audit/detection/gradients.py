"""Checks 11 and 12 on a detector: is there a gradient, and is it the loss's?"""

from __future__ import annotations

import torch
from torch import Tensor

from aal_bench.audit.accounts import NoGradient
from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.outcome import Outcome
from aal_bench.audit.significance import judge_share

WIDTHS = (0.1 / 255, 0.5 / 255)
"""Of the finite differences: below a grey level, where hardly a unit switches, yet above what
float32 rounds away."""


def gradients_exist(bank: DetectorBank) -> Outcome:
    """11: every image has a finite loss, and a finite gradient that is not zero."""
    try:
        loss, gradient = bank.slopes()
    except NoGradient as error:
        return Outcome(
            "fail", f"The detector has no gradient at all: {error}.", value="no gradient"
        )
    finite = torch.cat([g.isfinite().flatten(1).all(1).cpu() for g in gradient])
    zero = torch.cat([(g == 0).flatten(1).all(1).cpu() for g in gradient])
    broken, still, n = int((~(finite & loss.isfinite())).sum()), int(zero.sum()), len(loss)
    return Outcome(
        "fail" if broken or still else "pass",
        f"Of {n} images with objects {still} have a gradient of zero and {broken} a loss or"
        " gradient that is not finite"
        + (": a gradient attack stands still there." if broken or still else "."),
        value=broken + still,
        threshold=0,
        measured={"zero": still, "not finite": broken},
    )


def autograd_complete(bank: DetectorBank) -> Outcome:
    """12: the loss rises along the gradient's sign, measured by finite differences."""
    limit = bank.thresholds.slope_share
    try:
        gradient = bank.slopes().gradient
    except NoGradient as error:
        return Outcome(
            "fail",
            f"The detector cannot be differentiated: {error}. Attacks need a differentiable"
            " stand-in for the step that breaks the chain (BPDA).",
            value="no gradient",
        )
    measured = bank.once("differences", lambda: _differences(bank, gradient))
    against = ~(measured > 0).any(0)
    count, n = int(against.sum()), len(against)
    return Outcome(
        judge_share(count, n, limit),
        f"On {count} of {n} images the loss does not rise along the sign of its gradient"
        + (", so the gradient is not the loss's own." if count else "."),
        value=round(count / n, 4),
        threshold=limit,
        measured={"contradicted": count},
    )


def _differences(bank: DetectorBank, gradient: list[Tensor]) -> Tensor:
    """(W,N): how much higher the loss is before an image than behind it, at each width."""
    back = [-g for g in gradient]
    return torch.stack(
        [
            bank.losses(bank.moved(gradient, width)) - bank.losses(bank.moved(back, width))
            for width in WIDTHS
        ]
    )
