"""H1 to H6, each judged by paired exact tests on what was measured. No torch.

A verdict is about this run: whether what the hypothesis predicts is what its network does, and so
whether it could have made the printed numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from aal_bench.aal.options import Kernel
from aal_bench.audit.outcome import percent
from aal_bench.audit.significance import ALPHA
from aal_bench.audit.table import THRESHOLDS
from aal_bench.diagnosis.measured import KERNELS, KINDS, SMALL, Measured, Network
from aal_bench.diagnosis.paired import Difference, Flags, above, clopper_pearson
from aal_bench.diagnosis.record import Compared, Epoch, Hypothesis, Judgement, Printed, Reading
from aal_bench.evidence import wilson

EXPLAINS = 0.05
"""A difference that is shown to be smaller explains no printed gap of ten points and more."""
ATTACKS = {"fgsm": "FGSM", "pgd": "PGD-10"}
SIGNS: dict[Kernel, str] = {"m2": "M*M", "m": "M", "one_minus_m2": "1-M*M"}


class Evidence(NamedTuple):
    """All that the verdicts rest on."""

    measured: Measured
    eps: float
    """In pixel units."""
    attack: str
    """The longest PGD by name: ``PGD-50 x 10``."""
    table8: Mapping[Kernel, Printed]
    """Kernel -> its printed FGSM accuracy."""
    printed: Mapping[str, Printed]
    """Stage -> what is printed for the run's own data and method; may be empty."""
    epochs: Sequence[Epoch] = ()
    """The run's log."""
    kernels: Sequence[Network] = ()
    """Networks that were trained with other kernels."""
    undefended: Network | None = None
    """One trained without attack."""
    control: Network | None = None
    """One trained with each image's mask at its own mean."""
    commands: Mapping[str, str] = {}
    """H6 -> what to run for the network that is missing."""


def judge(evidence: Evidence) -> list[Hypothesis]:
    """All six, in their order."""
    return [hypothesis(evidence) for hypothesis in ALL]


# ---- H1: the evaluation's attack was masked --------------------------------------------------


def masked_evaluation(evidence: Evidence) -> Hypothesis:
    """H1."""
    own = evidence.measured.own
    sign = SIGNS[own.kernel]
    full = {"fgsm": own.fgsm, "pgd": own.pgd}
    gaps = [
        Difference.of(own.masked[kind, own.kernel], full[kind]).larger(
            f"{ATTACKS[kind]} leaves more when masked by k = {sign}", THRESHOLDS.masked_gap
        )
        for kind in KINDS
    ]
    order = _ordered([own.masked["fgsm", kernel] for kernel in KERNELS], "masked")
    trained = {network.kernel: network for network in (*evidence.kernels, own)}
    networks = [trained[kernel] for kernel in KERNELS if kernel in trained]
    apart: list[Compared] = []
    if len(networks) == len(KERNELS):
        order += _ordered([one.masked["fgsm", one.kernel] for one in networks], "trained, masked")
        apart = _ordered([network.fgsm for network in networks], "trained, full eps")
    verdict = _all(*(one.answer for one in (*gaps, *order)))
    reproduced = bool(apart) and all(one.answer == "yes" for one in apart)
    if reproduced:
        verdict = "contradicted"
    by = {kernel: _share(own.masked["fgsm", kernel]) for kernel in KERNELS}
    sentence = (
        f"FGSM leaves {percent(_share(own.fgsm))} at full eps, whatever kernel the network was"
        f" trained with; inside eps k(M) it leaves"
        f" {', '.join(f'{percent(by[kernel])} ({SIGNS[kernel]})' for kernel in KERNELS)}."
    )
    if apart:
        sentence += (
            " Networks trained with the three kernels show the printed order at full eps, too."
            if reproduced
            else " Networks trained with the three kernels do not show that order at full eps."
        )
    measured = [
        *(_reading(f"{ATTACKS[kind]}, full eps", full[kind]) for kind in KINDS),
        *(
            _reading(f"{ATTACKS[kind]}, masked by {SIGNS[kernel]}", own.masked[kind, kernel])
            for kind in KINDS
            for kernel in KERNELS
        ),
    ]
    for one in evidence.kernels:
        told = f"trained with {SIGNS[one.kernel]}: FGSM"
        measured += [
            _reading(f"{told}, full eps", one.fgsm),
            _reading(f"{told}, masked", one.masked["fgsm", one.kernel]),
        ]
    return Hypothesis(
        id="H1",
        title="The evaluation's attack was masked by k(M)",
        predicts="Masked attacks leave far more than full ones, and Table 8's order (M*M, M,"
        " 1-M*M) appears only when masked: training budgets order the other way",
        printed=[evidence.table8[kernel] for kernel in KERNELS if kernel in evidence.table8],
        measured=measured,
        compared=[*gaps, *order, *apart],
        verdict=verdict,
        sentence=sentence,
    )


