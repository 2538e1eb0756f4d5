"""A bank on part of the images, or on another network, whose passes the first one pays."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.subject import Part


class Branch(Bank):
    """A bank of the same threat, seed and budget; what it makes is charged to `trunk`.

    It remembers what it made, but in the accounts this belongs to whatever `trunk` is making: a
    result that several checks want goes through ``trunk.once``.

    Args:
        trunk: the audit's bank.
        keep: bool (N,), the images it is about; None: all. At least one.
        model: what answers instead of the audited network.
    """

    def __init__(
        self, trunk: Bank, keep: Tensor | None = None, model: nn.Module | None = None
    ) -> None:
        parts = trunk.subject.parts if keep is None else kept(trunk.subject.parts, keep)
        network = trunk.subject.network
        if model is not None:
            network = model.eval()
            device = parts[0].x.device
            parts = tuple(part._replace(model=model.to(device)) for part in parts)
        super().__init__(
            replace(trunk.subject, parts=parts, network=network), trunk.budget, trunk.thresholds
        )
        self._trunk = trunk

    def charge(self, spent: tuple[int, int]) -> None:
        """Account for passes (forward, backward) in the trunk."""
        self._trunk.charge(spent)


def kept(parts: tuple[Part, ...], keep: Tensor) -> tuple[Part, ...]:
    """The images of `parts` where `keep` (N,) is true; parts of which none is left are gone."""
    found, at = [], 0
    for part in parts:
        chosen = keep[at : at + len(part.y)]
        at += len(part.y)
        if bool(chosen.any()):
            there = chosen.to(part.x.device)
            found.append(
                part._replace(x=part.x[there], y=part.y[there], rows=part.rows[chosen.numpy()])
            )
    return tuple(found)


def beginning(parts: tuple[Part, ...], count: int) -> tuple[Part, ...]:
    """The first `count` images of `parts`."""
    found = []
    for part in parts:
        taken = min(count, len(part.y))
        count -= taken
        if taken:
            found.append(part._replace(x=part.x[:taken], y=part.y[:taken], rows=part.rows[:taken]))
    return tuple(found)


def baseline_of(bank: Bank) -> Branch | None:
    """A bank of the subject's baseline on the same images, one for all checks; None without one."""
    model = bank.subject.baseline
    return None if model is None else bank.once("baseline", lambda: Branch(bank, model=model))
