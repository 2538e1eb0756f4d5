"""MAML (Finn et al. 2017, arXiv 1703.03400)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from aal_bench.errors import UserError
from aal_bench.methods.base import Episodic, Outputs
from aal_bench.methods.episodes import EpisodicMethod, EpisodicOptions


class AdaptingOptions(EpisodicOptions):
    """Options of a learner that takes gradient steps on the support set."""

    inner_lr: float = Field(default=0.1, gt=0)
    """Of the steps on the support set."""
    train_steps: int = Field(default=5, ge=1)
    """Of each training episode."""
    test_steps: int = Field(default=5, ge=1)
    """Of each test episode."""
    first_order: bool = False
    """Leave out the derivative of the inner gradients."""


class MAMLOptions(AdaptingOptions):
    """Options of MAML; inner rate and steps are those of learn2learn's mini-ImageNet example.

    Finn et al. take 5 steps of 0.01 in training and 10 in the test there, 1 and 3 of 0.4 on
    Omniglot.
    """

    inner_lr: float = Field(default=0.5, gt=0)
    train_steps: int = Field(default=1, ge=1)
    test_steps: int = Field(default=1, ge=1)
    transductive: bool = False
    """Batch norm: each query is normalised by the statistics of all queries, as in the published
    code. False: by those of the support set, so that it is answered alone."""


class MAML(EpisodicMethod):
    """min_theta CE(queries; theta - inner_lr dCE(support; theta)), through the inner gradient.

    On `resnet12` DropBlock does not act: its counter of batches stays with the episodes' copies.
    A step takes 4 episodes, as Finn et al. on mini-ImageNet; learn2learn's example takes 32, and
    both 60,000 steps.
    """

    Options = MAMLOptions
    options: AdaptingOptions
    outputs: ClassVar[Outputs] = "ways"
    precision: ClassVar[Literal["fp32"] | None] = "fp32"
    train_defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "lr": 3e-3,
        "weight_decay": 0.0,
        "batch_size": 4,
        "schedule": "constant",
    }

    @property
    def head(self) -> str:
        return "maml"

    def episodes(self, ways: int, shots: int) -> Episodic:
        """As `Method.episodes`.

        Raises:
            UserError: ``train_ways`` is not the task's number, which the network's outputs have.
        """
        plan = super().episodes(ways, shots)
        if plan.ways != ways:
            raise UserError(
                f"train_ways={plan.ways}: the network has one output for each of the task's {ways}"
                " ways, so training episodes must have as many. Mend: omit train_ways"
            )
        return plan