def _ordered(right: Sequence[Flags], how: str) -> list[Compared]:
    """Table 8's order, pair by pair; `right` is in the order of `KERNELS`."""
    return [
        Difference.of(right[i], right[i + 1]).larger(
            f"{how}: {SIGNS[KERNELS[i]]} above {SIGNS[KERNELS[i + 1]]}"
        )
        for i in range(len(KERNELS) - 1)
    ]


# ---- H2: one small step ----------------------------------------------------------------------


def small_step(evidence: Evidence) -> Hypothesis:
    """H2."""
    found, own = evidence.measured, evidence.measured.own
    small, whole = _fraction(evidence.eps / SMALL), _fraction(evidence.eps)
    gap = Difference.of(found.small_step, own.fgsm).larger(
        f"one step of {small} leaves more than one of {whole}", THRESHOLDS.masked_gap
    )
    compared, verdict = [gap], _all(gap.answer)
    right = int(own.clean.sum())
    sentence = (
        f"One step of {small} leaves {percent(_share(found.small_step))}, one of {whole}"
        f" {percent(_share(own.fgsm))}."
    )
    clean, fgsm = evidence.printed.get("clean"), evidence.printed.get("fgsm")
    if clean is not None and fgsm is not None and right:
        share = min(1.0, fgsm.value / clean.value)
        at_full = above(
            f"of the right images {whole} leaves at least the printed {percent(share)}",
            *(int(own.fgsm.sum()), right, share),
        )
        at_small = above(
            f"of the right images {small} leaves at least the printed {percent(share)}",
            *(int(found.small_step.sum()), right, share),
        )
        compared += [at_full, at_small]
        if verdict == "supported" and at_full.answer == "yes":
            verdict = "contradicted"
        elif verdict == "supported" and (at_full.answer != "no" or at_small.answer == "no"):
            verdict = "not decided"  # a weaker or stronger network than the paper's
        sentence += (
            f" Of the images that are right that is {percent(found.small_step.sum() / right)} and"
            f" {percent(own.fgsm.sum() / right)}; printed is {percent(share)}."
        )
    return Hypothesis(
        id="H2",
        title=f'"FGSM" was one step of {small}',
        predicts="FGSM accuracies of 82-84 %, close to clean ones, come from the small step and"
        " not from a step of eps",
        printed=[one for one in (clean, fgsm) if one is not None],
        measured=[
            _reading("clean", own.clean),
            _reading(f"FGSM, step {small}", found.small_step),
            _reading(f"FGSM, step {whole}", own.fgsm),
        ],
        compared=compared,
        verdict=verdict,
        sentence=sentence,
    )


# ---- H3: catastrophic overfitting, label leaking ---------------------------------------------


