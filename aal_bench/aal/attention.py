"""The spatial attention gate (CBAM), reading and pinning its mask, and putting it into a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aal_bench.aal.gradients import full_precision
from aal_bench.aal.options import Gate


class Reading:
    """What `SpatialGate.reading` yields: the mask of the latest forward pass."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None

    @property
    def M(self) -> Tensor:
        """The mask (B,1,h,w), at least float32, with its graph.

        Raises:
            RuntimeError: no forward pass has gone through the gate yet.
        """
        if self._mask is None:
            raise RuntimeError("the gate's mask was read before a forward pass went through it")
        return self._mask


class ChannelGate(nn.Module):
    """CBAM's channel gate: f * sigmoid(mlp(mean_hw f) + mlp(max_hw f)) (A19)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, f: Tensor) -> Tensor:
        scores = self.mlp(f.mean((2, 3))) + self.mlp(f.flatten(2).max(2).values)
        return f * scores.sigmoid().to(f.dtype)[:, :, None, None]


class SpatialGate(nn.Module):
    """CBAM's spatial gate: f (B,C,h,w) -> f * M with M = sigmoid(BN(conv([max_c f; mean_c f]))).

    Source: Woo et al. 2018; like its official code the convolution has no bias and the BN a
    momentum of 0.01. M is formed in float32 even under autocast, because Eq. 12 moves it by
    less than bfloat16 resolves.

    Args:
        options: the gate's switches (A18, A19).
        channels: C of the feature map; needed for the channel gate only.
    """

    def __init__(self, options: Gate | None = None, channels: int | None = None) -> None:
        super().__init__()
        options = options or Gate()
        size = options.kernel_size
        if options.channel_gate and channels is None:
            raise ValueError("channel_gate needs the number of channels of the feature map")
        self.channel = ChannelGate(channels) if options.channel_gate and channels else None
        self.conv = nn.Conv2d(2, 1, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=options.bn_momentum)
        nn.init.constant_(self.bn.weight, float(options.bn_weight_init))
        self._readings: list[Reading] = []
        self._pinned: Tensor | float | None = None

    def mask(self, f: Tensor) -> Tensor:
        """M (B,1,h,w) in (0, 1) of the feature map `f` (B,C,h,w), at least float32."""
        # Not amax: its gradient looks for the maximum in f, and a compiled bfloat16 graph that
        # forms f again in float32 finds none and divides by their number.
        pooled = torch.cat([f.max(1, keepdim=True).values, f.mean(1, keepdim=True)], 1)
        return full_precision(self.bn(self.conv(pooled))).sigmoid()

    def forward(self, f: Tensor) -> Tensor:
        if self.channel is not None:
            f = self.channel(f)
        mask = self.mask(f) if self._pinned is None else self._pinned_mask(f, self._pinned)
        if self._readings:
            if torch.compiler.is_compiling():
                # One compiled graph would return M beside the logits, which then do not depend on
                # it: the cut makes M an input of what follows.
                torch._dynamo.graph_break()
            for reading in self._readings:
                reading._mask = mask
        return f * mask.to(f.dtype)

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Record the mask of every forward pass inside the context; the latest is ``.M``."""
        reading = Reading()
        self._readings.append(reading)
        try:
            yield reading
        finally:
            self._readings.remove(reading)

    @contextmanager
    def pinned(self, value: Tensor | float) -> Iterator[None]:
        """Replace M by `value`, a number or a tensor (B,1,h,w), with whatever graph it has.

        The gate's convolution and BN do not run meanwhile, so its statistics stand still.
        """
        before, self._pinned = self._pinned, value
        try:
            yield
        finally:
            self._pinned = before

    @staticmethod
    def _pinned_mask(f: Tensor, value: Tensor | float) -> Tensor:
        shape = (f.shape[0], 1, *f.shape[2:])
        if isinstance(value, Tensor):
            return value.to(f.device).expand(shape)
        return full_precision(f).new_full(shape, value)


def has_gate(model: nn.Module) -> bool:
    """Whether `model` holds a `SpatialGate`."""
    return any(isinstance(module, SpatialGate) for module in model.modules())


def gate_of(model: nn.Module) -> SpatialGate:
    """Return the one gate of `model`.

    Raises:
        ValueError: it has none, or several (which mask would be the attack's?).
    """
    gates = [module for module in model.modules() if isinstance(module, SpatialGate)]
    if len(gates) != 1:
        raise ValueError(f"a gated model holds exactly one SpatialGate, this one {len(gates)}")
    return gates[0]


def insert_gate(
    model: nn.Module, site: str, options: Gate | None = None, channels: int | None = None
) -> nn.Module:
    """Put a gate before the module at the dotted path `site`: it becomes Sequential(gate, module).

    No ``forward`` is copied, and a module that is called with one tensor is all it takes. The
    module's parameters are found under ``<site>.1`` afterwards, so weights trained without a gate
    are loaded before. The gate takes device and dtype of the model's first parameter.

    Returns:
        `model` itself, changed in place.

    Raises:
        ValueError: there is no such module, or the model already holds a gate.
    """
    if has_gate(model):
        raise ValueError("the model already holds a SpatialGate")
    parent_path, _, name = site.rpartition(".")
    try:
        parent, module = model.get_submodule(parent_path), model.get_submodule(site)
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no module '{site}' to gate") from None
    if not name:
        raise ValueError("the site of a gate is a module inside the model, not the model itself")
    gate = SpatialGate(options, channels)
    like = next(model.parameters(), None)
    if like is not None:
        gate = gate.to(device=like.device, dtype=like.dtype)
    pair = nn.Sequential(gate.train(module.training), module)
    pair.training = module.training  # not .train(): a module frozen inside keeps its own mode
    setattr(parent, name, pair)
    return model
