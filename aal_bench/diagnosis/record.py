"""``diagnosis.json``: what each hypothesis predicts beside what was measured. No torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from aal_bench.schema import Block, Count, Environment, Share

Judgement = Literal["supported", "contradicted", "not decided", "not tested"]
"""``not decided``: measured on too few images. ``not tested``: a second run is needed for it."""
Answer = Literal["yes", "no", "not decided"]
"""Whether one difference is what the hypothesis predicts."""


class Printed(Block):
    """A number of the paper."""

    where: str
    """``AAL, Table 8``."""
    name: str
    """What it is said to be."""
    value: Share
    """As printed, as a fraction."""


class Reading(Block):
    """One measured figure."""

    name: str
    """What was measured."""
    value: Share
    """A share of images; of ``mean k`` the mean over images."""
    n: int = Field(ge=1)
    """Images it is a share of."""
    ci95: tuple[Share, Share]
    """Wilson's interval; of a mean Student's t interval."""


class Compared(Block):
    """One question that the verdict rests on, answered image by image."""

    question: str
    """What ``yes`` means."""
    difference: float = Field(ge=-1, le=1)
    """Measured: the first share less the second, or a share less what it is compared with."""
    bounds: tuple[float, float]
    """Exact bounds of it, each at 1 %."""
    answer: Answer
    """``no`` where what the hypothesis predicts is excluded, not merely unseen."""


class Hypothesis(Block):
    """One of H1 to H6."""

    id: str = Field(pattern="^H[1-6]$")
    """Its number."""
    title: str
    """What would explain the printed numbers."""
    predicts: str
    """What is measured if it holds."""
    printed: list[Printed] = Field(default_factory=list)
    """The paper's numbers that it is about."""
    measured: list[Reading] = Field(default_factory=list)
    """What this run's network does."""
    compared: list[Compared] = Field(default_factory=list)
    """What the verdict rests on."""
    verdict: Judgement
    """What the measurement says about it."""
    sentence: str
    """The finding in words."""
    command: str | None = None
    """What to run for a test that is missing."""


class Epoch(Block):
    """What a run's log says about one epoch."""

    epoch: int = Field(ge=1)
    """From 1 on."""
    mean_k: Share | None = None
    """Mean share of eps that the training attack spent."""
    watch_clean: Share | None = None
    """Accuracy on the watched training batch."""
    watch_fgsm: Share | None = None
    """The same under FGSM."""
    watch_pgd: Share | None = None
    """The same under PGD."""


class Diagnosis(Block):
    """The whole of ``diagnosis.json``."""

    format: Literal["aal-bench diagnosis 1"] = "aal-bench diagnosis 1"
    """Format and version."""
    subject: dict[str, Any]
    """Task, threat, model, method, kernel, control, seed and the checkpoint's sha256."""
    budget: str
    """``quick`` or ``full``."""
    images: int = Field(ge=1)
    """Test images, the same for every network and attack."""
    hypotheses: list[Hypothesis]
    """H1 to H6."""
    training: list[Epoch]
    """The run's log, as far as it is about the mask and overfitting; empty: nothing logged."""
    forwards: Count
    """Images sent forward through a network."""
    backwards: Count
    """The same, backward."""
    seconds: float = Field(ge=0)
    """Wall-clock time."""
    created: str
    """RFC 3339."""
    command: list[str]
    """The exact argument vector."""
    environment: Environment
    """What it was measured with."""
    figures: list[str]
    """Files beside it."""
