"""Search fast, confirm exactly: AutoAttack's four in bfloat16, every success held to float32.

AutoAttack (arXiv 2003.01690) is the dear part of an evaluation, and nearly all of it is spent on
images that stand. Here the attacks of `autoattack`, unchanged, see the network in bfloat16
autocast and channels_last. What they find counts only where a plain float32 forward of the
untouched network is fooled by it too, and where reduced arithmetic cannot tell, the same attack
runs once more in float32. So the robust accuracy is an upper bound, as every attack's is, and no
image counts as fallen that float32 classifies correctly.

Weights are neither copied nor cast beforehand, and nothing is compiled: at the batch sizes of
AutoAttack, which shrink, neither was measurably faster (``benchmarks/search.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.aal.gradients import full_precision
from aal_bench.attacks.autoattack import APGDCE, APGDT, FABT, AutoAttackStage, Square
from aal_bench.attacks.counting import Counted
from aal_bench.attacks.parameters import SEARCH
from aal_bench.attacks.stages import Stage
from aal_bench.environment import has_fast_bf16
from aal_bench.threat import TOLERANCE, Threat

PLAIN = {"dtype": "float32", "memory_format": "contiguous", "compile": False}
"""The search on hardware without bfloat16 instructions, where it is the plain attack."""
ERRORS = 3.0
"""An image is in doubt up to so many times the root mean square error of bfloat16 margins."""


class Searched(AutoAttackStage):
    """An attack of AutoAttack in bfloat16, confirmed in float32.

    With m16 and m32 the margin z_y - max_{k != y} z_k in either arithmetic, X all points within
    the ball at which the search asked for an image's logits, and x' what it returned for it, the
    attack runs again in float32 on the images with

        argmax z32(x') = y  and  min_{x in X} m16(x) <= 3 sqrt(mean_batch (m16(x') - m32(x'))^2).

    These are the claims that do not hold, and the images that came so close that bfloat16 may have
    missed their fall. Cost beyond the attack itself: one forward in either arithmetic for each
    image, and the attack once more for those in doubt.
    """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if not has_fast_bf16(x.device.type):
            return super().perturb(model, x, y)
        counted = model if isinstance(model, Counted) else _watching(model, x)
        search = _Search(counted, x, y, self.setting.threat)
        with exact_heads(counted, self.setting.classes):
            x_adv = super().perturb(search, x, y).detach()
            with torch.no_grad():
                reduced = margin(search(x_adv), y)
        with torch.no_grad():
            logits = counted(x_adv)
        error = (reduced - margin(logits, y)).square().mean().sqrt()
        standing = logits.argmax(1) == y
        doubtful = (standing & (search.closest <= ERRORS * error)).nonzero()[:, 0]
        if len(doubtful):
            with counted.among(doubtful):
                x_adv[doubtful] = super().perturb(counted, x[doubtful], y[doubtful])
        return x_adv


class SearchedAPGDCE(Searched, APGDCE, kind="bf16-apgd-ce"):
    """APGD on cross-entropy."""


class SearchedAPGDT(Searched, APGDT, kind="bf16-apgd-t"):
    """APGD on the targeted DLR loss."""


class SearchedFABT(Searched, FABT, kind="bf16-fab-t"):
    """FAB with targets; it looks beyond the ball too, and those points raise no doubt."""


class SearchedSquare(Searched, Square, kind="bf16-square"):
    """Square, the black-box attack."""


def arithmetic(stage: Stage, device: str) -> dict[str, Any]:
    """``{dtype, memory_format, compile}`` of a stage that searches, on `device`; else empty."""
    if not isinstance(stage, Searched):
        return {}
    return dict(SEARCH if has_fast_bf16(device) else PLAIN)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{k != y} z_k of logits (B, K), (B,): negative where the network is fooled."""
    true = y[:, None]
    return logits.gather(1, true)[:, 0] - logits.scatter(1, true, -torch.inf).amax(1)


@contextmanager
def exact_heads(model: nn.Module, classes: int) -> Iterator[None]:
    """Plain linear layers with `classes` outputs compute in float32 under any autocast.

    Rounded logits are most of the error of a margin in bfloat16 (a factor of three on a
    WideResNet), and these layers next to nothing of its time.
    """

    def again(layer: nn.Linear, inputs: tuple[Tensor, ...], _logits: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            return functional.linear(full_precision(inputs[0]), layer.weight, layer.bias)

    heads = [part for part in model.modules() if type(part) is nn.Linear]
    # Ahead of hooks that a network has of its own: they see what the layer gives.
    handles = [
        head.register_forward_hook(again, prepend=True)
        for head in heads
        if head.out_features == classes
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Search(nn.Module):
    """The network as the search sees it; it keeps how close to fooling every image came."""

    def __init__(self, counted: Counted, x: Tensor, y: Tensor, threat: Threat) -> None:
        super().__init__()
        self.counted = counted
        self.training = counted.training
        self._x, self._y, self._threat = x, y, threat
        self._rows: dict[int, Tensor] = {}
        self.closest = torch.full((len(x),), torch.inf, device=x.device)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = self.counted(x.contiguous(memory_format=torch.channels_last))
        logits = full_precision(logits)
        self._keep(x.detach(), logits.detach())
        return logits

    def _keep(self, x: Tensor, logits: Tensor) -> None:
        if len(x) not in self._rows:  # once: the device waits for a copy
            self._rows[len(x)] = self.counted.rows(len(x)).to(x.device)
        rows = self._rows[len(x)]
        order = torch.inf if self._threat.norm == "Linf" else 2
        moved = torch.linalg.vector_norm((x - self._x[rows]).flatten(1), order, dim=1)
        found = margin(logits, self._y[rows])
        # FAB looks for the boundary beyond the ball too.
        found = found.masked_fill(moved > self._threat.radius + TOLERANCE, torch.inf)
        self.closest[rows] = torch.minimum(self.closest[rows], found)


def _watching(model: nn.Module, x: Tensor) -> Counted:
    counted = Counted(model)
    counted.watch(x)
    return counted