def overfitting(evidence: Evidence) -> Hypothesis:
    """H3."""
    found, own = evidence.measured, evidence.measured.own
    beyond = Difference.of(found.raw_fgsm, own.clean).larger("FGSM leaves more than no attack")
    gap = Difference.of(own.fgsm, found.strong).larger(
        f"FGSM leaves over {100 * THRESHOLDS.collapse:.0f} points more than {evidence.attack}",
        THRESHOLDS.collapse,
    )
    leak = Difference.of(found.raw_fgsm, found.raw_predicted).larger(
        "FGSM leaves more when it is aimed by the true label than by the predicted one",
        *(THRESHOLDS.leak, EXPLAINS),
    )
    answers = [one.answer for one in (beyond, gap, leak)]
    verdict: Judgement = "supported" if "yes" in answers else "not decided"
    if all(answer == "no" for answer in answers):
        verdict = "contradicted"
    return Hypothesis(
        id="H3",
        title="Catastrophic overfitting, or label leaking",
        predicts="FGSM leaves as much as no attack or more, and iterated attacks leave next to"
        " nothing",
        printed=[
            evidence.printed[stage]
            for stage in ("clean", "fgsm", "pgd-10")
            if stage in evidence.printed
        ],
        measured=[
            _reading("clean", own.clean),
            _reading("FGSM, true label", found.raw_fgsm),
            _reading("FGSM, predicted label", found.raw_predicted),
            _reading(evidence.attack, found.strong),
        ],
        compared=[beyond, gap, leak],
        verdict=verdict,
        sentence=f"FGSM leaves {percent(_share(found.raw_fgsm))} of the images right,"
        f" {evidence.attack} {percent(_share(found.strong))}. {_watched(evidence.epochs)}",
    )


def _watched(epochs: Sequence[Epoch]) -> str:
    """What the run's own watch saw on its training batch."""
    seen = [
        (row.epoch, row.watch_fgsm, row.watch_pgd)
        for row in epochs
        if row.watch_fgsm is not None and row.watch_pgd is not None
    ]
    if not seen:
        return "The run did not log FGSM and PGD over its epochs."
    epoch, fgsm, pgd = max(seen, key=lambda row: row[1] - row[2])
    return (
        f"Over {len(seen)} epochs FGSM was furthest above PGD-5 on the watched batch at epoch"
        f" {epoch}: {percent(fgsm)} against {percent(pgd)}."
    )


# ---- H4: the mask closed ---------------------------------------------------------------------


def closed_mask(evidence: Evidence) -> Hypothesis:
    """H4."""
    own = evidence.measured.own
    n, limit = len(own.k), THRESHOLDS.closed_mask
    closed = above(
        f"most images have a mean k(M) below {limit:g}", int((own.k < limit).sum()), n, 0.5
    )
    compared, answers = [closed], [closed.answer]
    measured = [_mean("mean k(M), test images", own.k), _reading("FGSM, full eps", own.fgsm)]
    sentence = f"The gate lets {percent(own.k.mean())} of eps through on test images."
    logged = [(row.epoch, row.mean_k) for row in evidence.epochs if row.mean_k is not None]
    if logged:
        (first, before), (last, after) = logged[0], logged[-1]
        sentence = (
            f"Training spent {percent(before)} of eps in epoch {first} and {percent(after)} in"
            f" epoch {last}; on test images the gate lets {percent(own.k.mean())} through."
        )
    if evidence.undefended is not None:
        other = evidence.undefended
        learnt = Difference.of(own.fgsm, other.fgsm).larger(
            "full-eps FGSM leaves more than of a network trained without attack",
            *(THRESHOLDS.masked_gap, EXPLAINS),
        )
        compared.append(learnt)
        answers.append(_NOT[learnt.answer])
        measured.append(_reading(f"FGSM, full eps, {other.name}", other.fgsm))
        sentence += (
            f" Full-eps FGSM leaves {percent(_share(own.fgsm))}, of the network trained without"
            f" attack {percent(_share(other.fgsm))}."
        )
    return Hypothesis(
        id="H4",
        title="The mask closed during training",
        predicts="Mean k(M) tends to 0, and full-eps FGSM leaves no more than of a network trained"
        " on clean images",
        measured=measured,
        compared=compared,
        verdict=_all(*answers),
        sentence=sentence,
    )


# ---- H5: labels at test time -----------------------------------------------------------------


