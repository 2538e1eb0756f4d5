"""Checks 18 to 20: is the loss around an image one that gradients describe?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from aal_bench.attacks.linf import uniform_start
from aal_bench.audit.bank import Bank, loss_of
from aal_bench.audit.branch import baseline_of
from aal_bench.audit.outcome import Outcome, Verdict, gravest, percent

WIDTH = 8 / 255
"""Width of the interval of the offsets of check 18: each pixel moves by up to half of it."""


def stable_loss(bank: Bank) -> Outcome:
    """18: mean of |L(x + u) - L(x)| / |L(x)| over random u, each image's at most 1."""
    limits, own = bank.thresholds, _loss_change(bank)
    verdicts: list[Verdict] = ["fail" if own > limits.loss_change else "pass"]
    told = f"At random offsets of width 8/255 the loss changes by {percent(own)} of itself"
    measured = {"change": own}
    base = baseline_of(bank)
    if base is not None:
        usual = bank.once("baseline loss change", lambda: _loss_change(base))
        verdicts.append("fail" if own > limits.loss_change_ratio * usual else "pass")
        measured["baseline"] = usual
        told += f", that of the baseline by {percent(usual)}"
    return Outcome(
        gravest(*verdicts),
        f"{told}.",
        value=round(own, 4),
        threshold=limits.loss_change,
        measured=measured,
    )


def _loss_change(bank: Bank) -> float:
    """In float64 from the logits, and 0 / 0 = 0: a model may be so sure that its loss is 0."""
    before = loss_of(bank.clean().double(), bank.y, "ce")
    scale = torch.where(before == 0, torch.ones_like(before), before)
    total = torch.zeros_like(before)
    for _ in range(bank.budget.offsets):
        moved = bank.x + (torch.rand_like(bank.x) - 0.5) * WIDTH
        after = loss_of(bank.logits(moved.clamp(0, 1)).double(), bank.y, "ce")
        total += ((after - before).abs() / scale).clamp_max(1)
    return float((total / bank.budget.offsets).mean())


def gradient_alignment(bank: Bank) -> Outcome:
    """19: mean cos(grad L(x), grad L(x + u)), u uniform in the ball (GradAlign's quantity)."""
    limits = bank.thresholds
    own = _alignment(bank)
    verdicts: list[Verdict] = ["fail" if own < limits.alignment else "pass"]
    told = f"Gradients at an image and at a random point of its ball have cosine {own:.2f}"
    steps = functional.cosine_similarity(
        (bank.fgsm() - bank.x).flatten(1), (bank.pgd().x_adv - bank.x).flatten(1)
    )
    measured = {"cosine": own, "fgsm and pgd": float(steps.mean())}
    base = baseline_of(bank)
    if base is not None:
        usual = bank.once("baseline alignment", lambda: _alignment(base))
        verdicts.append("fail" if own < limits.alignment_ratio * usual else "pass")
        measured["baseline"] = usual
        told += f", those of the baseline {usual:.2f}"
    return Outcome(
        gravest(*verdicts),
        f"{told} on average; the perturbations of FGSM and PGD-{bank.budget.steps} have"
        f" {measured['fgsm and pgd']:.2f}.",
        value=round(own, 4),
        threshold=limits.alignment,
        measured=measured,
    )


def _alignment(bank: Bank) -> float:
    here = bank.gradient("ce").flatten(1)
    there = bank.gradient_at(uniform_start(bank.x, bank.subject.eps), bank.y).flatten(1)
    return float(_unit(here).mul(_unit(there)).sum(1).mean())


def _unit(g: Tensor) -> Tensor:
    """Rows of length 1 in float64: sure models have gradients whose squares float32 cannot hold."""
    g = g.double()
    g = g / g.abs().amax(1, keepdim=True).clamp_min(1e-300)
    return functional.normalize(g, dim=1)


def local_linearity(bank: Bank) -> Outcome:
    """20: mean |L(x+d) - L(x) - d . grad L| / |L(x+d) - L(x)| along FGSM's and PGD's d."""
    limits = bank.thresholds
    own, left_out = _nonlinearity(bank)
    told = (
        f"Along FGSM and PGD perturbations the linearised loss is off by {own:.2f} of the change"
        f" ({left_out} perturbations that hardly change the loss are left out)"
    )
    measured = {"error": own, "left out": left_out}
    base = baseline_of(bank)
    if base is None:
        return Outcome(
            "not applicable",
            f"{told}; without a baseline of the same task (--baseline) that is no verdict.",
            value=round(own, 4),
            measured=measured,
        )
    usual, _ = bank.once("baseline nonlinearity", lambda: _nonlinearity(base))
    measured["baseline"] = usual
    threshold = limits.nonlinearity_ratio * usual
    return Outcome(
        "fail" if own > threshold else "pass",
        f"{told}, that of the baseline by {usual:.2f}.",
        value=round(own, 4),
        threshold=round(threshold, 4),
        measured=measured,
    )


def _nonlinearity(bank: Bank) -> tuple[float, int]:
    """The mean error, and how many perturbations were left out."""
    x, y, g = bank.x, bank.y, bank.gradient("ce").double()
    before = loss_of(bank.clean().double(), y, "ce")
    errors = []
    for moved in (bank.fgsm(), bank.pgd().x_adv):
        change = loss_of(bank.logits(moved).double(), y, "ce") - before
        linear = ((moved - x).double() * g).flatten(1).sum(1)
        counted = change.abs() >= bank.thresholds.smallest_loss_change
        errors.append(((change - linear).abs() / change.abs())[counted])
    found = torch.cat(errors)
    return float(found.mean()) if len(found) else 0.0, 2 * len(y) - len(found)
