"""One stage on one model: the fixed partition, counted, checked and recorded batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench.attacks.counting import Counted
from aal_bench.attacks.stages import Clean, Stage
from aal_bench.data.splits import Images, Split
from aal_bench.errors import RunFailed
from aal_bench.evidence import Evidence
from aal_bench.progress import track
from aal_bench.registry import AUTOATTACK
from aal_bench.threat import TOLERANCE


class Victim(NamedTuple):
    """What is attacked: the model in eval mode, the images in evaluation order, where and how."""

    model: nn.Module
    split: Split
    device: torch.device
    batch_size: int


Fooled = Callable[[np.ndarray, np.ndarray], None]
"""(rows, adversarials float32): keeps the adversarials of fooled rows."""
Saved = Callable[[float, dict[str, float]], None]
"""(seconds, max violation) of the batch that the evidence now holds."""


def run_stage(
    stage: Stage, victim: Victim, evidence: Evidence, fooled: Fooled, saved: Saved
) -> None:
    """Run what `evidence` lacks of `stage`; `saved` is called after every batch.

    The partition depends on the verdicts of *earlier* stages only, so a killed stage continues with
    the same batches, and a batch's result depends on (attack, seed, batch content) alone.

    Raises:
        RunFailed: the attack raised, left the ball or the box, or met logits that are not finite.
    """
    targets = _to_attack(stage, evidence)
    if stage.name != "clean":
        _skip_fallen(stage, evidence, targets)
    counted = Counted(victim.model)
    with track(stage.name, len(targets)) as progress, _exact_arithmetic():
        for images in victim.split.batches(
            torch.from_numpy(targets),
            victim.batch_size,
            augment="none",
            pad=0,
            seed=0,
            device=victim.device,
        ):
            rows = images.idx.cpu().numpy()
            if evidence.done(stage.name)[rows].all():
                progress.skip(len(rows))
                continue
            began = time.perf_counter()
            x_adv, pred = _attack(stage, counted, images)
            violation = _within_bounds(stage, x_adv, images.x)
            _record(stage, evidence, images, rows, x_adv, pred, counted)
            wrong = pred != images.y
            if stage.name != "clean" and bool(wrong.any()):
                fooled(rows[wrong.cpu().numpy()], x_adv[wrong].float().cpu().numpy())
            saved(time.perf_counter() - began, violation)
            progress.advance(len(rows))


def _to_attack(stage: Stage, evidence: Evidence) -> np.ndarray:
    if isinstance(stage, Clean):
        return np.arange(len(evidence))
    standing = evidence.clean_correct()
    if stage.sequential:
        earlier = AUTOATTACK[: AUTOATTACK.index(stage.name)]
        standing &= evidence.robust([name for name in earlier if name in evidence.stages])
    return np.flatnonzero(standing)


def _skip_fallen(stage: Stage, evidence: Evidence, targets: np.ndarray) -> None:
    fallen = np.ones(len(evidence), bool)
    fallen[targets] = False
    fallen &= ~evidence.done(stage.name)
    evidence.skip(stage.name, np.flatnonzero(fallen))


def _attack(stage: Stage, counted: Counted, images: Images) -> tuple[Tensor, Tensor]:
    counted.watch(images.x)
    # Like AutoAttack, every stage draws the same numbers for every batch: order and rank of the
    # batches cannot matter.
    with torch.random.fork_rng(devices=_cuda(images.x)):
        torch.manual_seed(stage.setting.seed)
        try:
            with torch.enable_grad():
                x_adv = stage.perturb(counted, images.x, images.y).detach()
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise RunFailed(
                f"stage {stage.name} raised {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
    with torch.no_grad():
        logits = counted(x_adv)
    if not bool(torch.isfinite(logits).all()):
        raise RunFailed(f"stage {stage.name}: the model's logits are not finite")
    return x_adv, logits.argmax(1)


def _within_bounds(stage: Stage, x_adv: Tensor, x: Tensor) -> dict[str, float]:
    violation = stage.setting.threat.violation(x_adv, x)
    if not max(violation) <= TOLERANCE:  # NaN is a violation too
        raise RunFailed(
            f"stage {stage.name} left its bounds: eps exceeded by {violation.norm:.2e}, the box by"
            f" {violation.box:.2e} (tolerance {TOLERANCE:.0e})"
        )
    return violation._asdict()


def _record(
    stage: Stage,
    evidence: Evidence,
    images: Images,
    rows: np.ndarray,
    x_adv: Tensor,
    pred: Tensor,
    counted: Counted,
) -> None:
    if stage.name == "clean":
        evidence.record("clean", rows, pred=pred.cpu().numpy())
        return
    forwards, backwards = counted.counts()
    evidence.record(
        stage.name,
        rows,
        pred=pred.cpu().numpy(),
        norm=stage.setting.threat.distance(x_adv, images.x).cpu().numpy(),
        forwards=forwards.numpy(),
        backwards=backwards.numpy(),
    )


class _exact_arithmetic:  # noqa: N801 - used as a context
    """fp32 without TF32, and kernels chosen by shape alone: the same verdicts on every run."""

    def __enter__(self) -> None:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        self.before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark
        cudnn.allow_tf32, matmul.allow_tf32 = False, False
        cudnn.deterministic, cudnn.benchmark = True, False

    def __exit__(self, *exception: object) -> None:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = self.before


def _cuda(x: Tensor) -> list[torch.device]:
    return [x.device] if x.device.type == "cuda" else []
