"""Associative adversarial learning: any method whose attack is a plan, confined to M^a.

Costs the wrapped method's passes plus the one clean pass that gives M, g and g_M: 12 forwards and
12 backwards for AAL-PGD-10, 2 and 2 for AAL-FGSM, whose step uses the clean pass's own gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from aal_bench.aal.attention import gate_of, insert_gate
from aal_bench.aal.controls import gaussian_noise
from aal_bench.aal.iterated import selective_pgd, selective_pgd_refreshed
from aal_bench.aal.options import Selective
from aal_bench.aal.selective import (
    Association,
    associative_mask,
    fgsm_step,
    second_attention,
    selective_fgsm,
)
from aal_bench.attacks.linf import attacking, gaussian_start, linf_pgd, uniform_start
from aal_bench.errors import UserError
from aal_bench.methods.base import Batch, BatchNormMode, Method, Objective, Plan, Threat
from aal_bench.methods.fgsm import FGSM
from aal_bench.methods.pgd import PGD

GAUSSIAN = 0.001
"""Standard deviation of a Gaussian start, where the wrapped method has none of its own."""


class AAL(Method):
    """Wraps `base`: its attack inside eps * k(M^a), its loss unchanged (Alg. 1 of the paper)."""

    Options = Selective
    options: Selective  # type: ignore[assignment]
    base: ClassVar[type[Method]]
    without_gate: ClassVar[set[str]] = {"control", "clean_weight", "craft_bn"}
    """The options that act under ``control = no_gate``."""
    without_attack: ClassVar[set[str]] = {"control", "gate"}
    """The options that act under ``control = no_attack``."""

    def __init__(self, options: Selective, threat: Threat) -> None:
        known = self.base.Options.model_fields
        own = {name: v for name, v in options.model_dump().items() if name in known}
        if own.get("craft_bn") == "inherit":
            own.pop("craft_bn")
        self.wrapped = self.base(self.base.Options(**own), threat)
        self.craft_bn: BatchNormMode = self.wrapped.options.craft_bn
        super().__init__(options, threat)  # type: ignore[arg-type]
        self._refuse_idle_options()
        self.association: Association | None = None

    def _refuse_idle_options(self) -> None:
        """An option that cannot act is a mistake, or a row that claims what it did not do."""
        one_step = issubclass(self.base, FGSM)
        from_clean_gradient = one_step and self.options.start in {"inherit", "clean"}
        idle = {
            "pgd_refresh": from_clean_gradient and self.options.pgd_refresh,
            "fgsm_step": not one_step and self.options.fgsm_step != "eps",
        }
        if "start_std" in type(self.options).model_fields:
            another = self.options.start in {"clean", "uniform"}
            idle["start_std"] = another and self._changed("start_std")
        acting = {"no_gate": self.without_gate, "no_attack": self.without_attack}
        if self.options.control in acting:
            idle |= {
                name: self._changed(name)
                for name in type(self.options).model_fields
                if name not in acting[self.options.control] and name not in self._wrapped_options()
            }
        idle |= self._idle()
        names = [name for name, is_idle in idle.items() if is_idle]
        if names:
            raise UserError(
                f"method options without effect here: {', '.join(names)}; omit their --set"
            )

    def _wrapped_options(self) -> set[str]:
        """The options of ours that are the wrapped method's, and act with or without a gate."""
        return set(self.base.Options.model_fields) - set(Selective.model_fields)

    def _idle(self) -> dict[str, bool]:
        """Further options and whether they were set without effect."""
        return {}

    def _changed(self, name: str) -> bool:
        return getattr(self.options, name) != type(self.options).model_fields[name].get_default()

    @property
    def keeps_graph(self) -> bool:
        return not self.options.detach_mask

    def build(self, model: nn.Module) -> nn.Module:
        """Put the gate after the stem; ``control = no_gate`` leaves the model as it is."""
        model = self.wrapped.build(model)
        if self.options.control == "no_gate":
            return model
        sites = getattr(model, "gate_sites", {})
        if self.options.gate.position not in sites:
            raise UserError(
                "this model says no place for an attention gate: choose one of"
                " resnet18, preactresnet18, wrn-D-W, resnet50, cnn4, resnet12, wrn28,"
                " ssd512-resnet34"
            )
        site = sites[self.options.gate.position]
        return insert_gate(model, site, self.options.gate, getattr(model, "gate_channels", None))

    def attack(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        if self.options.control == "no_attack":
            return batch.x
        if self.options.control == "no_gate":
            return self.wrapped.attack(model, batch, objective)
        x_adv = self._selective(model, batch, objective)
        if self.options.control == "gaussian_noise":
            return gaussian_noise(batch.x, x_adv.detach())
        return x_adv

    def _selective(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        with attacking(model, self.craft_bn, weight_graph=not self.options.detach_mask):
            plan = self.wrapped.plan(model, batch, objective)
            one_step = plan.start is batch.x and plan.steps == 1
            if one_step:
                plan = plan._replace(alpha=fgsm_step(plan.eps, self.options))
            found = self._associate(model, batch, objective, plan.alpha)
            self._note(found)
            if one_step and self.options.start in {"inherit", "clean"}:
                return selective_fgsm(batch.x, found)
            return self._iterate(model, batch, plan, found)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, objective: Objective) -> Tensor:
        if self.association is None:
            loss = self.wrapped.loss(model, batch, x_adv, objective)
        else:
            with second_attention(gate_of(model), self.association, self.options):
                loss = self.wrapped.loss(model, batch, x_adv, objective)
        weight = self.options.clean_weight
        if weight:
            loss = (1 - weight) * loss + weight * objective(batch.x, batch.targets)
        return loss

    def extra_modules(self) -> dict[str, nn.Module]:
        return self.wrapped.extra_modules()

    def param_groups(self, model: nn.Module) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
        return self.wrapped.param_groups(model)

    def before_step(self, batch: Batch) -> None:
        self.wrapped.before_step(batch)

    def after_step(self, batch: Batch, x_adv: Tensor) -> None:
        self.wrapped.after_step(batch, x_adv)

    def state_dict(self) -> dict[str, Any]:
        return self.wrapped.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.wrapped.load_state_dict(state)

    def _associate(
        self, model: nn.Module, batch: Batch, objective: Objective, step: float | Tensor
    ) -> Association:
        x = batch.x.detach().clone().requires_grad_()
        with gate_of(model).reading() as reading:
            clean_loss = objective(x, batch.targets, reduction="sum")
        xi1 = self.options.descent_step(batch.lr)
        return associative_mask(clean_loss, x, reading.M, self.options, xi1, step)

    def _iterate(self, model: nn.Module, batch: Batch, plan: Plan, found: Association) -> Tensor:
        start, steps = self._start(batch.x, plan, found), plan.steps
        assert isinstance(steps, int), "AAL wraps plans of one step count"
        arguments = (batch.x, found, plan.eps, plan.alpha, steps, self.options)
        if self.options.pgd_refresh:
            xi1 = self.options.descent_step(batch.lr)
            return selective_pgd_refreshed(plan.objective, gate_of(model), *arguments, xi1, start)
        return selective_pgd(linf_pgd, plan.objective, *arguments, start)

    def _start(self, x: Tensor, plan: Plan, found: Association) -> Tensor:
        """A14: the start of the wrapped attack, or another, scaled into the masked box."""
        K = found.K.detach()
        if self.options.start == "clean":
            return x
        if self.options.start == "uniform":
            return uniform_start(x, plan.eps * K)
        std = getattr(self.wrapped.options, "start_std", GAUSSIAN)
        unmasked = gaussian_start(x, std) if self.options.start == "gaussian" else plan.start
        return x + K * (unmasked - x)

    def _note(self, found: Association) -> None:
        self.association = found
        self.log = {
            "mask_shift": found.descended,
            "backtrack_shift": found.backtracked,
            "mean_k": found.budget,
        }


class AALFGSM(AAL):
    """AAL on FGSM: x' = clip(x + k(M^a) eps sign(g))."""

    base = FGSM


class AALPGD(AAL):
    """AAL on PGD: PGD inside the box eps k(M^a) with step alpha k(M^a)."""

    base = PGD
