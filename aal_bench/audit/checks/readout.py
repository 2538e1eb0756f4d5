"""Check 30: the attack on a task whose answer is known (Zimmermann et al. 2022, arXiv 2206.13991).

Of one image, points well inside the ball and one corner of it are told apart by a linear read-out
of the network's own features. The corner is an adversarial of that read-out, so a sound attack must
find one. Simplified from the paper: one corner for each read-out, regularised logistic regression,
and a boundary put where only the last thousandth of the way from the inner points to the corner
lies beyond it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench.audit.bank import Bank
from aal_bench.audit.outcome import Outcome, not_applicable
from aal_bench.audit.significance import judge_share
from aal_bench.audit.subject import Part
from aal_bench.training.passes import counting_passes

INNER = 200
"""Points inside the ball, the image among them."""
WITHIN = 0.95
"""They lie within so much of eps."""
CORNERS = 8
"""Corners that are tried until one can be told apart."""
CLOSENESS = 0.999
"""Where the boundary lies on the way from the outermost inner point to the corner."""


class Readout(NamedTuple):
    """One image, and the linear function of features that its corner is beyond."""

    x: Tensor
    """(3,H,W)"""
    corner: Tensor
    """(3,H,W): a known adversarial."""
    origin: Tensor
    """(D,): features of x, subtracted before anything is multiplied."""
    weight: Tensor
    """(D,)"""
    bias: Tensor
    """()"""
    random: bool
    """Whether one of as many further random points of the ball crosses the boundary."""


class Features(nn.Module):
    """x (B,3,H,W) -> what the last linear layer of a network is given, (B,D), flattened."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.linear = [part for part in model.modules() if isinstance(part, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        given: list[Tensor] = []
        hooks = [
            part.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
            for part in self.linear
        ]
        try:
            self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        return given[-1].flatten(1).float()


class BinaryTask(nn.Module):
    """The read-outs of n images, all at once: exactly those images, in order -> logits (n,2)."""

    def __init__(self, features: nn.Module, readouts: list[Readout]) -> None:
        super().__init__()
        self.features = features
        self.origin = torch.stack([each.origin for each in readouts])
        self.weight = torch.stack([each.weight for each in readouts])
        self.bias = torch.stack([each.bias for each in readouts])

    def forward(self, x: Tensor) -> Tensor:
        beyond = ((self.features(x) - self.origin) * self.weight).sum(1) + self.bias
        return torch.stack([-beyond, beyond], 1) / 2


def binary_readout(bank: Bank) -> Outcome:
    """30: the audit's PGD finds an adversarial wherever one is known to exist."""
    wanted, limit = bank.budget.readouts, bank.thresholds.binary_success
    if not any(isinstance(part, nn.Linear) for part in bank.subject.network.modules()):
        return not_applicable("The network ends in no linear layer whose features could be read.")
    solved, by_chance, tried = bank.once("binary read-outs", lambda: _solved(bank, wanted))
    n = len(solved)
    if n == 0:
        return Outcome(
            "not decided",
            f"No linear read-out of the features tells a corner of the ball from its inside, of"
            f" {tried} images.",
        )
    found = int(solved.sum())
    return Outcome(
        judge_share(n - found, n, 1 - limit),
        f"Of {n} binary tasks that have an adversarial for certain the audit's PGD solves {found}"
        f" and {INNER} random points solve {by_chance}.",
        value=round(found / n, 4),
        threshold=limit,
        measured={"success": found / n, "random": by_chance / n, "tasks": n, "images": tried},
    )


def _solved(bank: Bank, wanted: int) -> tuple[Tensor, int, int]:
    """(n,) whether PGD solves each task, how many chance solves, and how many images were tried."""
    solved: list[Tensor] = []
    chance = tried = at = 0
    right = bank.correct()
    for part in bank.subject.parts:
        mine = right[at : at + len(part.y)].nonzero()[:, 0][: wanted - tried]
        at, tried = at + len(part.y), tried + len(mine)
        if not len(mine):
            continue
        with counting_passes(part.model) as counted:
            tasks = [_readout(bank, part, part.x[row]) for row in mine.tolist()]
            tasks = _certain(part, [task for task in tasks if task is not None])
            if tasks:
                solved.append(_attacked(bank, part, tasks))
                chance += sum(task.random for task in tasks)
        bank.charge((counted["forward"], counted["backward"]))
    return torch.cat(solved) if solved else torch.zeros(0, dtype=torch.bool), chance, tried


