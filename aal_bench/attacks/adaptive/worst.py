"""All adaptive attacks that fit a network, and the worst case of each image over them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.attacks.adaptive import gated, headed, plain, transfer
from aal_bench.attacks.adaptive.budget import (
    DLR_CLASSES,
    HEAD,
    TARGETED_CLASSES,
    Budget,
    Setting,
)
from aal_bench.attacks.adaptive.declared import count_heads, gates, heads
from aal_bench.attacks.adaptive.eot import is_random, majority_errs
from aal_bench.attacks.adaptive.plain import Run
from aal_bench.attacks.adaptive.search import errs
from aal_bench.attacks.linf import attacking
from aal_bench.threat import TOLERANCE

GATINGS: dict[str, Literal["soft", "straight"]] = {"soft": "soft", "bpda": "straight"}


class Adaptive(NamedTuple):
    """One attack."""

    name: str
    """``T2-gate-half-ce``; one attack may be run several times, on each head."""
    source: str
    """Its number: T1-T8, U1-U5."""
    run: Run
    """(network, x (B,C,H,W), labels (B,)) -> x' within the ball and the box."""


class Worst(NamedTuple):
    """What a list of attacks did to a batch."""

    x_adv: Tensor
    """(B,C,H,W): the first x' that fools the plain network; x where none does."""
    fooled: Tensor
    """(attacks,B) bool, judged on the plain network. Where x itself is misclassified, all true;
    otherwise, of attacks that saw only what still stood, at most one is."""
    by: Tensor
    """(B,) the first attack that fooled, -1 for none."""
    names: tuple[str, ...]
    """Of the attacks, in their order."""

    @property
    def standing(self) -> Tensor:
        """(B,) bool: right on x, and fooled by nothing."""
        return ~self.fooled.any(0)


def attacks_for(
    model: nn.Module,
    setting: Setting,
    budget: Budget,
    surrogates: Sequence[tuple[str, nn.Module]] = (),
    x: Tensor | None = None,
) -> list[Adaptive]:
    """The attacks that fit what `model` declares, cheap and strong ones first.

    T1 and T6 for any network; T2-T4 for one with a gate; U1-U5 for one with auxiliary heads (U3-U5
    where they offer ``gating`` and ``pinned``); T7 for one that draws numbers; T8 for `surrogates`.

    Args:
        model: the network.
        setting: eps, step and classes.
        budget: `budget.QUICK` or `budget.FULL`.
        surrogates: (name, network) pairs of the same task.
        x: a few images in [0, 1], to find out whether the network is random, and to count the heads
            of one that is no `Headed`; without it the network counts as deterministic.

    Raises:
        ValueError: the heads cannot be counted without `x`; on a call of an attack: it left the
            ball or the box.
    """
    found: list[Adaptive] = []
    with attacking(model), torch.no_grad():
        few = count_heads(model, x)
        draws = x is not None and is_random(model, x)

    def add(*rows: tuple[str, Run]) -> None:
        eps = float(setting.eps)
        found.extend(Adaptive(name, name[:2], bounded(name, run, eps)) for name, run in rows)

    if few:
        add(*_headed(heads(model), few, setting, budget))
    add(*_full(setting, budget))
    if gates(model):
        add(*_gated(setting, budget))
    add(*_auto(setting, budget))
    if draws:
        add(*_random(setting, budget))
    for name, surrogate in surrogates:
        add(
            (f"T8-{name}-pgd", transfer.transferred_pgd(setting, budget, surrogate)),
            (f"T8-{name}-apgd-ce", transfer.transferred_apgd(setting, budget, surrogate)),
        )
    return found


def worst_case(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Adaptive],
    every: bool = False,
    samples: int = 1,
    seed: int = 0,
) -> Worst:
    """Run `attacks` in order; of each image, the first x' that fools the plain network.

    Plain is the network as it is called: in eval mode, no gate pinned, softened or held. Each
    attack draws from a generator of its own, so leaving one out changes no other.

    Args:
        model: the network; its mode and its weights' ``requires_grad`` come back.
        x: images (B,C,H,W) in [0, 1].
        y: labels (B,). No forward of the verdict sees them.
        attacks: as `attacks_for` gives them; at least one.
        every: each attack sees all images that are right to begin with; by default only those that
            still stand.
        samples: of a random network, how many draws a verdict is the majority of; 1: one forward.
        seed: of the attacks' draws.
    """
    x = x.detach()
    judge = partial(errs, model) if samples == 1 else partial(majority_errs, model, samples=samples)
    with attacking(model):
        wrong = judge(x, y)
        fooled = wrong.repeat(len(attacks), 1)
        x_adv, by = x.clone(), torch.full_like(y, -1)
        for place, attack in enumerate(attacks):
            rows = (~wrong if every else ~fooled.any(0)).nonzero()[:, 0]
            if not len(rows):
                continue
            with torch.random.fork_rng(devices=_cuda(x)):
                torch.manual_seed(seed + zlib.crc32(attack.name.encode()))
                found = attack.run(model, x[rows].clone(), y[rows]).detach()
            hit = judge(found, y[rows])
            fooled[place, rows] = hit
            first = hit & (by[rows] < 0)
            x_adv[rows[first]], by[rows[first]] = found[first], place
    return Worst(x_adv, fooled, by, tuple(attack.name for attack in attacks))


