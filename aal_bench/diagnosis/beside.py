"""Finished runs: the diagnosed one, and others on its very images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from aal_bench.adapters.method import build_method
from aal_bench.audit.bank import Bank
from aal_bench.audit.subject import Subject
from aal_bench.audit.table import Budget
from aal_bench.auditing import Wanted, run_of
from aal_bench.config import Run
from aal_bench.diagnosis.measure import network
from aal_bench.diagnosis.measured import Network
from aal_bench.errors import UserError
from aal_bench.methods.base import Method
from aal_bench.run_folder import RunFolder
from aal_bench.runner import load_adapter, rebuild


class Rebuilt(NamedTuple):
    """A finished run, its network ready to be attacked."""

    folder: RunFolder
    run: Run
    adapter: Any
    method: Method
    model: nn.Module

    @property
    def option(self) -> Any:
        """The method's options by attribute."""
        return self.method.options


def rebuilt(path: Path, budget: Budget, data_dir: Path | None, device: str | None) -> Rebuilt:
    """Rebuild the network of a finished run.

    Raises:
        UserError: no finished classification run of its own network, or other images than its.
    """
    folder = RunFolder(path)
    run = run_of(folder, Wanted(path, budget, data_dir=data_dir, device=device))
    if run.task.family != "classification" or run.task.threat.norm != "Linf":
        raise UserError(
            f"{path}: a {run.task.family} run under {run.task.threat}; the hypotheses are about"
            " classification under Linf"
        )
    recorded = folder.record.get("data_dir")
    adapter = load_adapter(run, data_dir or (None if recorded is None else Path(recorded)))
    folder.same_data(adapter.fingerprint())
    method = build_method(run)
    model = rebuild(folder / "model.safetensors", adapter, method)
    model = model.to(run.device).eval().requires_grad_(False)
    return Rebuilt(folder, run, adapter, method, model)


def same_question(other: Rebuilt, own: Rebuilt, option: str) -> None:
    """Refuse a run whose images or whose budget are not those of the diagnosed one.

    Raises:
        UserError: they are not.
    """
    asked = [(each.folder.record.get("fingerprint"), each.run.task.threat) for each in (other, own)]
    subsets = [each.run.task.data for each in (other, own)]
    if asked[0] != asked[1] or subsets[0] != subsets[1]:
        raise UserError(
            f"{option} {other.folder.path}: of other images or another eps than"
            f" {own.folder.path}; train it on the same task"
        )


def measured(other: Rebuilt, name: str, subject: Subject, budget: Budget) -> tuple[Network, Bank]:
    """FGSM and PGD-10 on another run's network, on the images of `subject`."""
    parts = tuple(part._replace(model=other.model) for part in subject.parts)
    bank = Bank(replace(subject, parts=parts, network=other.model), budget)
    return network(bank, name, getattr(other.option, "kernel", "m2")), bank
