"""Checks 8 to 10: attacks that know less must find less."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aal_bench.audit.bank import Bank, Loss
from aal_bench.audit.branch import Branch
from aal_bench.audit.outcome import Outcome, not_applicable, percent
from aal_bench.audit.significance import judge_share

STEPS = 20
"""Of PGD on a surrogate."""
LOSSES: tuple[Loss, ...] = ("ce", "margin")


def black_box_weaker(bank: Bank) -> Outcome:
    """8: Square, which sees logits only, breaks nothing that gradient attacks leave."""
    from aal_bench.audit.toolkit import square

    limits, n, standing = bank.thresholds, bank.subject.size, bank.survivors()
    if not bool(standing.any()):
        return not_applicable("White-box attacks leave no image that Square could break.")
    broken = int((standing & ~bank.once("square", lambda: square(bank, standing))).sum())
    return Outcome(
        judge_share(broken, n, limits.blackbox_gap),
        f"Of {int(standing.sum())} images that the white-box attacks leave, Square with"
        f" {bank.budget.square_queries:,} queries breaks {broken} ({percent(broken / n)} of all"
        f" {n}).",
        value=round(broken / n, 4),
        threshold=limits.blackbox_gap,
        measured={"standing": int(standing.sum()), "broken": broken},
    )


def transfer_weaker(bank: Bank) -> Outcome:
    """9: adversarials of other networks break nothing that white-box attacks leave."""
    limits, n = bank.thresholds, bank.subject.size
    surrogates = _surrogates(bank)
    if not surrogates:
        return not_applicable(
            "No other network of the task is known whose adversarials could be tried; name one with"
            " --surrogate."
        )
    standing = bank.survivors()
    if not bool(standing.any()):
        return not_applicable(
            "White-box attacks leave no image that a transferred one could break."
        )
    fallen = torch.zeros_like(standing)
    measured: dict[str, float] = {"standing": int(standing.sum())}
    for number, (name, network) in enumerate(surrogates):
        key = f"transfer {number} from {name}"  # two may have one name
        broken = bank.once(key, lambda at=network: _broken(bank, at, standing))
        measured[f"broken by {name}"] = int(broken.sum())
        fallen |= broken
    count = int(fallen.sum())
    return Outcome(
        judge_share(count, n, limits.transfer_share),
        f"Adversarials of {len(surrogates)} other networks ({', '.join(k for k, _ in surrogates)})"
        f" break {count} of {int(standing.sum())} images that the white-box attacks leave.",
        value=round(count / n, 4),
        threshold=limits.transfer_share,
        measured=measured,
    )


def _surrogates(bank: Bank) -> list[tuple[str, nn.Module]]:
    """Those given, the undefended one, and the small one that the control of check 28 trains."""
    subject = bank.subject
    found = list(subject.surrogates)
    if subject.undefended is not None:
        found.append(("the undefended network", subject.undefended))
    if subject.training_images is not None:
        from aal_bench.audit.control import control_network

        control = control_network(bank)
        if control is not None:
            found.append(("a control trained here", control))
    return found


def _broken(bank: Bank, surrogate: nn.Module, standing: Tensor) -> Tensor:
    """(N,) which of `standing` the surrogate's adversarials break."""
    away, target = Branch(bank, standing, model=surrogate), Branch(bank, standing)
    fallen = torch.zeros(int(standing.sum()), dtype=torch.bool)
    for loss in LOSSES:
        run = away.run_pgd(bank.subject.eps, bank.subject.step, STEPS, loss)
        fallen |= target.predictions(run.x_adv) != target.y
    broken = torch.zeros_like(standing)
    broken[standing] = fallen
    return broken


def random_noise_weaker(bank: Bank) -> Outcome:
    """10: random points of the ball and of its corners break nothing that attacks leave."""
    limits, points = bank.thresholds, bank.budget.random_points
    standing = bank.survivors()
    chosen = standing & (standing.cumsum(0) <= bank.budget.random_images)
    n = int(chosen.sum())
    if n == 0:
        return not_applicable("White-box attacks leave no image that noise could break.")
    broken = n - int(bank.once("random points", lambda: _survive_noise(bank, chosen)).sum())
    return Outcome(
        judge_share(broken, n, limits.noise_share),
        f"{points:,} random points for each of {n} images that the white-box attacks leave break"
        f" {broken}.",
        value=round(broken / n, 4),
        threshold=limits.noise_share,
        measured={"images": n, "points": points, "broken": broken},
    )


def _survive_noise(bank: Bank, chosen: Tensor) -> Tensor:
    """(n,) which of the `chosen` images stand at every point, half uniform, half corners."""
    eps, stood = bank.subject.eps, []
    size = bank.subject.batch_size
    for part in Branch(bank, chosen).subject.parts:
        for x, y in zip(part.x.split(size), part.y.split(size), strict=True):
            stands = torch.ones_like(y, dtype=torch.bool)
            with bank.counting(part.model), torch.no_grad():
                for point in range(bank.budget.random_points):
                    draw = torch.empty_like(x).uniform_(-1, 1)
                    offset = eps * (draw.sign() if point % 2 else draw)
                    stands &= part.model((x + offset).clamp(0, 1)).argmax(1) == y
            stood.append(stands.cpu())
    return torch.cat(stood)
