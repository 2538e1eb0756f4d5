"""ANIL: only the network's last layer takes gradient steps on the support set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aal_bench.fewshot.heads.base import Head
from aal_bench.fewshot.heads.maml import adapted


class ANILHead(Head):
    """W' = W - inner_lr dCE(W f(support)), some times over; a query's logits are W' f(query).

    The features f do not change with the episode, so those of a split are extracted once. Batch
    norm uses the batch's statistics in training and the running ones in the test.
    """

    def fit(self, features: Tensor, labels: Tensor, ways: int, model: nn.Module) -> nn.Module:
        """As `Head.fit`; without gradients enabled, it takes the test's number of steps."""
        options = self.options
        last: nn.Module = model.network.classifier  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
        steps = options.train_steps if torch.is_grad_enabled() else options.test_steps
        return adapted(last, features, labels, options.inner_lr, steps, options.first_order).eval()
