"""MAML: the whole network takes gradient steps on the support set, by learn2learn's `MAML`.

Batch norm uses the statistics of the support set, in the inner loop and for the queries, in
training as in the test: the MetaBN of Bronskill et al. (2020, arXiv 2003.03284). A query's answer
then depends on no other query. ``transductive`` is the published code's habit instead: each query
is normalised by the statistics of all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from aal_bench.errors import UserError
from aal_bench.fewshot.heads.base import Head, Support
from aal_bench.methods.base import fp32
from aal_bench.toolkits import learn2learn_import


class MAMLHead(Head):
    """theta' = theta - inner_lr dCE(support; theta), some times over; the queries see theta'.

    Training steps differ from test steps in their number only.
    """

    adapts = True

    def attackable(self) -> None:
        if self.options.transductive:
            raise UserError(
                "with transductive=true the answer to a query depends on the other queries, so it"
                " cannot be attacked. Mend: --set transductive=false"
            )

    def train_logits(
        self, model: nn.Module, support: Tensor, labels: Tensor, query: Tensor, ways: int
    ) -> Tensor:
        return self._adapted(model, support, labels, self.options.train_steps)(query)

    def classifier(self, model: nn.Module, support: Support) -> nn.Module:
        with torch.no_grad():
            adapted = self._adapted(model, support.images, support.labels, self.options.test_steps)
        return adapted.eval()

    def _adapted(self, model: nn.Module, x: Tensor, labels: Tensor, steps: int) -> nn.Module:
        options = self.options
        return adapted(
            model, x, labels, options.inner_lr, steps, options.first_order, options.transductive
        )


def adapted(
    module: nn.Module,
    x: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
    first_order: bool = False,
    transductive: bool = False,
) -> nn.Module:
    """A copy of `module` after `steps` gradient steps on the cross-entropy of (x, labels).

    Its weights have a graph to those of `module`, through the gradients too unless `first_order`;
    where gradients are disabled they have none and require none. `module` is not changed: not its
    weights, nor its ``.grad``, buffers or modes. What is no batch norm runs in the mode that it
    has in `module`.

    Args:
        module: gives logits (n, ways).
        x: its input, (n, ...).
        labels: int64 (n,).
        lr: of the steps.
        steps: how many.
        first_order: leave out the derivative of the gradients.
        transductive: batch norm uses the statistics of whatever batch it is given.
    """
    learn2learn_import.repair()
    from learn2learn.algorithms import MAML as Learner
    from learn2learn.utils import detach_module

    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        module = getattr(module, "_orig_mod", module)  # compiled code reads the first weights
        learner = Learner(module, lr, first_order=first_order or not graph).clone()
        norms = _separate(learner.module, transductive)
        for _ in range(steps):
            learner.adapt(functional.cross_entropy(fp32(learner(x)), labels))
        if norms:
            learner(x)
        for norm in norms:
            norm.eval()
    if not graph:
        detach_module(learner.module)
    return learner.module


def _separate(copy: nn.Module, transductive: bool) -> list[SupportNorm]:
    """Cut what learn2learn's clone still shares with its original; returns its new batch norms.

    learn2learn 0.2.0 clones weights, but shares buffers, which batch norm writes to, and a
    ``forward`` that a wrapper (accelerate's autocast) bound to the original.
    """
    vars(copy).pop("forward", None)
    norms = []
    for module in list(copy.modules()):
        module._buffers = {k: v if v is None else v.clone() for k, v in module._buffers.items()}
        for weight in module._parameters.values():
            if weight is not None and not weight.requires_grad:
                weight.requires_grad_()
        for name, child in module.named_children():
            if not isinstance(child, _BatchNorm):
                continue
            if transductive:
                # Without running statistics it takes the batch's in either mode.
                child._buffers = dict.fromkeys(child._buffers)
            else:
                norms.append(SupportNorm(child))
                module._modules[name] = norms[-1]
    return norms


class SupportNorm(nn.Module):
    """Batch norm by the statistics of the latest batch that it saw in training mode.

    They keep their graph, which running statistics have not: without it the meta-gradient would
    take the normalisation for a constant.

    Args:
        norm: whose scale and shift are applied.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("mean", None)
        self.register_buffer("var", None)

    def forward(self, x: Tensor) -> Tensor:
        wide = fp32(x)
        if self.training:
            over = [0, *range(2, x.ndim)]
            self.var, self.mean = torch.var_mean(wide, over, correction=0, keepdim=True)
        out = (wide - self.mean) * (self.var + self.norm.eps).rsqrt()
        if self.norm.affine:
            out = out * self._channels(self.norm.weight) + self._channels(self.norm.bias)
        return out.to(x.dtype)

    def _channels(self, values: Tensor) -> Tensor:
        return values.view(self.mean.shape)
