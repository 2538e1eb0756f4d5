"""Fault: learn2learn's ``ResNet12`` fits 84 pixels only, and its DropBlock forgets and miscounts.

``learn2learn.vision.models.ResNet12`` (0.2.0)

- takes blocks of 5 pixels out of the last maps, which are 5x5 at 84 pixels: on a 4x4 map
  "float division by zero", on smaller ones "numel: integer multiplication overflow";
- pools the last map by 5, so that the classifier fits no larger map and no smaller one exists;
- raises the share that DropBlock takes with ``BasicBlock.num_batches_tracked``, a plain int that
  every forward pass advances, of an attack and of validation too, and that no state dict holds: a
  resumed run starts again without DropBlock.

The first two are arguments and a module. The third is mended by hooks on each block, which stays
learn2learn's: `count_training_passes`. What stays as it is: DropBlock draws on the CPU from torch's
global generator, counts the blocks it drew (a synchronisation with a GPU), and pairs blocks with
offsets cyclically, so that it takes fewer pixels than it means to where the number of blocks and
the block's area have a common divisor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aal_bench.toolkits import learn2learn_vision

if TYPE_CHECKING:
    from torch import nn

BLOCK = 5
"""DropBlock's side at 84 pixels, MetaOptNet's."""
COUNTER = "num_batches_tracked"


def resnet12(classes: int, size: int) -> nn.Module:
    """Build learn2learn's ResNet-12 (64-160-320-640, DropBlock 0.1) for images of `size` pixels.

    DropBlock takes blocks of 5 pixels, or of the last map's side where that is smaller (2 at 32
    pixels, as RFS sets it for CIFAR-FS), and the last map is pooled whole. At 84 pixels the
    network computes what learn2learn's does, bit by bit.

    Args:
        classes: Number of logits.
        size: Height and width of the input in pixels, at least 16 (four poolings by 2).

    Returns:
        A ``learn2learn.vision.models.ResNet12``: x (B,3,size,size) -> logits (B,classes), whose
        state dict holds ``features.layerN.0.num_batches_tracked``. One without them, such as
        learn2learn's own, loads too and leaves the counters as they are.

    Raises:
        UserError: `size` is below 16, or learn2learn is not installed.
    """
    side = learn2learn_vision.last_side("resnet12", size)
    models = learn2learn_vision.models("resnet12")
    from torch import nn

    network = models.ResNet12(output_size=classes, dropblock_size=min(BLOCK, side))
    network.features.avgpool = nn.AvgPool2d(side)
    for module in network.modules():
        if isinstance(module, models.resnet12.BasicBlock):
            count_training_passes(module)
    return network


def count_training_passes(block: nn.Module) -> None:
    """Let a ``BasicBlock`` count its training passes only, and keep the count with its weights.

    A pass trains when the block is in training mode, gradients are enabled, and a weight of it
    requires one; within ``attacks.linf.attacking`` none does, whatever the batch norm's mode. The
    count stays a Python int, so that no pass waits for a GPU. The state dict has it as a 0-dim
    int64 tensor under ``num_batches_tracked``, beside those of the batch norms.
    """
    block.register_forward_pre_hook(_take_back)
    block.register_state_dict_post_hook(_write)
    block.register_load_state_dict_pre_hook(_read)


def _take_back(block: Any, _: Any) -> None:
    """Before a pass that trains nothing: the one that ``BasicBlock.forward`` will add."""
    import torch

    weights = block.parameters()
    trains = block.training and torch.is_grad_enabled() and any(w.requires_grad for w in weights)
    if not trains:
        block.num_batches_tracked -= 1


def _write(block: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    import torch

    state[prefix + COUNTER] = torch.tensor(block.num_batches_tracked)


def _read(block: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    saved = state.pop(prefix + COUNTER, None)
    if saved is not None:
        block.num_batches_tracked = int(saved)
