"""Every adversarial and gradient of an audit, made once and shared by the checks.

A check asks for what it needs by name; the bank makes it the first time and remembers which check
asked. So the audit can say what it cost, and what each check for itself would have cost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.aal.gradients import surfacing_sign
from aal_bench.attacks.linf import attacking, input_gradient, uniform_start
from aal_bench.audit.accounts import Accounts, NoGradient
from aal_bench.audit.subject import Part, Subject
from aal_bench.audit.table import THRESHOLDS, Budget, Thresholds

BROKEN_CHAIN = (
    "does not require grad",
    "not have been used in the graph",
    "derivative for",
    "is not differentiable",
    "backward through the graph a second time",
    "modified by an inplace operation",
    "is a view and is being modified inplace",
    "Inference tensors",
)
"""What autograd says where it cannot differentiate; any other RuntimeError is the model's own."""
Loss = Literal["ce", "margin", "dlr"]
"""What an attack maximises: cross-entropy; max_{k != y} z_k - z_y; the latter, scale-free."""


class Trajectory(NamedTuple):
    """One run of PGD on all audited images: what every iterate did, from the start to the end."""

    loss: Tensor
    """(S+1, N): loss at iterate 0 (the start) to S (what is returned)."""
    correct: Tensor
    """(S+1, N) bool."""
    x_adv: Tensor
    """(N, 3, H, W): the last iterate."""
    first: Tensor
    """(N, 3, H, W): the first iterate that fools the model; the last where none does."""
    finite: Tensor
    """(N,) bool: logits and gradients were finite all the way; where not, the image has fallen."""

    @property
    def stands(self) -> Tensor:
        """(N,) correct at every iterate, the start included."""
        return self.correct.all(0)

    def at(self, step: int) -> Tensor:
        """(N,) correct at iterate `step`: what PGD of so many steps returns."""
        return self.correct[step]


