"""``aal-bench diagnose aal RUN``: from a run's folder to ``diagnosis.json`` and its figure."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from aal_bench import environment
from aal_bench.aal.attention import has_gate
from aal_bench.aal.options import Selective
from aal_bench.aal.selective import fgsm_step
from aal_bench.adapters.attack_stage import exact_arithmetic
from aal_bench.adapters.pictures import identity, metrics
from aal_bench.attacks.adaptive.declared import gates
from aal_bench.audit.bank import Bank, NoGradient
from aal_bench.audit.of_run import subject_of
from aal_bench.audit.table import FULL, QUICK, THRESHOLDS
from aal_bench.config import parse
from aal_bench.diagnosis import printed
from aal_bench.diagnosis.beside import Rebuilt, measured, rebuilt, same_question
from aal_bench.diagnosis.hypotheses import Evidence, judge
from aal_bench.diagnosis.measure import measure
from aal_bench.diagnosis.measured import KINDS, Network
from aal_bench.diagnosis.record import Diagnosis, Epoch
from aal_bench.errors import UserError
from aal_bench.figures.diagnosis import Bar, draw
from aal_bench.files import write_text
from aal_bench.hashing import sha256_file
from aal_bench.methods.fgsm import FGSM
from aal_bench.schema import Environment

FILE, FIGURE = "diagnosis.json", "figures/diagnosis.png"
CONSTANT = "const_mask_matched_mean"
"""The control of H6: each image's mask at its own mean."""
BUDGETS = {"quick": QUICK, "full": FULL._replace(steps=50)}
"""The audit's, with PGD-50 in place of PGD-100: what H3 names."""


class Asked(NamedTuple):
    """What was typed."""

    run: Path
    quick: bool = False
    data_dir: Path | None = None
    device: str | None = None
    control: Path | None = None
    undefended: Path | None = None
    kernels: tuple[Path, ...] = ()
    command: tuple[str, ...] = ()


class Others(NamedTuple):
    """Networks of other runs, measured."""

    kernels: tuple[Network, ...] = ()
    undefended: Network | None = None
    control: Network | None = None
    banks: tuple[Bank, ...] = ()


def diagnose(asked: Asked) -> Diagnosis:
    """Measure, judge, and write ``diagnosis.json`` and the figure into the run's folder.

    Raises:
        UserError: no finished classification run, one without a gate, or another that is not of
            the same images.
    """
    began = time.perf_counter()
    budget = BUDGETS["quick" if asked.quick else "full"]
    own = rebuilt(asked.run, budget, asked.data_dir, asked.device)
    options = _options(own)
    bank = Bank(subject_of(own.adapter, own.model, budget), budget)
    try:
        with exact_arithmetic():
            found = measure(bank, options, own.run.task.train.lr, _step(own, options))
            others = _others(asked, own, bank)
    except NoGradient as error:
        raise UserError(
            f"{asked.run}: its network has no gradient to attack with: {error}"
        ) from error
    epochs = _epochs(own.folder / "metrics.jsonl")
    table8 = printed.by_kernel()
    evidence = Evidence(
        measured=found,
        eps=bank.subject.eps,
        attack=f"PGD-{budget.steps} x {budget.restarts}",
        table8=table8,
        printed=printed.of_run(own.run),
        epochs=epochs,
        kernels=others.kernels,
        undefended=others.undefended,
        control=others.control,
        commands={"H6": _control_command(own)},
    )
    hypotheses = judge(evidence)
    (asked.run / "figures").mkdir(exist_ok=True)
    draw(
        _bars(found.own),
        {kernel: one.value for kernel, one in table8.items()},
        {row.epoch: row.mean_k for row in epochs if row.mean_k is not None},
        float(found.own.k.mean()),
        THRESHOLDS.closed_mask,
        asked.run / FIGURE,
        f"{identity(own.run)}\nMasked and full attacks, {bank.subject.size} images",
    )
    spent = [each.spent for each in (bank, *others.banks)]
    diagnosis = Diagnosis(
        subject={
            "task": own.run.task.id,
            "threat": str(own.run.task.threat),
            "model": own.run.model.name,
            "method": own.run.method.name,
            "kernel": options.kernel,
            "control": options.control,
            "seed": own.run.seed,
            "checkpoint": sha256_file(own.folder / "model.safetensors"),
        },
        budget=budget.name,
        images=bank.subject.size,
        hypotheses=hypotheses,
        training=epochs,
        forwards=sum(each.forward for each in spent),
        backwards=sum(each.backward for each in spent),
        seconds=round(time.perf_counter() - began, 2),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=list(asked.command),
        environment=parse(Environment, environment.describe(), "environment"),
        figures=[FIGURE],
    )
    write_text(asked.run / FILE, dumps(diagnosis))
    return diagnosis


