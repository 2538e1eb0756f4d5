"""The learning rate as a closed form of training progress: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from aal_bench.config import Train

ONE_CYCLE_PEAK = 0.4
"""Share of a one-cycle schedule spent rising (Wong et al. 2020 use 2/5)."""


def learning_rate(train: Train, step: int, steps: int) -> float:
    """The rate of optimiser step `step` of `steps`, 0 <= step < steps.

    ``cosine``: lr (1 + cos(pi t)) / 2, from lr to 0 (SGDR without restarts). ``onecycle``: linear
    from 0 to lr at 40 %, then to 0. ``step``: times `decay` at each milestone. Warm-up is linear.
    """
    t = step / steps
    warmup = train.warmup_epochs / train.epochs
    rise = min(1.0, (step + 1) / (warmup * steps)) if warmup else 1.0
    if train.schedule == "cosine":
        shape = (1 + math.cos(math.pi * t)) / 2
    elif train.schedule == "onecycle":
        # The middle of the step, so that neither the first nor the last step has rate 0.
        middle = (step + 0.5) / steps
        shape = min(middle / ONE_CYCLE_PEAK, (1 - middle) / (1 - ONE_CYCLE_PEAK))
    elif train.schedule == "step":
        passed = zip(train.milestones, train.factors, strict=True)
        shape = math.prod(factor for milestone, factor in passed if t >= milestone)
    else:
        shape = 1.0
    return train.lr * rise * shape
