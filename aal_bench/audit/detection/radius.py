"""Checks 5, 7 and 10 on a detector: the loss against eps, without bound, and against noise."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from aal_bench.audit.detection.bank import DetectorBank
from aal_bench.audit.detection.judge import compared, few
from aal_bench.audit.outcome import Outcome, Verdict, gravest
from aal_bench.audit.significance import judge_share

GREY = 255


def monotone_in_eps(bank: DetectorBank) -> Outcome:
    """5: the loss that PGD reaches does not fall from one eps to the next larger one."""
    subject, limit = bank.subject, bank.thresholds.monotone
    steps = bank.budget.detector_sweep_steps
    reached: dict[float, Tensor] = {0.0: bank.slopes().loss}
    for eps in sorted({grey / GREY for grey in bank.budget.detector_sweep} | {subject.eps}):
        # The step is the same share of every eps: the task's own run has begun with these steps.
        run = bank.pgd() if eps == subject.eps else bank.pgd_at(eps)
        reached[eps] = run.loss[: steps + 1].amax(0)
    verdicts: list[Verdict] = []
    worst, told = 0.0, ""
    pairs = list(reached.items())
    for (small, below), (large, above) in pairwise(pairs):
        before, after = float(below.mean()), float(above.mean())
        fall = (before - after) / before if before > 0 else 0.0
        found = compared(above, below, limit)
        verdicts.append(found.judged if not fall <= limit or found.judged != "fail" else "pass")
        if verdicts[-1] == "fail":
            told += (
                f" From {GREY * small:g}/255 to {GREY * large:g}/255 the mean loss falls from"
                f" {before:.3g} to {after:.3g}, on {found.below} of {found.n} images."
            )
        worst = max(worst, fall)
    losses = ", ".join(f"{GREY * eps:g}/255: {float(loss.mean()):.3g}" for eps, loss in pairs)
    return Outcome(
        gravest(*verdicts),
        f"The mean loss under PGD-{steps} by eps is {losses}.{told}{few(subject.size)}",
        value=round(worst, 5),
        threshold=limit,
        measured={f"{GREY * eps:g}/255": float(loss.mean()) for eps, loss in pairs},
    )


def unbounded_attack(bank: DetectorBank) -> Outcome:
    """7: with eps = 1, where any image is allowed, every image's loss rises."""
    clean, reached = bank.slopes().loss, bank.pgd_at(1.0).highest
    left = int((~(reached > clean)).sum())
    return Outcome(
        "fail" if left else "pass",
        f"With eps = 1 PGD-{bank.budget.detector_sweep_steps} raises the mean loss from"
        f" {float(clean.mean()):.3g} to {float(reached.mean()):.3g} and fails to raise it on {left}"
        f" of {len(clean)} images.",
        value=left,
        threshold=0,
        measured={"clean": float(clean.mean()), "eps 1": float(reached.mean())},
    )


def random_noise_weaker(bank: DetectorBank) -> Outcome:
    """10: no random point of the ball has a higher loss than the best of PGD and FGSM."""
    points, limit = bank.budget.detector_points, bank.thresholds.noise_share
    noise = bank.once("noise", lambda: _noise(bank, points)).amax(0)
    attacked = bank.pgd().highest.maximum(bank.fgsm_loss())
    count, n = int((~(noise <= attacked)).sum()), len(noise)
    return Outcome(
        judge_share(count, n, limit),
        f"The highest of {points} random points' losses is {float(noise.mean()):.3g} on average,"
        f" PGD's and FGSM's {float(attacked.mean()):.3g}; noise is the stronger one on {count} of"
        f" {n} images.",
        value=round(count / n, 4),
        threshold=limit,
        measured={"noise": float(noise.mean()), "attack": float(attacked.mean()), "images": count},
    )


def _noise(bank: DetectorBank, points: int) -> Tensor:
    """Losses (P,N) at points of the ball, uniform ones and corners by turns."""
    found = []
    generator = torch.Generator().manual_seed(bank.seed)
    for number in range(points):
        drawn = [2 * torch.rand(x.shape, generator=generator) - 1 for x in bank.x]
        if number % 2:
            drawn = [each.sign() for each in drawn]
        lengths = [
            bank.subject.eps * each.abs().to(x) for each, x in zip(drawn, bank.x, strict=True)
        ]
        points_ = bank.moved([each.to(x) for each, x in zip(drawn, bank.x, strict=True)], lengths)
        found.append(bank.losses(points_))
    return torch.stack(found)