def dumps(diagnosis: Diagnosis) -> str:
    """The diagnosis as the text of its file."""
    return json.dumps(diagnosis.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def _options(own: Rebuilt) -> Selective:
    """The options of the AAL method that trained the run.

    Raises:
        UserError: another method, or a network without a gate.
    """
    options, path = own.option, own.folder.path
    if not isinstance(options, Selective):
        raise UserError(
            f"{path}: trained by {own.run.method.name}, the hypotheses are about AAL; train a run"
            " with --method aal-fgsm or aal-pgd"
        )
    if not has_gate(own.model) or len(gates(own.model)) != 1:
        raise UserError(
            f"{path}: its network has no attention gate (control = {options.control}); diagnose a"
            " run without --set control=no_gate"
        )
    return options


def _step(own: Rebuilt, options: Selective) -> float:
    """Of the method's first perturbation, as it enters M^a (A5, A13)."""
    threat: Any = own.method.threat
    if issubclass(getattr(own.method, "base", object), FGSM):
        return float(fgsm_step(threat.eps, options))
    return float(threat.step)


def _others(asked: Asked, own: Rebuilt, bank: Bank) -> Others:
    banks: list[Bank] = []

    def other(path: Path, option: str, control: str | None = None) -> Network:
        found = rebuilt(path, bank.budget, asked.data_dir, asked.device)
        same_question(found, own, option)
        if control is not None and getattr(found.option, "control", "none") != control:
            raise UserError(
                f"{option} {path}: was not trained with control = {control};"
                f" train it with {_control_command(own)}"
            )
        measured_, used = measured(found, path.name, bank.subject, bank.budget)
        banks.append(used)
        return measured_

    kernels = tuple(_gated(other(path, "--kernel-run"), path) for path in asked.kernels)
    return Others(
        kernels=kernels,
        undefended=None if asked.undefended is None else other(asked.undefended, "--undefended"),
        control=None if asked.control is None else other(asked.control, "--control", CONSTANT),
        banks=tuple(banks),
    )


def _gated(network: Network, path: Path) -> Network:
    if not network.masked:
        raise UserError(f"--kernel-run {path}: its network has no attention gate")
    return network


def _control_command(own: Rebuilt) -> str:
    """What trains the control: the run's own command with the mask replaced, in a new folder."""
    typed = [str(word) for word in own.folder.record.get("command", ())][1:]
    if typed[:1] != ["run"]:  # begun by a program
        typed = ["run", own.run.task.name, "--method", own.run.method.name]
    words = ["aal-bench", *_without(typed, values={"--out"}, flags={"--resume"})]
    return shlex.join([*words, "--set", f"control={CONSTANT}"])


def _without(words: Sequence[str], values: set[str], flags: set[str]) -> Iterable[str]:
    """The words less those options, written with a space or with ``=``."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in values:
            skip = True
        elif word not in flags and word.partition("=")[0] not in values:
            yield word


def _epochs(path: Path) -> list[Epoch]:
    """The log, as far as it is about the mask and overfitting."""
    known = Epoch.model_fields.keys()
    rows = [{key: value for key, value in row.items() if key in known} for row in metrics(path)]
    return [Epoch(**row) for row in rows if row.keys() - {"epoch"}]


def _bars(own: Network) -> dict[str, dict[str, Bar]]:
    """Kernel, or ``full`` -> attack -> accuracy."""
    full = {"fgsm": own.fgsm, "pgd": own.pgd}
    places = {"full": full} | {
        kernel: {kind: own.masked[kind, kernel] for kind in KINDS}
        for kernel in ("one_minus_m2", "m", "m2")
    }
    return {
        place: {kind: Bar(int(right.sum()), len(right)) for kind, right in kinds.items()}
        for place, kinds in places.items()
    } | {"clean": {"clean": Bar(int(own.clean.sum()), len(own.clean))}}
