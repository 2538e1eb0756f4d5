"""The stage `adaptive`: every adaptive attack on what all other stages left standing."""

from __future__ import annotations

from torch import Tensor, nn

from aal_bench import __version__
from aal_bench.attacks.adaptive.budget import FULL, QUICK, Budget, Setting
from aal_bench.attacks.adaptive.declared import heads
from aal_bench.attacks.adaptive.eot import is_random
from aal_bench.attacks.adaptive.worst import attacks_for, worst_case
from aal_bench.attacks.stages import Stage


class WorstCase(Stage, kind="adaptive"):
    """The per-image worst case over T1-T7 and U1-U5, judged on the network as it is evaluated.

    Cost: of an image that stands, that of all attacks which fit the network; another attack sees
    only what those before it left. Passes are counted for the whole; of images that FAB left in
    another order than the network did, two of one batch may have swapped theirs.
    """

    @property
    def implementation(self) -> dict[str, str | None]:
        """Our own code, which calls pyautoattack's."""
        return {"package": self.package, "version": __version__, "commit": None}

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        threat, step, classes, seed = self.setting
        asked, budget = Setting(threat.eps, step, classes, seed), self.budget(model)
        attacks = attacks_for(model, asked, budget, x=x)
        samples = budget.samples if is_random(model, x) else 1
        return worst_case(model, x, y, attacks, samples=samples, seed=seed).x_adv

    @staticmethod
    def budget(model: nn.Module) -> Budget:
        """Full where there are heads: there the first attacks are known to overstate."""
        return QUICK if heads(model) is None else FULL
