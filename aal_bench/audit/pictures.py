"""An audit's figures, from what its bank already holds; only the loss surface costs new passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aal_bench.audit.bank import Bank, NoGradient, loss_of
from aal_bench.audit.checks.radius import standing_at
from aal_bench.audit.outcome import share
from aal_bench.audit.record import WorstCase
from aal_bench.audit.subject import Part
from aal_bench.audit.table import EPS_SWEEP
from aal_bench.evidence import wilson
from aal_bench.figures import Curve
from aal_bench.figures.audit import (
    Surface,
    accuracy_over_eps,
    accuracy_over_steps,
    attack_bars,
    loss_surfaces,
)

SHOWN = 4
"""Images whose loss surface is drawn."""
SPAN = 2.0
"""Half the side of a surface, in units of eps."""
LINEARITY = 20
"""The check that the passes of the surfaces are accounted to."""


def draw(
    bank: Bank,
    folder: Path,
    title: str,
    worst: WorstCase | None = None,
    steps: int | None = None,
) -> list[str]:
    """Draw into ``figures/``.

    A model without gradients has a picture of its adaptive attacks at most.

    Args:
        bank: of a finished audit; the passes of the loss surfaces are accounted to check 20.
        folder: of the run or of the audit.
        title: what is audited, printed above each figure.
        worst: the adaptive attacks, where the model declares a gate or heads.
        steps: of the task's PGD, marked on the axis of steps.

    Returns:
        The paths relative to `folder`.
    """
    target, drawn = folder / "figures", list[str]()
    target.mkdir(parents=True, exist_ok=True)
    try:
        _over_eps(bank, target / "audit_eps.png", title)
        drawn.append("figures/audit_eps.png")
        _over_steps(bank, target / "audit_steps.png", title, steps)
        drawn.append("figures/audit_steps.png")
        with bank.charging(LINEARITY):
            found = surfaces(bank)
        if found:
            shown = f"{title}\nLoss around {len(found)} images"
            loss_surfaces(
                found,
                target / "audit_surface.png",
                SPAN * bank.subject.eps,
                bank.subject.eps,
                shown,
            )
            drawn.append("figures/audit_surface.png")
    except NoGradient:
        pass  # checks 11 and 12 say so
    if worst is not None:
        _bars(worst, target / "audit_adaptive.png", title)
        drawn.append("figures/audit_adaptive.png")
    return drawn


def surfaces(bank: Bank) -> list[Surface]:
    """The loss of up to `SHOWN` images on a grid of sign(gradient) and random signs.

    Pixels stay in [0, 1]. The grid's side is the budget's; every point is one forward pass.

    Raises:
        NoGradient: the model cannot be differentiated.
    """
    return bank.once("loss surfaces", lambda: [_surface(bank, row) for row in _shown(bank)])


def _over_eps(bank: Bank, path: Path, title: str) -> None:
    subject, steps, most = bank.subject, bank.budget.sweep_steps, bank.budget.large_steps
    budgets = sorted({0.0, subject.eps, *(level / 255 for level in EPS_SWEEP)})
    standing = [standing_at(bank, eps) for eps in budgets]
    if max(budgets) < 1:
        budgets.append(1.0)
        standing.append(bank.correct() & bank.pgd_at(1.0, most).stands)
    accuracy_over_eps(
        budgets,
        _curve(torch.stack(standing)),
        path,
        subject.eps,
        1 / subject.classes,
        f"PGD-{steps} (at 255/255 PGD-{most}), 95 % interval",
        f"{title}\nAccuracy against eps, {subject.size} images",
    )


def _over_steps(bank: Bank, path: Path, title: str, steps: int | None) -> None:
    right = bank.correct()
    starts = torch.stack([right & run.correct for run in bank.starts()])
    margin = right & bank.pgd(loss="margin").correct
    several = len(starts) > 1
    name = f"cross-entropy, {len(starts)} starts together" if several else "cross-entropy"
    accuracy_over_steps(
        starts.double().mean(2).numpy() if several else np.empty((0, starts.shape[1])),
        {name: _curve(starts.all(0)), "margin, one start": _curve(margin)},
        path,
        {} if steps is None else {steps: f"task: {steps}"},
        f"{title}\nAccuracy against steps, {bank.subject.size} images",
    )


def _curve(flags: Tensor) -> Curve:
    """The shares of true values of (points, N), with Wilson's intervals."""
    n = flags.shape[1]
    low, high = zip(*(wilson(int(row.sum()), n) for row in flags), strict=True)
    return Curve([share(row) for row in flags], low, high)


def _shown(bank: Bank) -> Sequence[int]:
    """Images to look at: as many that survive PGD as that fall, as far as there are."""
    right, stands = bank.correct(), bank.pgd().stands
    standing = torch.nonzero(right & stands)[:, 0].tolist()
    fallen = torch.nonzero(right & ~stands)[:, 0].tolist()
    half = SHOWN // 2
    few = max(half, SHOWN - len(standing))
    chosen = fallen[:few]
    return [*standing[: SHOWN - len(chosen)], *chosen]


def _surface(bank: Bank, row: int) -> Surface:
    part, place = _part(bank, row)
    x, y = part.x[place], part.y[place]
    # The signs of one seed, whatever was drawn before: the figure is the same every time.
    random = torch.Generator().manual_seed(bank.subject.seed + row)
    signs = torch.randint(0, 2, x.shape, generator=random).to(x) * 2 - 1
    upward = bank.gradient("ce")[row].to(x).sign()
    side, span = bank.budget.grid, SPAN * bank.subject.eps
    along = torch.linspace(-span, span, side, device=x.device)
    losses, margins = [], []
    for other in along:
        points = x + along[:, None, None, None] * upward + other * signs
        with bank.counting(part.model), torch.no_grad():
            logits = part.model(points.clamp(0, 1)).float()
        losses.append(loss_of(logits, y.expand(side), "ce").cpu())
        margins.append(loss_of(logits, y.expand(side), "margin").cpu())
    stands = bool((bank.correct() & bank.pgd().stands)[row])
    told = f"image {part.rows[place]}, class {int(y)}: {'survives' if stands else 'falls to'} PGD"
    return Surface(torch.stack(losses).numpy(), torch.stack(margins).numpy(), told)


def _part(bank: Bank, row: int) -> tuple[Part, int]:
    """The part that the audited image `row` belongs to, and its place there."""
    for part in bank.subject.parts:
        if row < len(part.y):
            return part, row
        row -= len(part.y)
    raise IndexError(f"the audit has no image {row}")


def _bars(worst: WorstCase, path: Path, title: str) -> None:
    attack_bars(
        worst.attacks,
        {
            "no attack": worst.clean,
            "usual attacks": worst.usual,
            "worst case of all": worst.robust,
        },
        path,
        worst.diagnostic,
        f"{title}\nAdaptive attacks: accuracy under each",
    )
