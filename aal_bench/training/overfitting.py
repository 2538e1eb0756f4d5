"""Catastrophic overfitting, noticed while it happens (Wong et al. 2020, arXiv 2001.03994).

A network that is trained on one-step attacks may learn to mislead that step: from one epoch to the
next PGD finds adversarial images everywhere, where FGSM finds fewer than before. The training loop
looks for it on one fixed batch of training images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start
from aal_bench.data.splits import Split
from aal_bench.methods.base import fp32
from aal_bench.training.step import Setting

FALL = 0.20
"""Of PGD accuracy between two readings; Wong et al. stop at a larger one."""
GAP = 0.25
"""Of FGSM accuracy above PGD accuracy; networks that have not collapsed stay well below it."""
STEPS = 5
"""Of the PGD, each of a quarter of eps, as Wong et al. take."""
IMAGES = 128
"""On the batch, at most."""
ALPHA, LEAST = 0.01, 3
"""A rule holds only if the images behind it are significant at this level, and so many at least."""

Rule = Literal["fall", "gap", "leak"]
CRITERION: dict[Rule, float] = {"fall": FALL, "gap": GAP, "leak": 0.0}
"""By how much one accuracy is above another one where the rule holds."""


class Reading(NamedTuple):
    """Which images of the batch the network answers rightly: bool (n,), on the CPU."""

    clean: Tensor
    fgsm: Tensor
    pgd: Tensor

    def accuracies(self) -> dict[str, float]:
        """The three shares, under their names."""
        return {name: float(right.double().mean()) for name, right in self._asdict().items()}


def read(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Reading:
    """Attack x (n, 3, H, W) in [0, 1] with one step of eps, and with PGD-5 from a uniform start.

    Both maximise cross-entropy, in eval mode; the model's modes, running statistics and ``.grad``
    are left as they were. Cost: 8 forwards, 6 backwards to x (the clean answers are those of
    FGSM's own forward). Draws from torch's generator of the device.
    """
    seen: list[Tensor] = []

    def loss(images: Tensor) -> Tensor:
        logits = fp32(model(images))
        if not seen:
            seen.append(logits.detach())
        return functional.cross_entropy(logits, y, reduction="sum")

    with attacking(model, bn="eval"):
        one_step = linf_pgd(loss, x, x, eps, eps, 1)
        iterated = linf_pgd(loss, x, uniform_start(x, eps), eps, eps / 4, STEPS)
        with torch.no_grad():
            answers = [*seen, model(one_step), model(iterated)]
    # A network that diverged answers nothing, and the loop has a message of its own for it.
    return Reading(*((z.isfinite().all(1) & (z.argmax(1) == y)).cpu() for z in answers))


def rule_of(before: Reading | None, now: Reading) -> Rule | None:
    """The first rule by which a reading is that of a collapsed network; `before`: the last one.

    ``fall``: PGD accuracy fell by over 20 points, and FGSM misses most of the images that fell.
    (Late in training accuracy swings by as much at high learning rates; FGSM then swings with it.)
    ``gap``: FGSM accuracy is over 25 points above PGD's. ``leak``: FGSM accuracy is above clean.
    """
    if before is not None:
        fell, rose = before.pgd & ~now.pgd, now.pgd & ~before.pgd
        missed = int((fell & now.fgsm).sum())
        if _beyond(FALL, fell, rose) and 2 * missed > int(fell.sum()):
            return "fall"
    if _beyond(GAP, now.fgsm & ~now.pgd, now.pgd & ~now.fgsm):
        return "gap"
    if _beyond(0.0, now.fgsm & ~now.clean, now.clean & ~now.fgsm):
        return "leak"
    return None


def _beyond(share: float, more: Tensor, less: Tensor) -> bool:
    """Whether ``(more - less) / n > share``, on images enough to mean it."""
    a, b = int(more.sum()), int(less.sum())
    return (a - b) / len(more) > share and significant(a, b)


def significant(a: int, b: int) -> bool:
    """Whether `a` of the a + b images that changed, rather than `b`, is more than chance.

    Exact one-sided sign test: P(X >= a) for X ~ Binomial(a + b, 1/2) is at most 1 %.
    """
    tail = sum(math.comb(a + b, k) for k in range(a, a + b + 1))
    return a >= LEAST and tail <= ALPHA * 2 ** (a + b)


class Watch:
    """Reads the network on one fixed batch after an epoch, and remembers whether it collapsed.

    The batch is the first images, at most `IMAGES` and a training batch, of a seeded permutation
    of the training images, not augmented; eps is that of the training attack. Every reading
    attacks from the same start.

    Args:
        setting: of the training.
        seed: of the permutation and of the start.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        run, self.seed = setting.run, seed
        self.every, self.epochs = run.task.train.watch_every, run.task.train.epochs
        self.eps = float(run.training_attack[0])
        self.device = torch.device(run.device)
        self.bf16 = run.precision == "bf16"
        self._split: Split = setting.train
        self._size = min(run.task.train.batch_size, IMAGES)
        self._batch: tuple[Tensor, Tensor] | None = None
        self.last: Reading | None = None
        self.found: dict[str, Any] | None = None
        """The first epoch by which a rule held: epoch, rule, PGD accuracy before (None: the first
        reading) and now, clean and FGSM accuracy now."""
        self.history: list[list[int]] = []
        """Every epoch that was read, and whether the network was a collapsed one."""
        self._stood = 0.0
        """The highest PGD accuracy of a reading that was not that of a collapsed network."""

    def due(self, epoch: int) -> bool:
        """Whether to read after `epoch`, counted from 1; the last one always is."""
        return epoch % self.every == 0 or epoch == self.epochs

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) in [0, 1] and their labels; read once."""
        if self._batch is None:
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(len(self._split), generator=generator)[: self._size]
            images = next(
                self._split.batches(
                    order, len(order), augment="none", pad=0, seed=0, device=self.device
                )
            )
            self._batch = images.x.contiguous(memory_format=torch.channels_last), images.y
        return self._batch

    def look(self, model: nn.Module, epoch: int) -> dict[str, float]:
        """Read `model` after `epoch`; returns the accuracies as columns of ``metrics.jsonl``."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                now = read(model, *self.batch, self.eps)
        self.judge(epoch, now)
        return {f"watch_{name}": value for name, value in now.accuracies().items()}

    def judge(self, epoch: int, now: Reading) -> None:
        """Hold the reading after `epoch` against the rules and the reading before it."""
        before, self.last = self.last, now
        rule, accuracy = rule_of(before, now), now.accuracies()
        # What fell stays fallen, however small the gap, until most of it is back.
        lost = accuracy["pgd"] < self._stood - FALL
        collapsed = rule is not None or (self.collapsed and lost)
        self.history.append([epoch, int(collapsed)])
        if not collapsed:
            self._stood = max(self._stood, accuracy["pgd"])
        if rule is not None and self.found is None:
            stood = None if before is None else before.accuracies()["pgd"]
            self.found = {"epoch": epoch, "rule": rule, "before": stood, "now": accuracy["pgd"]}
            self.found |= {name: accuracy[name] for name in ("clean", "fgsm")}

    @property
    def collapsed(self) -> bool:
        """Whether the latest reading was that of a collapsed network."""
        return bool(self.history and self.history[-1][1])

    def record(self, evaluated: int) -> dict[str, Any] | None:
        """`found` for ``run.json``, and whether the weights of epoch `evaluated` had recovered.

        They are judged by the last reading up to that epoch; "recovered" are also weights of an
        epoch before the collapse.
        """
        if self.found is None:
            return None
        until = [collapsed for epoch, collapsed in self.history if epoch <= evaluated]
        return {**self.found, "recovered": not (until and until[-1])}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to reach the same verdicts."""
        last = None if self.last is None else torch.stack(self.last)
        state = {"last": last, "found": self.found, "history": self.history}
        return {**state, "stood": self._stood}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.last = None if state["last"] is None else Reading(*state["last"])
        self.found, self.history, self._stood = state["found"], state["history"], state["stood"]


def told(found: Mapping[str, Any]) -> str:
    """What was seen, for the log and the report: ``PGD-5 on a fixed training batch fell ...``."""
    name, where = f"PGD-{STEPS}", "a fixed training batch"
    shares = {key: f"{100 * found[key]:.1f} %" for key in ("clean", "fgsm", "now")}
    if found["rule"] == "fall":
        return f"{name} on {where} fell from {100 * found['before']:.1f} % to {shares['now']}"
    if found["rule"] == "gap":
        return f"on {where} {shares['fgsm']} stand against FGSM, {shares['now']} against {name}"
    return f"on {where} {shares['fgsm']} are right under FGSM, {shares['clean']} without an attack"


def measured(found: Mapping[str, Any]) -> float:
    """The difference of two accuracies that `CRITERION` bounds."""
    compared = {"fall": ("before", "now"), "gap": ("fgsm", "now"), "leak": ("fgsm", "clean")}
    above, below = compared[found["rule"]]
    return found[above] - found[below]
