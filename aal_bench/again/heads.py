"""A network with class gates: final and auxiliary logits, and labels for training passes only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import Tensor, nn

from aal_bench.again.class_gate import ClassGate, TestGate
from aal_bench.again.fusion import HFF


class Headed(nn.Module):
    """x (B,3,H,W) -> final logits (B,K) of a network that holds class gates.

    Labels reach the gates by `labelled` alone, in training mode alone: evaluation calls the network
    as any other, and cannot be handed a label by mistake. Where gates for attention go is passed
    through.

    Args:
        model: the network, gates inside.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gate_sites = {
            position: f"model.{path}" for position, path in getattr(model, "gate_sites", {}).items()
        }
        self.gate_channels = getattr(model, "gate_channels", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    @property
    def gates(self) -> list[ClassGate]:
        """The class gates, in the network's order."""
        return [module for module in self.modules() if isinstance(module, ClassGate)]

    @property
    def fusions(self) -> list[HFF]:
        """The places of feature fusion, in the network's order; empty: there is none."""
        return [module for module in self.modules() if isinstance(module, HFF)]

    # ---- evaluation --------------------------------------------------------------------------

    def logits(self, x: Tensor) -> Tensor:
        """Final logits (B,K).

        Raises:
            RuntimeError: the network is in training mode.
        """
        self._only_evaluated()
        return self(x)

    def auxiliary_logits(self, x: Tensor) -> list[Tensor]:
        """The logits (B,K) of each gate's own classifier, from one pass.

        Raises:
            RuntimeError: the network is in training mode.
        """
        self._only_evaluated()
        return all_logits(self, x)[1:]

    def gating(self, test_gate: TestGate) -> AbstractContextManager[None]:
        """Every gate hard (as evaluated), soft, or hard with the soft gate's gradient."""
        return _all(gate.gating(test_gate) for gate in self.gates)

    def pinned(self, classes: Tensor | int) -> AbstractContextManager[None]:
        """Every gate fixed at W[classes], one class or (B,); see `ClassGate.pinned`."""
        return _all(gate.pinned(classes) for gate in self.gates)

    # ---- training ----------------------------------------------------------------------------

    @contextmanager
    def labelled(self, y: Tensor) -> Iterator[None]:
        """Gate the training passes of this context by the labels `y` (B,).

        Raises:
            RuntimeError: the network is in eval mode.
        """
        if not self.training:
            raise RuntimeError("labels are for training passes: this network is in eval mode")
        with _all(gate.labelled(y) for gate in self.gates):
            yield

    def clean_pass(self) -> AbstractContextManager[None]:
        """The clean training pass that goes before an `attacked_pass` and shares its draws.

        A divergence between the two is then the attack's, not that of their y' and statistics.

        Raises:
            RuntimeError: the network is in eval mode.
        """
        self._only_trained()
        return _all(part.clean_pass() for part in (*self.gates, *self.fusions))

    def attacked_pass(self) -> AbstractContextManager[None]:
        """The attacked training pass, whose features are fused.

        Raises:
            RuntimeError: the network is in eval mode.
        """
        self._only_trained()
        return _all(part.attacked_pass() for part in (*self.gates, *self.fusions))

    def _only_trained(self) -> None:
        if not self.training:
            raise RuntimeError("features are fused in training: this network is in eval mode")

    def _only_evaluated(self) -> None:
        if self.training:
            raise RuntimeError("the network is in training mode, where labels open its gates")


def all_logits(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Final, then auxiliary logits (B,K), with their graph, from one pass through `model`.

    Args:
        model: a `Headed`, or what wraps one (a compiled network).
        x: images (B,3,H,W).
    """
    with ExitStack() as stack:
        records = [stack.enter_context(gate.recording()) for gate in heads_of(model).gates]
        # The call, not `forward`: autocast and compilation are put around it from outside.
        logits = model(x)
    return [logits, *(each for record in records for each in record)]


def has_class_gates(model: nn.Module) -> bool:
    """Whether `model` holds class gates."""
    return any(isinstance(module, ClassGate) for module in model.modules())


def heads_of(model: nn.Module) -> Headed:
    """Return the one `Headed` that `model` is or wraps.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [module for module in model.modules() if isinstance(module, Headed)]
    if len(found) != 1:
        raise ValueError(f"a network with class gates holds one Headed, this one {len(found)}")
    return found[0]


def insert_class_gates(
    model: nn.Module, gates: dict[str, ClassGate], fusions: dict[str, HFF] | None = None
) -> Headed:
    """Put each gate after the module at its dotted path, and wrap the whole in a `Headed`.

    The module becomes Sequential(map, [fusion,] gate): no ``forward`` is copied, and the parameters
    of a gate have the same names whether or not features are fused before it. Gates take device and
    dtype of the model's first parameter, and its mode.

    Args:
        model: changed in place.
        gates: path of the module whose output is gated -> the gate.
        fusions: path -> what fuses features before the gate there.

    Raises:
        ValueError: there is no such module.
    """
    like = next(model.parameters(), None)
    for path, gate in gates.items():
        parent_path, _, name = path.rpartition(".")
        try:
            parent, module = model.get_submodule(parent_path), model.get_submodule(path)
        except AttributeError:
            raise ValueError(f"{type(model).__name__} has no module '{path}' to gate") from None
        if like is not None:
            gate.to(device=like.device, dtype=like.dtype)
        wrapped = nn.Sequential()
        wrapped.add_module("map", module)
        if fusions and path in fusions:
            wrapped.add_module("fusion", fusions[path].train(model.training))
        wrapped.add_module("gate", gate.train(model.training))
        wrapped.training = model.training  # not .train(): what is frozen inside keeps its mode
        setattr(parent, name, wrapped)
    headed = Headed(model)
    headed.training = model.training
    return headed


@contextmanager
def _all(contexts: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