def labels_at_test(evidence: Evidence) -> Hypothesis:
    """H5."""
    own, labels = evidence.measured.own, evidence.measured.labels
    n, changed = len(own.clean), int(labels.changed.sum())
    path = Compared(
        question="the network's prediction depends on the label",
        difference=round(changed / n, 6),
        bounds=clopper_pearson(changed, n, ALPHA),
        answer="yes" if changed else "no",
    )
    knows = Difference.of(labels.true, labels.shuffled).larger(
        "M^a of true labels leaves more than M^a of shuffled ones", *(THRESHOLDS.leak, EXPLAINS)
    )
    helps = Difference.of(labels.true, labels.none).larger(
        "M^a of true labels leaves more than M, which knows none", *(THRESHOLDS.leak, EXPLAINS)
    )
    verdict = _all(knows.answer, helps.answer)
    if path.answer == "yes":
        verdict = "supported"
    return Hypothesis(
        id="H5",
        title="M^a, which needs the label, was used at test time",
        predicts="Accuracy falls when the labels are shuffled, and M^a of the true labels leaves"
        " more than M",
        measured=[
            _reading("predictions that change with y", labels.changed),
            _reading("FGSM, gate at its own M", labels.none),
            _reading("FGSM, gate at M^a(y)", labels.true),
            _reading("FGSM, gate at M^a(shuffled y)", labels.shuffled),
        ],
        compared=[path, knows, helps],
        verdict=verdict,
        sentence=f"With shuffled labels {changed} of {n} predictions change; with M^a of the true"
        f" labels in the gate FGSM leaves {percent(_share(labels.true))}, of shuffled ones"
        f" {percent(_share(labels.shuffled))}, without labels {percent(_share(labels.none))}.",
    )


# ---- H6: a smaller effective eps -------------------------------------------------------------


def effective_eps(evidence: Evidence) -> Hypothesis:
    """H6."""
    own, control = evidence.measured.own, evidence.control
    title = "Training saw a smaller effective eps, and attention adds nothing"
    predicts = "A constant mask of equal mean k gives the same numbers without attention"
    if control is None:
        command = evidence.commands.get("H6")
        return Hypothesis(
            id="H6",
            title=title,
            predicts=predicts,
            verdict="not tested",
            sentence="Train the control with the command below, then give its folder to --control.",
            command=command,
        )
    columns = {
        "clean": (own.clean, control.clean),
        "FGSM, full eps": (own.fgsm, control.fgsm),
        "PGD-10, full eps": (own.pgd, control.pgd),
    }
    compared = [
        Difference.of(mine, other).larger(
            f"{name}: attention leaves more than its mean", *(THRESHOLDS.masked_gap, EXPLAINS)
        )
        for name, (mine, other) in columns.items()
    ]
    verdict = _all(*(_NOT[one.answer] for one in compared))
    told = [
        f"{name} {percent(_share(mine))} against {percent(_share(other))}"
        for name, (mine, other) in columns.items()
    ]
    measured = [
        reading
        for name, (mine, other) in columns.items()
        for reading in (_reading(name, mine), _reading(f"{name}, control", other))
    ]
    if len(control.k):
        measured += [_mean("mean k(M)", own.k), _mean("mean k(M), control", control.k)]
    return Hypothesis(
        id="H6",
        title=title,
        predicts=predicts,
        measured=measured,
        compared=compared,
        verdict=verdict,
        sentence=f"With attention and with its mean in its place: {', '.join(told)}; one run each,"
        " so what another seed would change is not in it.",
    )


ALL: tuple[Callable[[Evidence], Hypothesis], ...] = (
    masked_evaluation,
    small_step,
    overfitting,
    closed_mask,
    labels_at_test,
    effective_eps,
)

# ---- words and figures -----------------------------------------------------------------------

_NOT: dict[str, str] = {"yes": "no", "no": "yes", "not decided": "not decided"}


def _all(*answers: str) -> Judgement:
    """Supported by every answer, contradicted by any."""
    if "no" in answers:
        return "contradicted"
    return "supported" if all(answer == "yes" for answer in answers) else "not decided"


def _share(right: Flags) -> float:
    return float(right.mean())


def _reading(name: str, right: Flags) -> Reading:
    low, high = wilson(int(right.sum()), len(right))
    return Reading(name=name, value=_share(right), n=len(right), ci95=(low, high))


def _mean(name: str, values: NDArray[np.float64]) -> Reading:
    """A mean over images, which carry all of its spread."""
    n, mean = len(values), float(values.mean())
    half = 0.0
    if n > 1:
        half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    ends = (max(0.0, mean - half), min(1.0, mean + half))
    return Reading(name=name, value=min(1.0, mean), n=n, ci95=ends)


def _fraction(step: float) -> str:
    return f"{255 * step:g}/255"
