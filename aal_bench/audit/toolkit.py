"""The attacks of a toolkit, on the images that still stand, their passes counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aal_bench.attacks.linf import attacking
from aal_bench.audit.bank import Bank
from aal_bench.audit.subject import Part

Attack = Callable[[Part, Tensor, Tensor], Tensor]
"""(part, x, y) of correct images -> x'."""


def apgd_t(bank: Bank) -> Tensor:
    """(N,) correct after AutoAttack's APGD-T; images that are wrong already are not sent."""
    from fractions import Fraction

    from aal_bench.attacks.autoattack import APGDT
    from aal_bench.attacks.stages import Setting

    subject = bank.subject
    setting = Setting(
        subject.threat,
        Fraction(subject.step).limit_denominator(10**6),
        subject.classes,
        subject.seed,
    )
    stage = APGDT("apgd-t", setting)

    def attack(part: Part, x: Tensor, y: Tensor) -> Tensor:
        with attacking(part.model):
            return stage.perturb(part.model, x, y)

    return _left_by(bank, attack, bank.correct())


def square(bank: Bank, standing: Tensor) -> Tensor:
    """(N,) which of `standing` (N,) are still correct after Square with the budget's queries."""
    from aal_bench.attacks import blackbox

    subject, queries = bank.subject, bank.budget.square_queries

    def attack(part: Part, x: Tensor, y: Tensor) -> Tensor:
        return blackbox.square(part.model, x, y, subject.eps, queries, subject.seed)

    return _left_by(bank, attack, standing)


def _left_by(bank: Bank, attack: Attack, standing: Tensor) -> Tensor:
    """(N,) which of `standing` are still correct, by a fresh pass over what `attack` returns."""
    left, at = standing.clone(), 0
    for part in bank.subject.parts:
        own = standing[at : at + len(part.y)].nonzero()[:, 0]
        for rows in own.split(bank.subject.batch_size):
            x, y = part.x[rows.to(part.x.device)], part.y[rows.to(part.x.device)]
            with (
                bank.counting(part.model),
                torch.random.fork_rng(devices=[x.device] if x.is_cuda else []),
            ):
                torch.manual_seed(bank.subject.seed)
                moved = attack(part, x, y).detach()
                with torch.no_grad():
                    left[at + rows] = (part.model(moved).argmax(1) == y).cpu()
        at += len(part.y)
    return left
