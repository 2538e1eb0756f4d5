"""The class gate: an auxiliary classifier whose weights scale the channels it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Mixing = Literal["permutation", "other", "uniform", "second"]
"""y' of a training gate: the batch's labels permuted; those of batch members of another class; any
other class; the second-best class of the auxiliary logits (which may be y)."""
TestGate = Literal["hard", "soft", "straight"]
"""Gate without labels: W[argmax a]; softmax(a) W; or the first with the gradient of the second."""


class ClassGate(nn.Module):
    """A (B,C,h,w) -> A * gate over the channels, with auxiliary logits a = fc(mean_hw A), (B,K).

    In training mode gate = alpha W[y] + (1 - alpha) W[y'] with W = fc.weight (K,C), y the labels
    given by `labelled`; in eval mode gate = W[argmax a], which is constant in A piece by piece: no
    gradient tells an attack how to change the class that is selected. Nothing normalises the gate,
    and negative weights flip channels, as in the official code of both papers.

    Args:
        classes: K.
        channels: C.
        alpha: share of the true class in training: 1 in CAS, 0.6 in AGAIN.
        mixing: where the other class comes from; without effect at alpha = 1.
        test_gate: the gate of eval mode.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        alpha: float = 1.0,
        mixing: Mixing = "permutation",
        test_gate: TestGate = "hard",
    ) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        self.alpha = alpha
        self.mixing: Mixing = mixing
        self.test_gate: TestGate = test_gate
        self._labels: Tensor | None = None
        self._pinned: Tensor | int | None = None
        self._records: list[list[Tensor]] = []
        self._pass: Literal["single", "clean", "attacked"] = "single"
        self._other: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        logits = self.fc(features.mean((2, 3)))
        for record in self._records:
            record.append(logits)
        return features * self.gate(logits).to(features.dtype)[:, :, None, None]

    def gate(self, logits: Tensor) -> Tensor:
        """(B,C) of auxiliary logits (B,K).

        Raises:
            RuntimeError: training mode without labels, or eval mode with them.
        """
        if self._labels is not None and not self.training:
            raise RuntimeError("a class gate in eval mode takes no labels: it would leak them")
        weight = self.fc.weight
        if self._pinned is not None:
            pinned = torch.as_tensor(self._pinned, device=weight.device)
            return weight[pinned.expand(len(logits))]
        if self.training:
            return self._mixed(logits)
        hard = None if self.test_gate == "soft" else weight[logits.argmax(1)]
        if hard is not None and self.test_gate == "hard":
            return hard
        soft = logits.softmax(1) @ weight
        return soft if hard is None else soft + (hard - soft).detach()

    def _mixed(self, logits: Tensor) -> Tensor:
        if self._labels is None:
            raise RuntimeError(
                "a class gate in training mode needs the labels: pass images through"
                " `with heads_of(model).labelled(y)`, or evaluate after model.eval()"
            )
        weight, y = self.fc.weight, self._labels
        if self.alpha == 1:
            return weight[y]
        other = partners(self.mixing, y, logits) if self._other is None else self._other
        if self._pass == "clean":
            self._other = other
        return self.alpha * weight[y] + (1 - self.alpha) * weight[other]

    @contextmanager
    def labelled(self, y: Tensor) -> Iterator[None]:
        """Gate training passes of this context by the labels `y` (B,)."""
        before, self._labels = self._labels, y
        try:
            yield
        finally:
            self._labels = before

    @contextmanager
    def clean_pass(self) -> Iterator[None]:
        """A clean training pass, with whose y' the attacked one that follows is gated as well."""
        # Of a step that failed between its two passes something may be left.
        self._pass, self._other = "clean", None
        try:
            yield
        finally:
            self._pass = "single"

    @contextmanager
    def attacked_pass(self) -> Iterator[None]:
        """The attacked pass, after which the clean one's y' is forgotten."""
        self._pass = "attacked"
        try:
            yield
        finally:
            self._pass, self._other = "single", None

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Collect the auxiliary logits (B,K) of every pass of this context, with their graph."""
        record: list[Tensor] = []
        self._records.append(record)
        try:
            yield record
        finally:
            # By identity: two lists of tensors cannot be compared.
            self._records = [kept for kept in self._records if kept is not record]

    @contextmanager
    def gating(self, test_gate: TestGate) -> Iterator[None]:
        """Use another gate of eval mode."""
        before, self.test_gate = self.test_gate, test_gate
        try:
            yield
        finally:
            self.test_gate = before

    @contextmanager
    def pinned(self, classes: Tensor | int) -> Iterator[None]:
        """Fix the gate at W[classes], one class or (B,): a network without the argmax.

        For attacks that look for the class whose gate is weakest; what they find is to be judged
        outside this context.
        """
        before, self._pinned = self._pinned, classes
        try:
            yield
        finally:
            self._pinned = before


def partners(mixing: Mixing, y: Tensor, logits: Tensor) -> Tensor:
    """Labels y' (B,) for labels y (B,) and auxiliary logits (B,K); torch's generator draws."""
    if mixing == "permutation":
        return y[torch.randperm(len(y), device=y.device)]
    if mixing == "second":
        return logits.topk(2, 1).indices[:, 1]
    classes = logits.shape[1]
    anyone = (y + torch.randint(1, classes, y.shape, device=y.device)) % classes
    if mixing == "uniform":
        return anyone
    # A random member of the batch among those of another class; where there is none, any class.
    differs = y[:, None] != y
    chosen = (torch.rand(differs.shape, device=y.device) * differs).argmax(1)
    return torch.where(differs.any(1), y[chosen], anyone)