def _certain(part: Part, tasks: list[Readout]) -> list[Readout]:
    """Those that tell image and corner apart in the very arithmetic that is attacked."""
    if not tasks:
        return []
    with torch.no_grad():
        task = BinaryTask(Features(part.model), tasks).eval()
        inside = task(torch.stack([each.x for each in tasks])).argmax(1) == 0
        beyond = task(torch.stack([each.corner for each in tasks])).argmax(1) == 1
    good = (inside & beyond).tolist()
    return [each for each, certain in zip(tasks, good, strict=True) if certain]


def _readout(bank: Bank, part: Part, x: Tensor) -> Readout | None:
    """A read-out of one image x (3,H,W); None where no corner can be told from the inside."""
    eps = bank.subject.eps
    inner = _uniform(x, WITHIN * eps, INNER)
    inner[0] = x
    signs = torch.randint(0, 2, (CORNERS, *x.shape), device=x.device) * 2 - 1
    corners = (x + eps * signs).clamp(0, 1)
    further = _uniform(x, eps, INNER)
    features = Features(part.model)
    with torch.no_grad():
        seen = features(torch.cat([inner, corners, further])).double().cpu()
    origin = seen[0]
    inside, outside, others = (seen - origin).split([INNER, CORNERS, INNER])
    # One scale for all features: those that are dead inside would get all the weight, and have no
    # gradient there.
    scale = float(inside.std(0).square().mean().sqrt()) + 1e-12
    for number, corner in enumerate(outside):
        direction = _fitted(inside / scale, corner / scale)
        last, there = float((inside @ direction).max()), float(corner @ direction)
        if there <= last:
            continue
        weight = direction / (there - last)
        bias = torch.tensor(-(last / (there - last) + CLOSENESS), dtype=torch.float64)
        random = bool(((others @ weight + bias) > 0).any())
        origin, weight, bias = (each.float().to(x.device) for each in (origin, weight, bias))
        return Readout(x, corners[number], origin, weight, bias, random)
    return None


def _uniform(x: Tensor, eps: float, count: int) -> Tensor:
    noise = torch.empty(count, *x.shape, device=x.device).uniform_(-eps, eps)
    return (x + noise).clamp(0, 1)


def _fitted(inside: Tensor, corner: Tensor) -> Tensor:
    """Direction (D,) of a logistic regression that tells `corner` (D,) from `inside` (n,D)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    points = np.concatenate([inside.numpy(), corner.numpy()[None]])
    labels = np.arange(len(points)) == len(inside)
    regression = LogisticRegression(C=1e3, class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings():
        # Whether it separates is looked at afterwards.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(points, labels)
    return torch.from_numpy(regression.coef_[0])


def _attacked(bank: Bank, part: Part, tasks: list[Readout]) -> Tensor:
    """(n,) whether PGD crosses each boundary: from every start, as the audit's own PGD."""
    task = BinaryTask(Features(part.model), tasks).eval()
    x = torch.stack([each.x for each in tasks])
    inside = torch.zeros(len(x), dtype=torch.long, device=x.device)
    of_tasks = replace(
        bank.subject,
        parts=(Part(task, x, inside, part.rows[: len(x)]),),
        network=task,
        classes=2,
    )
    attack = Bank(of_tasks, bank.budget, bank.thresholds)
    solved = torch.zeros(len(x), dtype=torch.bool)
    for restart in range(bank.budget.restarts):
        if solved.all():
            break
        solved |= ~attack.pgd(restart).stands
    # What begins at the features is no backward pass of the network's output.
    bank.charge((0, attack.spent.backward))
    return solved
