"""Checks 11 and 12: is there a gradient, and is it the model's?"""

from __future__ import annotations

import torch

from aal_bench.audit.accounts import NoGradient
from aal_bench.audit.bank import Bank, Loss
from aal_bench.audit.branch import beginning
from aal_bench.audit.outcome import Outcome, percent
from aal_bench.audit.significance import judge_share
from aal_bench.audit.slopes import slopes_of

IMAGES = 200
"""Images of which finite differences are taken."""
NAMES: dict[Loss, str] = {"ce": "cross-entropy", "dlr": "DLR"}


def gradients_exist(bank: Bank) -> Outcome:
    """11: every correct image has a gradient that is finite and not zero.

    A wrong image may have none: its DLR gradient is exactly zero where its class ranks third.
    """
    right, told, measured = bank.correct(), [], {}
    for loss, name in NAMES.items():
        try:
            g = bank.gradient(loss).flatten(1)
        except NoGradient as error:
            return Outcome(
                "fail", f"The model has no gradient at all: {error}.", value="no gradient"
            )
        broken = int((~torch.isfinite(g).all(1)).sum())
        zero = int((right & (g.abs().sum(1) == 0)).sum())
        measured |= {f"{loss} zero": zero, f"{loss} not finite": broken}
        if broken:
            told.append(f"the gradient of {name} is not finite on {broken} images")
        if zero:
            told.append(
                f"{zero} of {int(right.sum())} correct images have a zero gradient under {name}"
            )
    run = bank.pgd()
    lost = int((right & ~run.finite).sum())
    measured["pgd not finite"] = lost
    if lost:
        told.append(f"on {lost} images logits or gradients are not finite on PGD's way")
    sentence = "; ".join(told)
    return Outcome(
        "fail" if told else "pass",
        f"{sentence[0].upper()}{sentence[1:]}: a gradient attack stands still there."
        if told
        else f"All {int(right.sum())} correct images have a gradient under cross-entropy and DLR,"
        " and every gradient is finite.",
        value=sum(measured.values()),
        threshold=0,
        measured=measured,
    )


def autograd_complete(bank: Bank) -> Outcome:
    """12: the loss rises along the gradient's sign, and does not move where autograd says so."""
    flat = moving = wrong = n = 0
    for part in beginning(bank.subject.parts, IMAGES):
        try:
            slopes = slopes_of(bank, part)
        except NoGradient as error:
            return Outcome(
                "fail",
                f"The model cannot be differentiated: {error}. Attacks need a differentiable"
                " stand-in for the step that breaks the chain (BPDA).",
                value="no gradient",
            )
        n += len(part.y)
        against, none = slopes.contradicts(), slopes.claimed == 0
        moving += int((against & none).sum())
        flat += int((against & ~none & (slopes.near == 0)).sum())
        wrong += int((against & ~none & (slopes.near != 0)).sum())
    count = flat + moving + wrong
    return Outcome(
        judge_share(count, n, bank.thresholds.slope_share),
        f"On {count} of {n} images ({percent(count / n)}) finite differences contradict autograd:"
        f" the margin moves though its gradient is zero on {moving}, stays although there is a"
        f" gradient on {flat}, and falls along it on {wrong}."
        if count
        else f"On all {n} images finite differences confirm the slope that autograd gives.",
        value=round(count / n, 4),
        threshold=bank.thresholds.slope_share,
        measured={"moving": moving, "flat": flat, "wrong": wrong, "images": n},
    )
