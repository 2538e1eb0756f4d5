"""Reading F4 of AAL: at test, an attacked copy of each support image joins its others."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.aal.attention import gate_of, has_gate
from aal_bench.aal.options import Selective
from aal_bench.aal.selective import associative_mask, fgsm_step, selective_fgsm
from aal_bench.attacks.linf import attacking, linf_pgd
from aal_bench.fewshot.heads.base import EpisodeClassifier, Support
from aal_bench.fewshot.heads.logistic import Logistic

PRINTED_XI1 = 0.1
"""The paper's initial xi1; at test there is no learning rate for it to follow (A16)."""


class LogisticAttacked(Logistic):
    """Logistic regression fitted twice: to the copies, and to them with the attacked images.

    The attack needs a classifier of the episode's new classes: G is the cross-entropy of the first
    fit. The query images are never attacked. Costs a backward pass per episode, and features cannot
    be kept: what is attacked depends on the episode.
    """

    adapts = True

    def classifier(self, model: nn.Module, support: Support) -> nn.Module:
        images, labels = support.fitted_to(True)
        with torch.no_grad():
            features = model.features(images)  # pyright: ignore[reportCallIssue]
        first = self.fit(features, labels, support.ways, model)
        x_adv = self._attack(model, first, support)
        with torch.no_grad():
            attacked = model.features(x_adv)  # pyright: ignore[reportCallIssue]
        second = self.fit(
            torch.cat([features, attacked]),
            torch.cat([labels, support.labels]),
            support.ways,
            model,
        )
        return EpisodeClassifier(model, second).eval()

    def _attack(self, model: nn.Module, readout: nn.Module, support: Support) -> Tensor:
        """The support images (n,3,H,W) attacked by Alg. 1 on the first fit's cross-entropy."""
        options, threat = self.options, self.threat
        assert isinstance(options, Selective)
        assert threat is not None
        classifier = EpisodeClassifier(model, readout)

        def loss(x: Tensor) -> Tensor:
            return functional.cross_entropy(classifier(x), support.labels, reduction="sum")

        step = fgsm_step(threat.eps, options)
        with attacking(model):
            if not has_gate(model):  # control = no_gate: the whole image
                return linf_pgd(loss, support.images, support.images, threat.eps, step, 1)
            x = support.images.detach().clone().requires_grad_()
            with gate_of(model).reading() as reading:
                value = loss(x)
            xi1 = options.descent_step(PRINTED_XI1)
            found = associative_mask(
                value, x, reading.M, options, xi1, step, _generator(support.images)
            )
            return selective_fgsm(support.images, found).detach()


def _generator(images: Tensor) -> torch.Generator:
    """Of the random controls: the same for the same images, so that every stage attacks one mask.

    The classifier of an episode is made anew in each stage and after each restart.
    """
    digest = hashlib.sha256(images.cpu().numpy().tobytes()).digest()
    return torch.Generator(images.device).manual_seed(int.from_bytes(digest[:7]))
