"""CAS, channel-wise activation suppressing (Bai et al. 2021, arXiv 2103.08307)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from aal_bench.again.class_gate import ClassGate
from aal_bench.again.fusion import HFF
from aal_bench.again.heads import Headed, all_logits, heads_of, insert_class_gates
from aal_bench.attacks.linf import uniform_start
from aal_bench.errors import UserError
from aal_bench.methods.base import Batch, Method, Objective, Options, Plan, Recipe, fp32, stepwise


class CASOptions(Options):
    """Options of CAS."""

    beta: float = Field(2.0, ge=0)
    """Weight of the auxiliary heads' mean loss, in training and in the attack; 2 officially."""
    last_only: bool = False
    """One gate, on the last map, in place of one after each of the last two blocks."""
    test_gate: Literal["hard", "soft"] = "hard"
    """Gate without labels: W[argmax a] as officially, or softmax(a) W."""


class Heads(NamedTuple):
    """What a loss sees: the logits (B,K) of every head, the final one first, at least float32."""

    adversarial: list[Tensor]
    """At x'."""
    clean: list[Tensor]
    """At x; empty where the method `needs_clean` not."""
    y: Tensor
    """Labels (B,)."""


class CAS(Method):
    """min_W CE(f(x'), y) + beta mean_l CE(a_l(x'), y), x' maximising the same sum.

    a_l are linear classifiers on the pooled maps of the last two blocks, whose channels are scaled
    by W_l[y] in training and by W_l[argmax a_l] without a label, as in the attack. Cost with 10
    steps: 11 forwards, 10 backwards to x, 1 to the weights. A gradient cannot see the argmax: judge
    such a network by attacks on its auxiliary heads too.
    """

    Options = CASOptions
    options: CASOptions
    recipe = Recipe(
        train=stepwise(200, (74, 89), 1e-4),
        crafting={"step": "2/255", "steps": 10},
        source="Standard_Adv_Training/train.py; its scheduler is stepped before an epoch, so that"
        " the rate falls one epoch before 75 and 90",
    )
    needs_clean: ClassVar[bool] = False
    """Whether `head_loss` reads the clean logits, for one more forward and backward."""

    def build(self, model: nn.Module) -> nn.Module:
        """Put the gates where the network says, and wrap it in a `Headed`."""
        sites, classes = getattr(model, "class_sites", ()), getattr(model, "classes", None)
        if not sites or classes is None:
            raise UserError(
                "this model says no place for class gates: choose one of"
                " resnet18, preactresnet18, wrn-D-W, resnet50, cnn4, resnet12, wrn28"
            )
        if self.options.last_only:
            sites = sites[-1:]
        gates = {path: self.gate(classes, channels) for path, channels in sites}
        return insert_class_gates(model, gates, self.fusions(list(gates)))

    def gate(self, classes: int, channels: int) -> ClassGate:
        """A gate for `channels` channels; weights of the true class alone."""
        return ClassGate(classes, channels, test_gate=self.options.test_gate)

    def fusions(self, paths: list[str]) -> dict[str, HFF]:
        """What fuses features before the gates at `paths`; default: nothing."""
        del paths
        return {}

    def start(self, x: Tensor) -> Tensor:
        """Where the attack starts."""
        return uniform_start(x, self.threat.eps)

    def weaknesses(self, model: nn.Module, targets: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """The joint loss: final logits behind an argmax give poor gradients."""
        return [self.joint(model, targets)]

    def joint(self, model: nn.Module, y: Tensor) -> Callable[[Tensor], Tensor]:
        """The attack's objective: CE(f(x'), y) + beta mean_l CE(a_l(x'), y), summed."""
        heads = heads_of(model)

        def loss(x_adv: Tensor) -> Tensor:
            # Only craft_bn = train crafts in training mode, where the gates need the labels.
            with heads.labelled(y) if heads.training else nullcontext():
                logits = [fp32(each) for each in all_logits(model, x_adv)]
            losses = [functional.cross_entropy(each, y, reduction="sum") for each in logits]
            return self.joined(losses)

        return loss

    def plan(self, model: nn.Module, batch: Batch, objective: Objective) -> Plan:
        return Plan(
            self.joint(model, batch.targets),
            start=self.start(batch.x),
            eps=self.threat.eps,
            alpha=self.threat.step,
            steps=self.threat.steps,
        )

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        found = self.training_passes(model, batch, x_adv)
        return self.joined([self.head_loss(head, found) for head in range(len(found.adversarial))])

    def head_loss(self, head: int, found: Heads) -> Tensor:
        """The base method's loss of one head, a mean over the batch; 0 is the final one.

        Another base loss is another override of this, with `needs_clean` where it reads x.
        """
        return functional.cross_entropy(found.adversarial[head], found.y)

    def joined(self, losses: list[Tensor]) -> Tensor:
        """The final head's loss + beta times the mean of the auxiliary ones."""
        final, *auxiliary = losses
        return final + self.options.beta * sum(auxiliary) / len(auxiliary)

    def training_passes(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Heads:
        """The label-gated training passes at x', and at x where the loss needs it."""
        heads, y = heads_of(model), batch.targets
        clean: list[Tensor] = []
        with heads.labelled(y):
            if self.needs_clean or self.partners_clean(heads):
                with heads.clean_pass():
                    clean = all_logits(model, batch.x)
            with heads.attacked_pass():
                adversarial = all_logits(model, x_adv)
        return Heads([fp32(each) for each in adversarial], [fp32(each) for each in clean], y)

    def partners_clean(self, heads: Headed) -> bool:
        """Whether features are fused with those of the clean images."""
        return any(place.partner == "clean" for place in heads.fusions)
