"""Checks 21 and 22: single-step attacks that look strong because the model answers to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aal_bench.audit.bank import Bank
from aal_bench.audit.outcome import Outcome, Severity, Verdict, gravest, percent, share
from aal_bench.audit.significance import judge_difference
from aal_bench.training.overfitting import told


def catastrophic_overfitting(bank: Bank) -> Outcome:
    """21: FGSM is no harmless attack beside PGD, and training did not collapse.

    The gap alone is a warning where PGD-10 still leaves half of what FGSM leaves (training within a
    mask does that), and where the network was never meant to stand: `standard` is known to have
    trained it, or nothing is claimed of it and FGSM takes over half of its accuracy. A collapsed
    network keeps most of its accuracy under FGSM.
    """
    limits, n = bank.thresholds, bank.subject.size
    clean, answered = bank.correct(), bank.fgsm_correct()
    fgsm, pgd = clean & answered, clean & bank.pgd().at(10)
    against, spoken = int((fgsm & ~pgd).sum()), int((pgd & ~fgsm).sum())
    gap = judge_difference(against, spoken, n, limits.collapse)
    gained, lost = int((answered & ~clean).sum()), int((clean & ~answered).sum())
    above = judge_difference(gained, lost, n, 0)
    sentence = (
        f"FGSM leaves {percent(share(answered))}, PGD-10 {percent(share(pgd))}, no attack"
        f" {percent(share(clean))}"
    )
    verdicts: list[Verdict] = [gap, above]
    collapse = _collapse(bank.subject.claims.training)
    if collapse:
        verdicts.append("fail")
        sentence += f"; {collapse}"
    both = int((fgsm & pgd).sum())
    held = both >= limits.collapsed * int(fgsm.sum())
    claims = bank.subject.claims
    undefended = bank.subject.method == "standard" and claims.method_known
    silent = not claims.stages and claims.robust is None
    open_ = silent and int(fgsm.sum()) < limits.collapsed * int(clean.sum())
    severity: Severity | None = None
    if (undefended or held or open_) and gap == "fail" and above != "fail" and not collapse:
        severity = "warning"
        if undefended:
            sentence += "; the network was trained without attack, so none of this is claimed"
            sentence += " robustness"
        elif held:
            sentence += "; no collapse, but what FGSM leaves is no robustness"
        else:
            sentence += "; nothing is claimed of the network, and one step breaks most of it: it"
            sentence += " looks undefended, not collapsed"
    return Outcome(
        gravest(*verdicts),
        f"{sentence}.",
        value=round((against - spoken) / n, 4),
        threshold=limits.collapse,
        measured={"clean": share(clean), "fgsm": share(answered), "pgd-10": share(pgd)},
        severity=severity,
    )


def _collapse(training: dict[str, Any] | None) -> str:
    """What training saw of a collapse that was still there at its end."""
    seen = (training or {}).get("overfitting")
    if not seen or seen["recovered"]:
        return ""
    return f"training collapsed at epoch {seen['epoch']} and stayed so: {told(seen)}"


def label_leaking(bank: Bank) -> Outcome:
    """22: FGSM with the true labels leaves no more than none, or than with predicted labels."""
    limits, n = bank.thresholds, bank.subject.size
    clean, true = bank.correct(), bank.fgsm_correct()
    predicted = bank.once("fgsm predicted", lambda: _fgsm_of_predictions(bank))
    gained, lost = int((true & ~clean).sum()), int((clean & ~true).sum())
    more, fewer = int((true & ~predicted).sum()), int((predicted & ~true).sum())
    return Outcome(
        gravest(
            judge_difference(gained, lost, n, 0), judge_difference(more, fewer, n, limits.leak)
        ),
        f"FGSM with true labels leaves {percent(share(true))}, with predicted ones"
        f" {percent(share(predicted))}, no attack {percent(share(clean))}.",
        value=round((more - fewer) / n, 4),
        threshold=limits.leak,
        measured={"true": share(true), "predicted": share(predicted), "clean": share(clean)},
    )


def _fgsm_of_predictions(bank: Bank) -> Tensor:
    guessed = bank.clean().argmax(1)
    moved = bank.x + bank.subject.eps * bank.gradient_at(bank.x, guessed).sign()
    return bank.predictions(moved.clamp(0, 1)) == bank.y
