"""AAL around the two methods whose losses compare the logits of a clean and an attacked pass.

The mask M^a comes from CE on the clean batch with its labels, for TRADES too: the divergence that
TRADES ascends has no gradient there, since p(x') = p(x) at x' = x. The steps inside the mask then
ascend the wrapped method's own objective.

``second_att`` injects the mask into the clean pass of these losses as well as into the attacked
one. Both passes then are of one network, so that the divergence between them is zero where the
images are equal, and measures the perturbation rather than two different gates.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aal_bench.aal.options import Selective
from aal_bench.methods.aal import AAL
from aal_bench.methods.mart import MART, MARTOptions
from aal_bench.methods.trades import TRADES, TRADESOptions


class AALTRADESOptions(Selective, TRADESOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Options of AAL and of TRADES."""


class AALMARTOptions(Selective, MARTOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Options of AAL and of MART."""


class AALTRADES(AAL):
    """min_W CE(f(x), y) + beta KL(p(x) || p(x')), x' maximising that KL inside eps k(M^a).

    Cost with 10 steps: 14 forwards, 11 backwards to x, 2 to the weights.
    """

    base = TRADES
    Options = AALTRADESOptions
    update_defaults: ClassVar[dict[str, dict[str, Any]]] = TRADES.update_defaults


class AALMART(AAL):
    """min_W BCE(p(x'), y) + lambda KL(p(x) || p(x')) (1 - p_y(x)), x' by CE inside eps k(M^a).

    Cost with 10 steps: 13 forwards, 11 backwards to x, 2 to the weights.
    """

    base = MART
    Options = AALMARTOptions
