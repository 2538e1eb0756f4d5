"""What a network declares of itself: a gate, auxiliary heads. By what it offers, not by its type.

`aal.attention.SpatialGate` and `again.heads.Headed` declare one each; a user's own network does by
offering the same names.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from aal_bench.again.heads import Headed, all_logits


@runtime_checkable
class DeclaredGate(Protocol):
    """A gate: ``reading()`` yields an object whose ``M`` is the mask (B,1,h,w) of the last pass."""

    def reading(self) -> AbstractContextManager[Any]: ...

    def pinned(self, value: Any) -> AbstractContextManager[Any]:
        """Replace the mask by a number or a tensor (B,1,h,w)."""
        ...


@runtime_checkable
class DeclaredHeads(Protocol):
    """A network, or a part of one, with auxiliary heads.

    Where its final logits pass gates of classes, it has two contexts besides: ``gating(kind)`` with
    ``hard``, ``soft`` or ``straight`` (hard with the soft gate's gradient), and ``pinned(classes)``
    with a LongTensor (B,).
    """

    def logits(self, x: Tensor) -> Tensor: ...

    def auxiliary_logits(self, x: Tensor) -> list[Tensor]: ...


def gates(model: nn.Module) -> list[Any]:
    """The gates inside `model` (`DeclaredGate`), in its order; empty: it declares none."""
    return [part for part in model.modules() if isinstance(part, DeclaredGate)]


def heads(model: nn.Module) -> Any | None:
    """What declares auxiliary heads (`DeclaredHeads`), the outermost; None: nothing does."""
    return next((part for part in model.modules() if isinstance(part, DeclaredHeads)), None)


def declares(model: nn.Module) -> bool:
    """Whether `model` declares a gate or auxiliary heads."""
    return bool(gates(model)) or heads(model) is not None


def every_logits(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The final, then the auxiliary logits (B,K) of `x` (B,C,H,W), with their graph.

    One pass where the heads are a `Headed`. A network of another kind takes a second pass, through
    the part that has the heads, on what that part was given in the first: a normalisation in front
    of it is not forgotten.

    Raises:
        ValueError: there are no heads, or the network's forward goes around the part that has them.
    """
    part = heads(model)
    if part is None:
        raise ValueError("this network declares no auxiliary heads")
    if isinstance(part, Headed):
        return all_logits(model, x)
    given: list[Tensor] = []
    watching = cast("nn.Module", part).register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0])
    )
    try:
        final = model(x)
    finally:
        watching.remove()
    if not given:
        raise ValueError(
            f"{type(part).__name__} declares auxiliary heads, but the network's forward does not"
            " call it: call it as a module, not its logits()"
        )
    return [final, *part.auxiliary_logits(given[-1])]


def count_heads(model: nn.Module, x: Tensor | None = None) -> int:
    """How many auxiliary heads `model` has; 0 without any.

    Args:
        model: the network, in eval mode.
        x: an image to find out with, for networks other than `Headed`.

    Raises:
        ValueError: only an image would tell.
    """
    part = heads(model)
    if part is None:
        return 0
    if isinstance(part, Headed):
        return len(part.gates)
    if x is None:
        raise ValueError("an image is needed to count this network's auxiliary heads")
    return len(every_logits(model, x[:1])) - 1
