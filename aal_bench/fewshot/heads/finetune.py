"""Fine-tuning: a new classifier on the network's logits, then all weights (Dhillon et al. 2020).

Batch norm stays in eval mode and the support images are not augmented: the official code
(amazon-science/few-shot-baseline, finetune.py) fine-tunes in training mode, where the statistics
of five images replace the training set's, on support images that it augments anew in each epoch.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.errors import UserError
from aal_bench.fewshot.heads.base import Head, Support


class FineTune(Head):
    """Adam on the cross-entropy of the whole support set, `finetune_epochs` steps.

    ``transductive``: each step is followed by one on the entropy of the queries' predictions.
    """

    adapts = True

    def attackable(self) -> None:
        if self.options.transductive:
            raise UserError(
                "with transductive=true the network is fine-tuned on the queries, so they cannot be"
                " attacked. Mend: --set transductive=false"
            )

    def classifier(self, model: nn.Module, support: Support) -> nn.Module:
        if self.options.transductive:
            return Transductive(model, support, self).eval()
        return self.tuned(model, support)

    def tuned(self, model: nn.Module, support: Support, query: Tensor | None = None) -> OnLogits:
        """A fine-tuned copy of `model`, in eval mode and without gradients; `model` stays."""
        options = self.options
        net = OnLogits(model, support).eval().requires_grad_()
        adam = torch.optim.Adam(net.parameters(), lr=options.finetune_lr)

        def descend(loss: Tensor) -> None:
            adam.zero_grad()
            loss.backward()
            adam.step()

        with torch.enable_grad():
            for _ in range(options.finetune_epochs):
                descend(functional.cross_entropy(net(support.images), support.labels))
                if query is not None:
                    descend(options.entropy_weight * entropy(net(query)))
        adam.zero_grad()
        return net.requires_grad_(False)


class OnLogits(nn.Module):
    """Images -> logits (Q, ways): a linear map of the network's positive logits at unit length.

    Its weights begin as the classes' means over the support set, at unit length too, and its
    biases at 0: the paper's support-based initialisation.

    Args:
        model: gives logits of the training classes; a copy of it is kept.
        support: of the episode.
    """

    def __init__(self, model: nn.Module, support: Support) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        vars(self.model).pop("forward", None)  # a wrapper's, in a precision that is not the test's
        with torch.no_grad():
            logits = self.model(support.images).relu()
            chosen = functional.one_hot(support.labels, support.ways).to(logits)
            means = functional.normalize(chosen.T @ logits, dim=1)
        self.weight = nn.Parameter(means)
        self.bias = nn.Parameter(means.new_zeros(support.ways))

    def forward(self, x: Tensor) -> Tensor:
        unit = functional.normalize(self.model(x).relu(), dim=1)
        return functional.linear(unit, self.weight, self.bias)


class Transductive(nn.Module):
    """Answers a batch of queries by a network that was fine-tuned on them without their labels."""

    def __init__(self, model: nn.Module, support: Support, head: FineTune) -> None:
        super().__init__()
        self.model, self.support, self.head = model, support, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head.tuned(self.model, self.support, x)(x)


def entropy(logits: Tensor) -> Tensor:
    """Mean Shannon entropy of the predictions, in nats."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()
