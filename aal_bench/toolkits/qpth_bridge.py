"""``QPFunction`` with qpth's call: a differentiable, batched solver of dense quadratic programs.

    minimise 1/2 z'Qz + p'z  over z (n,)  subject to  Gz <= h (m rows),  Az = b (k rows)

A primal-dual interior point with Mehrotra's predictor and corrector, in float64 whatever the
inputs are; the derivative of the optimum is that of the KKT conditions (Amos & Kolter 2017, OptNet,
arXiv 1703.00443, Eqs. 6-8). None of qpth's code is in it. Imported by `qpth_absent.repair` only,
since it imports torch.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aal_bench.errors import RunFailed

TARGET = 1e-13
"""Where a program is solved: KKT residuals relative to p, h and b, and the mean of s * lam."""
PRECISION = 1e-8
"""A larger residual where the steps end is an error."""
STEPS = 60
"""Newton steps at most. Support vector machines of features of one scale take 9 to 15."""
TO_BOUNDARY = 0.99
"""Share of the longest step that keeps slacks and multipliers positive."""
UNSOLVABLE = (
    "a quadratic program cannot be solved: Q is not positive definite to the precision of its"
    " dtype (features of unit norm are safe), rows of A depend on each other, or an input is NaN"
)


class QPFunction:
    """qpth's ``QPFunction(verbose=..., maxIter=...)(Q, p, G, h, A, b)`` -> z* (B,n).

    Args:
        verbose: accepted for qpth's sake; nothing is ever printed.
        maxIter: Newton steps at most, where that is more than `STEPS`. qpth returns what it has
            after so many; here the steps go on to the optimum.
    """

    def __init__(self, verbose: bool = False, maxIter: int = 20) -> None:
        self.max_steps = max(maxIter, STEPS)

    def __call__(self, Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
        """Solve; gradients, though no second ones, reach every input that requires them.

        Any input may lack B, and then serves the whole batch; B = 1 where all of them lack it.

        Args:
            Q: (B,n,n) positive definite; its symmetric part is what counts.
            p: (B,n).
            G: (B,m,n), m at least 1.
            h: (B,m).
            A: (B,k,n); an empty tensor where there are no equalities.
            b: (B,k); likewise.

        Returns:
            z* (B,n) in the widest dtype of the inputs.

        Raises:
            RunFailed: no optimum was found: the program is infeasible, Q is not positive definite,
                rows of A depend on each other, or an input is NaN.
        """
        if not A.numel():
            A, b = Q.new_zeros(0, Q.shape[-1]), Q.new_zeros(0)
        dtype = reduce(torch.promote_types, (value.dtype for value in (Q, p, G, h, A, b)))
        Q = Q.double()
        own = (2, 1, 2, 1, 2, 1)  # dimensions without the batch
        inputs = list(zip(((Q + Q.mT) / 2, p, G, h, A, b), own, strict=True))
        batch = max((v.shape[0] for v, n in inputs if v.ndim > n), default=1)
        # Expanded out here, autograd sums the gradients of what the batch shares.
        expanded = [v.double().expand(batch, *v.shape[-n:]) for v, n in inputs]
        z: Any = _Optimum.apply(self.max_steps, *expanded)
        return z.to(dtype)


class Program(NamedTuple):
    """Q (B,n,n), p (B,n), G (B,m,n), h (B,m), A (B,k,n), b (B,k)."""

    Q: Tensor
    p: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor


class Point(NamedTuple):
    """z (B,n), slacks s > 0 of Gz + s = h (B,m), multipliers lam > 0 (B,m) and nu (B,k)."""

    z: Tensor
    s: Tensor
    lam: Tensor
    nu: Tensor


class _Optimum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, max_steps: int, *inputs: Tensor) -> Tensor:
        program = Program(*inputs)
        ctx.system = _System(program)
        point = solve(program, ctx.system, max_steps)
        ctx.save_for_backward(*point)
        return point.z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        z, s, lam, nu = ctx.saved_tensors
        if not ctx.system.factor(s / lam):
            raise RunFailed(UNSOLVABLE)
        # dlam is OptNet's d_lambda times lambda.
        dz, dlam, dnu = ctx.system.solve(-gradient, torch.zeros_like(s), torch.zeros_like(nu))
        needs = ctx.needs_input_grad
        return (
            None,
            _outer(dz, z) if needs[1] else None,
            dz,
            _outer(dlam, z) + _outer(lam, dz) if needs[3] else None,
            -dlam,
            _outer(dnu, z) + _outer(nu, dz) if needs[5] else None,
            -dnu,
        )


def solve(program: Program, system: _System, max_steps: int) -> Point:
    """The optimum with its slacks and multipliers.

    Raises:
        RunFailed: as `QPFunction`.
    """
    point = best = _start(program, system)
    least = torch.full_like(program.p[:, 0], torch.inf)
    for step in range(max_steps + 1):
        residuals, error = _residuals(program, point)
        better = error < least
        best = _where(better, point, best)
        least = torch.where(better, error, least)
        # Rounding ends the descent above the target where Q is large.
        going = (least > TARGET) & (better | (least > PRECISION))
        if step == max_steps or not going.any() or not system.factor(point.s / point.lam):
            break
        # A program that is solved stays where it is: its next step would divide by no slack.
        point = _where(going, _newton(system, point, residuals), point)
    if not (least < PRECISION).all():
        raise RunFailed(
            f"a quadratic program was not solved (KKT residual {least.max():.0e}): it is infeasible"
            " or barely convex"
        )
    return best


def _start(program: Program, system: _System) -> Point:
    """CVXOPT's start: the optimum with |s|^2 / 2 in place of s > 0, shifted to be positive."""
    if not system.factor(torch.ones_like(program.h)):
        raise RunFailed(UNSOLVABLE)
    z, lam, nu = system.solve(-program.p, program.h, program.b)
    return Point(z, _positive(-lam), _positive(lam), nu)


