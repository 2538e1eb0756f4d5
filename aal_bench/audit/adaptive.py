"""The adaptive attacks (T1-T8, U1-U5) as part of an audit, and their worst case.

They are made for networks that declare a gate or auxiliary heads, and for those that draw numbers;
every verdict is the plain network's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from aal_bench.aal.kernels import kernel, upsample
from aal_bench.aal.options import Kernel, Selective
from aal_bench.adapters.attack_stage import exact_arithmetic
from aal_bench.attacks.adaptive.budget import BUDGETS, Setting
from aal_bench.attacks.adaptive.declared import declares, gates
from aal_bench.attacks.adaptive.eot import is_random
from aal_bench.attacks.adaptive.gated import masked, masks_of
from aal_bench.attacks.adaptive.worst import attacks_for
from aal_bench.attacks.adaptive.worst import worst_case as attacked
from aal_bench.audit.bank import Bank, NoGradient
from aal_bench.audit.outcome import share
from aal_bench.audit.record import WorstCase
from aal_bench.audit.subject import Part, Subject
from aal_bench.training.passes import counting_passes

FEW = 8
"""Images by which a network shows whether it is random."""


def worst_case(bank: Bank) -> WorstCase | None:
    """Accuracy under every adaptive attack and under all together.

    None where the network declares neither gate nor heads and is not random, or has no gradient to
    attack with (check 12 says that).
    """
    if not (declares(bank.subject.parts[0].model) or random(bank)):
        return None
    right = bank.correct()
    try:
        usual = bank.survivors()
    except NoGradient:
        return None
    stands = tried(bank)
    robust = usual.clone()
    for each in stands.values():
        robust &= each
    kinds: tuple[Literal["fgsm", "pgd"], ...] = ("fgsm", "pgd") if gated(bank.subject) else ()
    return WorstCase(
        clean=share(right),
        usual=share(usual),
        robust=share(robust),
        attacks={name: share(each) for name, each in stands.items()},
        diagnostic={f"T5-masked-{kind}": share(masked_correct(bank, kind)) for kind in kinds},
    )


def random(bank: Bank) -> bool:
    """Whether the network gives the same images other answers, so that EOT (T7) is called for."""
    part = bank.subject.parts[0]

    def ask() -> bool:
        with bank.counting(part.model):
            return is_random(part.model, part.x[:FEW])

    return bank.once("random", ask)


def tried(bank: Bank) -> dict[str, Tensor]:
    """Attack -> (N,) correct on x and after it. Each sees every image that is correct on x."""
    return bank.once("adaptive attacks", lambda: _tried(bank))


def masked_correct(bank: Bank, kind: Literal["fgsm", "pgd"]) -> Tensor:
    """(N,) correct on x and after T5, the attack masked by the network's own gate."""
    setting, of_mask = setting_of(bank.subject), kernel_of(bank.subject)

    def ask(part: Part, x: Tensor, y: Tensor) -> Tensor:
        x_adv = masked(part.model, x, y, setting, kind, of_mask)
        with torch.no_grad():
            return part.model(x_adv).argmax(1) == y

    return bank.correct() & bank.once(f"masked {kind}", lambda: bank.mapped(ask, bank.x))


def openings(bank: Bank) -> Tensor:
    """(N,) mean of k(M(x)) over the image: the share of eps that a masked attack keeps."""
    of_mask = kernel_of(bank.subject)

    def ask(part: Part, x: Tensor, _: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        return upsample(kernel(masks_of(part.model, x)[0], of_mask), size).mean((1, 2, 3))

    return bank.once("mask openings", lambda: bank.mapped(ask, bank.x))


def gated(subject: Subject) -> bool:
    """Whether the audited network declares a gate."""
    return bool(gates(subject.parts[0].model))


def kernel_of(subject: Subject) -> Kernel:
    """The k of the method that trained the network; M itself of a foreign gate."""
    if not subject.method.startswith("aal"):
        return "m"
    return subject.method_options.get("kernel", Selective.model_fields["kernel"].default)


def setting_of(subject: Subject) -> Setting:
    """The question, as the attacks take it."""
    return Setting(subject.threat.eps, subject.step, subject.classes, subject.seed)


def _tried(bank: Bank) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    with exact_arithmetic():
        for part in bank.subject.parts:
            with counting_passes(part.model) as counted:
                for first in range(0, len(part.y), bank.subject.batch_size):
                    rows = slice(first, first + bank.subject.batch_size)
                    batch = _on(
                        bank.subject, bank.budget.name, part.model, part.x[rows], part.y[rows]
                    )
                    for name, stands in batch.items():
                        found.setdefault(name, []).append(stands)
            bank.charge((counted["forward"], counted["backward"]))
    return {name: torch.cat(each) for name, each in found.items()}


def _on(subject: Subject, size: str, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    budget = BUDGETS[size]
    attacks = attacks_for(model, setting_of(subject), budget, subject.surrogates, x[:FEW])
    samples = budget.samples if is_random(model, x[:FEW]) else 1
    worst = attacked(model, x, y, attacks, every=True, samples=samples, seed=subject.seed)
    found: dict[str, Tensor] = {}
    for name, stands in zip(worst.names, (~worst.fooled).cpu(), strict=True):
        # Surrogates of one name are one attack with several tries.
        found[name] = found[name] & stands if name in found else stands
    return found