class Bank(Accounts):
    """What the checks share, about one subject under one budget.

    Every tensor is over all N audited images in the order of the subject's parts, on the CPU.
    """

    def __init__(
        self, subject: Subject, budget: Budget, thresholds: Thresholds = THRESHOLDS
    ) -> None:
        super().__init__(subject.seed)
        self.subject, self.budget, self.thresholds = subject, budget, thresholds

    # ---- what is shared ----------------------------------------------------------------------

    @cached_property
    def x(self) -> Tensor:
        """The audited images (N,3,H,W)."""
        return torch.cat([part.x for part in self.subject.parts]).cpu()

    @cached_property
    def y(self) -> Tensor:
        """Their labels (N,)."""
        return torch.cat([part.y for part in self.subject.parts]).cpu()

    def clean(self) -> Tensor:
        """Logits (N,K) of the images themselves."""
        return self.once("clean", lambda: self.logits(self.x))

    def correct(self) -> Tensor:
        """(N,) whether the image itself is classified correctly."""
        return classes_of(self.clean()) == self.y

    def gradient(self, loss: Loss = "ce") -> Tensor:
        """Gradient (N,3,H,W) of the loss at x.

        Raises:
            NoGradient: the model cannot be differentiated.
        """
        return self.once(f"gradient {loss}", lambda: self.gradient_at(self.x, self.y, loss))

    def fgsm(self) -> Tensor:
        """FGSM's images (N,3,H,W): x + eps sign(gradient), in the box."""
        g = self.gradient("ce")
        return (self.x + self.subject.eps * surfacing_sign(g)).clamp(0, 1)

    def fgsm_correct(self) -> Tensor:
        """(N,) correct after FGSM."""
        return self.once("fgsm", lambda: self.predictions(self.fgsm()) == self.y)

    def pgd(self, restart: int = 0, loss: Loss = "ce") -> Trajectory:
        """PGD of the budget's most steps under the task's eps and step, from one random start.

        PGD of fewer steps is its beginning.
        """
        return self.once(
            f"pgd {loss} {restart}",
            lambda: self.run_pgd(
                self.subject.eps, self.subject.step, self.budget.steps, loss, restart
            ),
        )

    def long_pgd(self) -> Trajectory:
        """PGD of the budget's `long_steps`, one start; the budget must have some."""
        subject, steps = self.subject, self.budget.long_steps
        return self.once(
            "pgd long", lambda: self.run_pgd(subject.eps, subject.step, steps, keep=False)
        )

    def step_at(self, eps: float) -> float:
        """Step of PGD at another eps: eps/10, but the task's at least, and never above eps."""
        return min(eps, max(eps / 10, self.subject.step))

    def pgd_at(self, eps: float, steps: int, loss: Loss = "ce") -> Trajectory:
        """PGD at another eps; its images are not kept, only what became of them."""
        return self.once(
            f"pgd {loss} eps {255 * eps:g}/255 steps {steps}",
            lambda: self.run_pgd(eps, self.step_at(eps), steps, loss, keep=False),
        )

    def starts(self) -> list[Trajectory]:
        """PGD on cross-entropy from each of the budget's starts."""
        return [self.pgd(restart) for restart in range(self.budget.restarts)]

    def survivors(self) -> Tensor:
        """(N,) correct on x and after every white-box attack of the bank.

        FGSM, PGD on cross-entropy from every start, PGD on the margin, and APGD-T where the budget
        has it; every iterate counts.
        """
        standing = self.correct() & self.fgsm_correct()
        for trajectory in (*self.starts(), self.pgd(loss="margin")):
            standing = standing & trajectory.stands
        if self.budget.apgd_targets and self.subject.classes >= 4:
            standing = standing & self.apgd_t()
        return standing

    def apgd_t(self) -> Tensor:
        """(N,) correct after AutoAttack's APGD-T (images that are wrong already are not sent)."""
        from aal_bench.audit.toolkit import apgd_t

        return self.once("apgd-t", lambda: apgd_t(self))

    # ---- primitives, counted -----------------------------------------------------------------

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N,K) of `x` (N,3,H,W), float32, in batches."""

        def ask(part: Part, x: Tensor, _: Tensor) -> Tensor:
            with torch.no_grad():
                return part.model(x)

        return self.mapped(ask, x)

    def predictions(self, x: Tensor) -> Tensor:
        """Predicted classes (N,); -1 where the logits are not finite."""
        return classes_of(self.logits(x))

    def losses(self, x: Tensor, loss: Loss = "ce") -> Tensor:
        """Loss (N,) at `x`."""
        return loss_of(self.logits(x), self.y, loss)

    def gradient_at(self, x: Tensor, y: Tensor, loss: Loss = "ce") -> Tensor:
        """Gradient (N,3,H,W) of the loss at `x` for labels `y` (N,).

        Raises:
            NoGradient: the model cannot be differentiated.
        """

        def ask(part: Part, x: Tensor, y: Tensor) -> Tensor:
            return gradient_of(part.model, x, y, loss)

        return self.mapped(ask, x, y)

    def run_pgd(
        self,
        eps: float,
        step: float,
        steps: int,
        loss: Loss = "ce",
        restart: int = 0,
        keep: bool = True,
    ) -> Trajectory:
        """Signed-gradient ascent in the ball and the box from a uniform start.

        One forward and one backward for each step, and one forward for the last iterate.

        Args:
            eps: budget in pixel units.
            step: step size.
            steps: iterations.
            loss: what is maximised.
            restart: number of the start; each has a seed of its own.
            keep: the images themselves; else `x_adv` and `first` are empty (0,).
        """
        seed = self.subject.seed + 1000 * restart

        def ask(part: Part, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            run = _pgd(part.model, x, y, eps, step, steps, loss, seed)
            return run if keep else (*run[:3], x.new_zeros(0), x.new_zeros(0))

        loss_, correct, finite, x_adv, first = self._parted(ask, self.x, self.y)
        return Trajectory(loss_.T, correct.T, x_adv, first, finite)

    def mapped(
        self, ask: Callable[[Part, Tensor, Tensor], Tensor], x: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """``ask(part, x, y)`` for every batch of every part, put together again (N, ...)."""
        return self._parted(lambda part, x, y: (ask(part, x, y),), x, self.y if y is None else y)[0]

    def _parted(
        self, ask: Callable[[Part, Tensor, Tensor], tuple[Tensor, ...]], x: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        found: list[tuple[Tensor, ...]] = []
        at = 0
        for part in self.subject.parts:
            batch = self.subject.batch_size
            for first in range(at, at + len(part.y), batch):
                rows = slice(first, min(first + batch, at + len(part.y)))
                device = part.x.device
                with self.counting(part.model):
                    answer = ask(part, x[rows].to(device), y[rows].to(device))
                found.append(tuple(each.detach().cpu() for each in answer))
            at += len(part.y)
        return tuple(torch.cat(each) for each in zip(*found, strict=True))


def loss_of(logits: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """The loss (N,) of logits (N,K); larger is better for an attack.

    ``dlr`` is AutoAttack's difference of logits ratio, -(z_y - max_{k != y} z_k) / (z_1 - z_3)
    with z sorted; with three classes or fewer the margin takes its place.
    """
    if loss == "ce":
        return functional.cross_entropy(logits, y, reduction="none")
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    if loss == "margin" or logits.shape[1] < 4:
        return others - own
    ranked = logits.sort(1, descending=True).values
    return (others - own) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def gradient_of(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradient (B,3,H,W) of the summed loss at x.

    Raises:
        NoGradient: the model cannot be differentiated.
    """
    try:
        with attacking(model, bn="eval"):
            return input_gradient(lambda x_: loss_of(model(x_), y, loss).sum(), x)
    except RuntimeError as error:
        raise_if_broken(error)
        raise