def bounded(name: str, run: Run, eps: float) -> Run:
    """`run`, whose result is refused outside ball and box, or where it is no number."""

    def checked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found = run(model, x, y)
        near = (found - x).abs() <= eps + TOLERANCE
        if not bool((near & (found >= -TOLERANCE) & (found <= 1 + TOLERANCE)).all()):
            raise ValueError(f"attack {name} left the ball of radius {eps:.6f} or the box [0, 1]")
        return found

    return checked


def _cuda(x: Tensor) -> list[int]:
    return [x.get_device()] if x.is_cuda else []


def _full(setting: Setting, budget: Budget) -> Iterator[tuple[str, Run]]:
    for loss in ("ce", "margin"):
        yield f"T1-full-{loss}", plain.pgd(setting, budget, loss)


def _auto(setting: Setting, budget: Budget) -> Iterator[tuple[str, Run]]:
    yield "T6-apgd-ce", plain.auto_pgd(setting, budget, "ce")
    if setting.classes >= DLR_CLASSES:
        yield "T6-apgd-dlr", plain.auto_pgd(setting, budget, "dlr")
    if setting.classes >= TARGETED_CLASSES:
        yield "T6-apgd-t", plain.auto_pgd(setting, budget, "dlr-targeted")
    if budget.queries:
        yield "T6-square", plain.square(setting, budget)


def _gated(setting: Setting, budget: Budget) -> Iterator[tuple[str, Run]]:
    for name, value in {"clean": None, "half": 0.5}.items():
        for loss in ("ce", "margin"):
            yield f"T2-gate-{name}-{loss}", gated.held(setting, budget, loss, value)
    for weight in budget.lambdas:
        yield f"T3-divert-{weight:g}", gated.diverted(setting, budget, weight)
        yield f"T3-toward-{weight:g}", gated.diverted(setting, budget, weight, toward=True)
    yield "T4-background", gated.partly(setting, budget, "background")
    yield "T4-foreground", gated.partly(setting, budget, "foreground")


def _headed(
    part: object, count: int, setting: Setting, budget: Budget
) -> Iterator[tuple[str, Run]]:
    for head in range(count):
        where = f"{HEAD}{head + 1}"
        for loss in ("ce", "margin"):
            yield f"U1-pgd-{loss}{where}", headed.one_head(setting, budget, head, loss)
        yield f"U1-apgd-ce{where}", headed.auto_pgd_on_head(setting, budget, head, "ce")
        if setting.classes >= TARGETED_CLASSES:
            targeted = headed.auto_pgd_on_head(setting, budget, head, "dlr-targeted")
            yield f"U1-apgd-t{where}", targeted
        if budget.fab_steps:
            yield f"U1-fab-t{where}", headed.fab_on_head(setting, budget, head)
    for beta in budget.betas:
        for loss in ("ce", "dlr"):
            yield f"U2-joint-{loss}-{beta:g}", headed.joint(setting, budget, beta, loss)
    if hasattr(part, "gating"):
        for name, gating in GATINGS.items():
            for loss in ("ce", "margin"):
                yield f"U3-{name}-{loss}", headed.softened(setting, budget, loss, gating)
    if hasattr(part, "pinned"):
        yield "U4-class-pinned", headed.class_pinned(setting, budget)
        for loss in ("ce", "margin"):
            yield f"U5-true-pinned-{loss}", headed.true_pinned(setting, budget, loss)


def _random(setting: Setting, budget: Budget) -> Iterator[tuple[str, Run]]:
    for loss in ("ce", "margin"):
        yield f"T7-eot-{loss}", plain.expected(setting, budget, loss)
    yield "T7-eot-apgd-ce", plain.auto_pgd(setting, budget, "ce", budget.samples)