def _newton(system: _System, point: Point, residuals: tuple[Tensor, Tensor, Tensor]) -> Point:
    """Mehrotra's step: a predictor to the optimum, then a corrector of where that went wrong."""
    _, s, lam, _ = point
    r_z, r_s, r_a = residuals

    def direction(r_c: Tensor) -> Point:
        dz, dlam, dnu = system.solve(-r_z, r_c / lam - r_s, -r_a)
        return Point(dz, -(r_c + s * dlam) / lam, dlam, dnu)

    mu = (s * lam).mean(1, keepdim=True)
    predicted = direction(s * lam)
    length = _length(point, predicted, 1.0)
    mu_left = ((s + length * predicted.s) * (lam + length * predicted.lam)).mean(1, keepdim=True)
    centring = (mu_left / mu) ** 3 * mu
    move = direction(s * lam + predicted.s * predicted.lam - centring)
    length = _length(point, move, TO_BOUNDARY)
    return Point(*(value + length * change for value, change in zip(point, move, strict=True)))


def _residuals(program: Program, point: Point) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """What is missing from the KKT conditions (stationarity, Gz + s = h, Az = b), and how much."""
    Q, p, G, h, A, b = program
    z, s, lam, nu = point
    r_z = _times(Q, z) + p + _times(G.mT, lam) + _times(A.mT, nu)
    r_s = _times(G, z) + s - h
    r_a = _times(A, z) - b
    sizes = [_size(r) / (1 + _size(v)) for r, v in ((r_z, p), (r_s, h), (r_a, b))]
    error = torch.stack([*sizes, (s * lam).mean(1)]).amax(0)
    return (r_z, r_s, r_a), error


class _System:
    """The equations [Q, G', A'; G, -diag(w), 0; A, 0, 0] with w > 0; Q is factored once.

    What is left after Q, C Q^-1 C' + diag(w, 0) with C = [G; A], stays well conditioned where the
    slacks vanish, unlike what is left after w.
    """

    def __init__(self, program: Program) -> None:
        self.L, failed = torch.linalg.cholesky_ex(program.Q)
        self.broken = bool(failed.any())
        self.C = torch.cat([program.G, program.A], 1)
        self.W = torch.cholesky_solve(self.C.mT, self.L)
        self.CW = self.C @ self.W

    def factor(self, w: Tensor) -> bool:
        """Take w (B,m); whether the equations can be solved."""
        rest = self.CW.clone()
        rest.diagonal(dim1=1, dim2=2)[:, : w.shape[1]] += w
        self.S, failed = torch.linalg.cholesky_ex(rest)
        return not (self.broken or bool(failed.any()))

    def solve(self, r: Tensor, g: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z (B,n), lam (B,m), nu (B,k) from the right-hand sides of the three rows."""
        z = torch.cholesky_solve(r[..., None], self.L)
        y = torch.cholesky_solve(self.C @ z - torch.cat([g, a], 1)[..., None], self.S)
        lam, nu = y[..., 0].split([g.shape[1], a.shape[1]], 1)
        return (z - self.W @ y)[..., 0], lam, nu


def _length(point: Point, move: Point, share: float) -> Tensor:
    """`share` of the longest step (B,1) that keeps s and lam positive, at most 1."""
    pairs = ((point.s, move.s), (point.lam, move.lam))
    longest = [torch.where(d < 0, -v / d, torch.inf).amin(1, keepdim=True) for v, d in pairs]
    return (share * torch.minimum(*longest)).clamp(max=1)


def _positive(v: Tensor) -> Tensor:
    """Shifted by one number per program so that its least entry is 1, unless all are positive."""
    least = v.amin(1, keepdim=True)
    return torch.where(least > 0, v, v - least + 1)


def _where(chosen: Tensor, one: Point, other: Point) -> Point:
    return Point(*(torch.where(chosen[:, None], a, b) for a, b in zip(one, other, strict=True)))


def _times(M: Tensor, v: Tensor) -> Tensor:
    return (M @ v[..., None])[..., 0]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., None] * b[..., None, :]


def _size(v: Tensor) -> Tensor:
    return v.abs().amax(1) if v.shape[1] else v.new_zeros(v.shape[0])
