"""RobustBench's CIFAR networks: ResNet-18, PreActResNet-18, WideResNet-D-W."""

from __future__ import annotations

from aal_bench.errors import UserError
from aal_bench.models.build import Architecture, ClassSite
from aal_bench.toolkits import robustbench_import

LAST_BLOCKS = ClassSite("layer4.0", 512), ClassSite("layer4.1", 512)
"""Where CAS puts its gates into a ResNet-18."""


def _needs_32(name: str, size: int) -> None:
    if size != 32:
        raise UserError(
            f"model {name} pools by a fixed window and takes 32 px images, not {size} px:"
            " choose cnn4 or resnet50"
        )


def resnet18(classes: int, size: int) -> Architecture:
    """ResNet-18 with a 3x3 stem; the gate follows conv1-bn1-relu."""
    _needs_32("resnet18", size)
    robustbench_import.repair()
    from robustbench.model_zoo.architectures.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    sites = {"post_bn_relu": "layer1", "post_conv1": "bn1"}
    return Architecture(network, sites, 64, class_sites=LAST_BLOCKS)


def preactresnet18(classes: int, size: int) -> Architecture:
    """PreActResNet-18; no BN or ReLU follows conv1, so both gate positions are one."""
    _needs_32("preactresnet18", size)
    robustbench_import.repair()
    from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet

    network = PreActResNet(PreActBlock, [2, 2, 2, 2], num_classes=classes)
    sites = {"post_bn_relu": "layer1", "post_conv1": "layer1"}
    return Architecture(network, sites, 64, class_sites=LAST_BLOCKS)


def wide_resnet(classes: int, size: int, depth: int, width: int) -> Architecture:
    """WideResNet-D-W; no BN or ReLU follows conv1, so both gate positions are one."""
    _needs_32(f"wrn-{depth}-{width}", size)
    if depth < 10 or (depth - 4) % 6:
        raise UserError(
            f"wrn-{depth}-{width}: the depth of a WideResNet is 10, 16, 22, 28, 34, ..."
        )
    robustbench_import.repair()
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    network = WideResNet(depth=depth, num_classes=classes, widen_factor=width)
    sites = {"post_bn_relu": "block1", "post_conv1": "block1"}
    return Architecture(network, sites, 16, class_sites=_last_of_wide(depth, width))


def _last_of_wide(depth: int, width: int) -> tuple[ClassSite, ClassSite]:
    """The activated input of the last block, beside its shortcut, and the map that is pooled.

    The one block of a stage at depth 10 widens, and its shortcut takes the activated input too.
    """
    blocks = (depth - 4) // 6
    channels = 64 * width if blocks > 1 else 32 * width
    first = ClassSite(f"block3.layer.{blocks - 1}.relu1", channels)
    return first, ClassSite("relu", 64 * width)