def classes_of(logits: Tensor) -> Tensor:
    """Predicted classes (N,) of logits (N,K); -1, which is never right, where one is not finite."""
    return logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1)


def raise_if_broken(error: Exception) -> None:
    """Raise `NoGradient` where `error` says that autograd's chain is broken.

    Whatever else a model raises while it is attacked is an error of its own, never a reason to
    leave a verdict open.
    """
    reason = str(error).partition("\n")[0]
    if any(sign in str(error) for sign in BROKEN_CHAIN):
        raise NoGradient(f"{type(error).__name__}: {reason}") from error


def _pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step: float,
    steps: int,
    loss: Loss,
    seed: int,
) -> tuple[Tensor, ...]:
    """Losses (B,S+1), correct (B,S+1), finite (B,), last iterate, first fooling iterate."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        x_adv = uniform_start(x, eps)
    losses, correct, first = [], [], x_adv
    fooled, finite = torch.zeros_like(y, dtype=torch.bool), torch.ones_like(y, dtype=torch.bool)
    try:
        with attacking(model, bn="eval"):
            for number in range(steps + 1):
                x_adv = x_adv.detach().requires_grad_(number < steps)
                with torch.set_grad_enabled(number < steps):
                    logits = model(x_adv).float()
                    each = loss_of(logits, y, loss)
                finite &= logits.detach().isfinite().all(1)
                right = (logits.detach().argmax(1) == y) & finite
                first = torch.where((~fooled)[:, None, None, None], x_adv.detach(), first)
                fooled |= ~right
                losses.append(each.detach())
                correct.append(right)
                if number < steps:
                    (g,) = torch.autograd.grad(each.sum(), x_adv)
                    # An image that cannot be attacked further counts as fallen, and stays put.
                    finite &= g.isfinite().flatten(1).all(1)
                    g = torch.where(finite[:, None, None, None], g, 0)
                    moved = x_adv.detach() + step * g.sign()
                    x_adv = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)
    except RuntimeError as error:
        raise_if_broken(error)
        raise
    return torch.stack(losses, 1), torch.stack(correct, 1), finite, x_adv.detach(), first
