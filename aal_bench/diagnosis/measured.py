"""One network's verdicts under every attack, as the hypotheses read them. No torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aal_bench.aal.options import Kernel
from aal_bench.diagnosis.paired import Flags

KERNELS: tuple[Kernel, ...] = ("m2", "m", "one_minus_m2")
"""In the order that Table 8 prints their accuracies, the highest first."""
KINDS = ("fgsm", "pgd")
"""Attacks that are masked: FGSM and PGD-10."""
STEPS = 10
"""Of the paper's PGD."""
SMALL = 4
"""eps over the small step: 2/255 of 8/255."""


class Network(NamedTuple):
    """One network under FGSM and PGD-10; right means right on the image, too."""

    name: str
    kernel: Kernel
    """That it was trained with."""
    clean: Flags
    fgsm: Flags
    """At full eps."""
    pgd: Flags
    """PGD-10 at full eps."""
    masked: dict[tuple[str, Kernel], Flags]
    """(kind, kernel) -> under the attack inside eps k(M(x)); empty without a gate."""
    k: NDArray[np.float64]
    """(N,) mean of k(M(x)) over the image, by its own kernel; empty without a gate."""


class Labels(NamedTuple):
    """What labels do at test time; (N,) each."""

    changed: Flags
    """The network's prediction is another where the labels were shuffled."""
    true: Flags
    """Right on FGSM's image with M^a of the true labels in the gate."""
    shuffled: Flags
    """The same with M^a of shuffled labels."""
    none: Flags
    """The same with the network's own M, which knows no label."""


class Measured(NamedTuple):
    """Everything about the run's network."""

    own: Network
    small_step: Flags
    """One step of eps/4, right on the image and after it."""
    raw_fgsm: Flags
    """Right after FGSM, whatever was said about the image itself."""
    raw_predicted: Flags
    """The same after FGSM that was aimed away from the predicted class."""
    strong: Flags
    """Right at every iterate of the budget's PGD, from every start."""
    labels: Labels
