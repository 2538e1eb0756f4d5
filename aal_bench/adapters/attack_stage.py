"""One stage on one model: the fixed partition, counted, checked and recorded batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench.attacks.counting import Counted
from aal_bench.attacks.stages import Clean, Stage
from aal_bench.data.splits import Images, Split
from aal_bench.errors import RunFailed, UserError
from aal_bench.evidence import Evidence
from aal_bench.progress import track
from aal_bench.registry import follows
from aal_bench.threat import TOLERANCE

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What an attack or a model fails with. Any other exception ends the run as well, as itself."""


class Attackable(Protocol):
    """What is attacked, cut into batches; a batch's result depends on its content alone."""

    def batches(self, rows: np.ndarray) -> Iterator[tuple[Callable[[], nn.Module], Images]]:
        """Yield what makes the model of a batch, and its images; `idx` are rows of the evidence.

        Args:
            rows: ascending rows of the evidence, to be attacked.
        """
        ...


class Victim(NamedTuple):
    """One model (put into eval mode) for all images, in order, cut at `batch_size`."""

    model: nn.Module
    split: Split
    device: torch.device
    batch_size: int

    def batches(self, rows: np.ndarray) -> Iterator[tuple[Callable[[], nn.Module], Images]]:
        """Yield the one model and its images."""
        counted = Counted(self.model.eval())
        for images in self.split.batches(
            torch.from_numpy(rows),
            self.batch_size,
            augment="none",
            pad=0,
            seed=0,
            device=self.device,
        ):
            yield (lambda: counted), images


Fooled = Callable[[np.ndarray, np.ndarray], None]
"""(rows, adversarials float32): keeps the adversarials of fooled rows."""
Saved = Callable[[float, dict[str, float]], None]
"""(seconds, max violation) of the batch that the evidence now holds."""


def run_stage(
    stage: Stage, victim: Attackable, evidence: Evidence, fooled: Fooled, saved: Saved
) -> None:
    """Run what `evidence` lacks of `stage`; `saved` is called after every batch.

    The partition depends on the verdicts of *earlier* stages only, so a killed stage continues with
    the same batches, and a batch's result depends on (attack, seed, batch content) alone.

    Raises:
        RunFailed: the attack raised, left the ball or the box, or met logits that are not finite or
            a model in training mode.
        UserError: the model does not return one logit per class.
    """
    targets = _to_attack(stage, evidence)
    if stage.name != "clean":
        _skip_fallen(stage, evidence, targets)
    with track(stage.name, len(targets)) as progress, exact_arithmetic():
        for make, images in victim.batches(targets):
            rows = images.idx.cpu().numpy()
            if evidence.done(stage.name)[rows].all():
                progress.skip(len(rows))
                continue
            began = time.perf_counter()
            counted = _counted(stage, make)
            x_adv, pred, violation = _attack(stage, counted, images)
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
    if stage.closing:
        standing &= evidence.robust([name for name in evidence.stages if name != stage.name])
    elif stage.sequential:
        earlier = follows(stage.name)
        standing &= evidence.robust([name for name in earlier if name in evidence.stages])
    return np.flatnonzero(standing)


def _skip_fallen(stage: Stage, evidence: Evidence, targets: np.ndarray) -> None:
    fallen = np.ones(len(evidence), bool)
    fallen[targets] = False
    fallen &= ~evidence.done(stage.name)
    evidence.skip(stage.name, np.flatnonzero(fallen))


def _counted(stage: Stage, make: Callable[[], nn.Module]) -> Counted:
    try:
        model = make()
    except FAILURES as error:
        reason = str(error).partition("\n")[0]
        raise RunFailed(f"stage {stage.name}: {type(error).__name__}: {reason}") from error
    return model if isinstance(model, Counted) else Counted(model.eval())


def _attack(
    stage: Stage, counted: Counted, images: Images
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Adversarials, predictions on them, and how far they leave ball and box."""
    counted.watch(images.x)
    parts = list(counted.modules())
    watching = counted.register_forward_pre_hook(lambda *_: _refuse_training(stage, parts))
    try:
        # Like AutoAttack, every stage draws the same numbers for every batch: order and rank of
        # the batches cannot matter.
        with torch.random.fork_rng(devices=_cuda(images.x)), torch.enable_grad():
            torch.manual_seed(stage.setting.seed)
            # A copy: an attack that writes into its input must not move the centre of the ball.
            x_adv = stage.perturb(counted, images.x.clone(), images.y.clone()).detach()
        violation = _within_bounds(stage, x_adv, images.x)
        _refuse_training(stage, parts)  # however the attack left it
        with torch.no_grad():
            logits = counted(x_adv)
        _refuse_training(stage, parts)  # whatever its own forward did
    except FAILURES as error:
        reason = str(error).partition("\n")[0]
        raise RunFailed(f"stage {stage.name} raised {type(error).__name__}: {reason}") from error
    finally:
        watching.remove()
    if logits.shape != (len(images.y), stage.setting.classes):
        raise UserError(
            f"the model's logits are {tuple(logits.shape)}; {len(images.y)} images of"
            f" {stage.setting.classes} classes need {(len(images.y), stage.setting.classes)}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise RunFailed(f"stage {stage.name}: the model's logits are not finite")
    if not counted.sound():
        raise RunFailed(
            f"stage {stage.name}: the model's logits or input gradients are not finite on the way;"
            " a signed-gradient attack would take that for robustness"
        )
    return x_adv, logits.argmax(1), violation


def _refuse_training(stage: Stage, parts: list[nn.Module]) -> None:
    """A part in training mode uses the batch's statistics or the labels: another network."""
    if any(part.training for part in parts):
        raise RunFailed(
            f"stage {stage.name}: the model, or a part of it, is in training mode;"
            " an attack is to leave it in eval mode"
        )


def _within_bounds(stage: Stage, x_adv: Tensor, x: Tensor) -> dict[str, float]:
    if x_adv.shape != x.shape:
        raise RunFailed(
            f"stage {stage.name} returned images of shape {tuple(x_adv.shape)},"
            f" not {tuple(x.shape)}"
        )
    violation = stage.setting.threat.violation(x_adv, x)
    # Not ">": a NaN must fail too.
    if not (violation.norm <= TOLERANCE and violation.box <= TOLERANCE):
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


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """fp32 without TF32, and kernels chosen by shape alone: the same verdicts on every run."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with cudnn.flags(
            enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        matmul.allow_tf32 = before


def _cuda(x: Tensor) -> list[torch.device]:
    return [x.device] if x.device.type == "cuda" else []
