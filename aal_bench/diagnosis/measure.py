"""What the hypotheses are judged by: one network's verdicts, image by image, under every attack.

Everything goes through `audit.bank.Bank`: float32, eval mode, no gradients of weights, counted.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from aal_bench.aal.attention import gate_of, has_gate
from aal_bench.aal.kernels import kernel as kernelled
from aal_bench.aal.kernels import upsample
from aal_bench.aal.options import Kernel, Selective
from aal_bench.aal.selective import associative_mask, second_attention
from aal_bench.attacks.adaptive.budget import Setting
from aal_bench.attacks.adaptive.gated import masked, masks_of
from aal_bench.attacks.linf import attacking
from aal_bench.audit.bank import Bank
from aal_bench.audit.subject import Part
from aal_bench.diagnosis.measured import KERNELS, KINDS, SMALL, STEPS, Labels, Measured, Network
from aal_bench.diagnosis.paired import Flags

LABELS = ("y", "label", "labels", "target", "targets")
"""Names under which a network might take labels."""


def measure(bank: Bank, options: Selective, lr: float, step: float) -> Measured:
    """Attack the run's own network, which has a gate.

    Args:
        bank: of the network.
        options: of the method that trained it.
        lr: the training's initial learning rate: M^a differs from M most there (A16).
        step: of the method's attack (A5).
    """
    own = network(bank, "this run", options.kernel, whole=True)
    right, y, x = bank.correct(), bank.y, bank.x
    small = (x + bank.subject.eps / SMALL * bank.gradient().sign()).clamp(0, 1)
    away = bank.gradient_at(x, bank.clean().argmax(1))
    predicted = (x + bank.subject.eps * away.sign()).clamp(0, 1)
    return Measured(
        own=own,
        small_step=_flags(right & (bank.predictions(small) == y)),
        raw_fgsm=_flags(bank.fgsm_correct()),
        raw_predicted=_flags(bank.predictions(predicted) == y),
        strong=_flags(_strongest(bank)),
        labels=_labels(bank, options, lr, step),
    )


def network(bank: Bank, name: str, kernel: Kernel, whole: bool = False) -> Network:
    """One network under FGSM and PGD-10, full and masked by each kernel.

    Args:
        bank: of the network.
        name: what it is called.
        kernel: that it was trained with.
        whole: the budget's longer PGD is wanted anyway, and PGD-10 is its beginning.
    """
    subject, right, y = bank.subject, bank.correct(), bank.y
    ten = bank.pgd() if whole else bank.run_pgd(subject.eps, subject.step, STEPS)
    gated = has_gate(subject.network)
    return Network(
        name=name,
        kernel=kernel,
        clean=_flags(right),
        fgsm=_flags(right & bank.fgsm_correct()),
        pgd=_flags(right & ten.at(STEPS)),
        masked={
            (kind, one): _flags(right & (bank.predictions(_masked(bank, kind, one)) == y))
            for kind in KINDS
            for one in KERNELS
            if gated
        },
        k=_budgets(bank, kernel) if gated else np.empty(0),
    )


def _masked(bank: Bank, kind: Any, kernel: Kernel) -> Tensor:
    subject = bank.subject
    setting = Setting(subject.eps, subject.step, subject.classes, subject.seed)

    def ask(part: Part, x: Tensor, y: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(subject.seed)
            return masked(part.model, x, y, setting, kind, kernel, STEPS)

    return bank.mapped(ask, bank.x, bank.y)


def _budgets(bank: Bank, kernel: Kernel) -> NDArray[np.float64]:
    def ask(part: Part, x: Tensor, _: Tensor) -> Tensor:
        mask = masks_of(part.model, x)[0]
        spent = upsample(kernelled(mask, kernel), (x.shape[2], x.shape[3]))
        return spent.double().mean((1, 2, 3))

    return bank.mapped(ask, bank.x).numpy()


def _strongest(bank: Bank) -> Tensor:
    """Right at every iterate of PGD from every start; each start is given what still stands."""
    subject, (part,) = bank.subject, bank.subject.parts
    standing = bank.correct() & bank.pgd().stands
    for restart in range(1, bank.budget.restarts):
        rows = standing.nonzero()[:, 0]
        if not len(rows):
            break
        few = part._replace(
            x=part.x[rows.to(part.x.device)],
            y=part.y[rows.to(part.y.device)],
            rows=part.rows[rows.numpy()],
        )
        again = Bank(replace(subject, parts=(few,)), bank.budget)
        run = again.run_pgd(subject.eps, subject.step, bank.budget.steps, restart=restart)
        bank.charge(again.spent)
        standing[rows] = run.stands
    return standing


# ---- labels ----------------------------------------------------------------------------------


def _labels(bank: Bank, options: Selective, lr: float, step: float) -> Labels:
    y, attacked = bank.y, bank.fgsm()
    generator = torch.Generator().manual_seed(bank.subject.seed)
    shuffled = y[torch.randperm(len(y), generator=generator)]

    def told(labels: Tensor) -> Tensor:
        return bank.mapped(_told, bank.x, labels)

    def injected(labels: Tensor) -> Flags:
        """Right on the attacked images with M^a(x, labels) in the gate."""
        both = torch.cat([bank.x, attacked], 1)  # one tensor of both, since batches are cut from it

        def ask(part: Part, both: Tensor, labels: Tensor) -> Tensor:
            x, x_adv = both.chunk(2, 1)
            return _with_associated(part, x, x_adv, labels, options, lr, step)

        return _flags(bank.mapped(ask, both, labels) == y)

    return Labels(
        changed=_flags(told(y) != told(shuffled)),
        true=injected(y),
        shuffled=injected(shuffled),
        none=_flags(bank.fgsm_correct()),
    )


@torch.no_grad()
def _told(part: Part, x: Tensor, labels: Tensor) -> Tensor:
    """Predictions of a network that is given the labels, where it takes any."""
    taken = [name for name in inspect.signature(part.model.forward).parameters if name in LABELS]
    return part.model(x, **dict.fromkeys(taken, labels)).argmax(1)


def _with_associated(
    part: Part,
    x: Tensor,
    x_adv: Tensor,
    labels: Tensor,
    options: Selective,
    lr: float,
    step: float,
) -> Tensor:
    """Predictions on `x_adv` with the gate at M^a of `x` and `labels`, as in a training step."""
    plain: dict[str, Any] = {"second_att": "inject_Ma", "control": "none", "detach_mask": True}
    options, gate = options.model_copy(update=plain), gate_of(part.model)
    with attacking(part.model):
        x = x.clone().requires_grad_()
        with gate.reading() as reading:
            loss = functional.cross_entropy(part.model(x).float(), labels, reduction="sum")
        xi1 = options.descent_step(lr)
        found = associative_mask(loss, x, reading.M, options, xi1, step)
        with torch.no_grad(), second_attention(gate, found, options):
            return part.model(x_adv).argmax(1)


def _flags(right: Tensor) -> Flags:
    return right.numpy().astype(bool)
