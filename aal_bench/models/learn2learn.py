"""learn2learn's few-shot networks, at sizes other than its 84 px."""

from __future__ import annotations

from aal_bench.errors import UserError
from aal_bench.models.build import Architecture, ClassSite


def cnn4(classes: int, size: int, width: int = 64) -> Architecture:
    """CNN4: four times conv-bn-relu-maxpool; the gate precedes the first max-pool.

    Its features are the last map: (width, 5, 5) at 84 px, (width, 1, 1) at 16 to 31 px.
    """
    _halves_four_times("cnn4", size)
    from aal_bench.toolkits.learn2learn_vision import cnn4 as build

    sites = {"post_bn_relu": "features.0.max_pool", "post_conv1": "features.0.normalize"}
    side = size // 16
    network = build(classes, size, hidden=width)
    last = ClassSite("features.2", width), ClassSite("features.3", width)
    return Architecture(network, sites, width, (width, side, side), last)


def resnet12(classes: int, size: int) -> Architecture:
    """ResNet-12 (64-160-320-640); the gate follows the first block's conv1-bn1-LeakyReLU.

    There is no stem, and the block's one LeakyReLU runs three times: the gate is put before conv2,
    and the block's 1x1 shortcut bypasses it.
    """
    _halves_four_times("resnet12", size)
    from aal_bench.toolkits.learn2learn_resnet12 import resnet12 as build

    sites = {"post_bn_relu": "features.layer1.0.conv2", "post_conv1": "features.layer1.0.bn1"}
    last = ClassSite("features.layer3", 320), ClassSite("features.layer4", 640)
    return Architecture(build(classes, size), sites, 64, (640, 1, 1), last)


def wrn28(classes: int, size: int, width: int = 10) -> Architecture:
    """WRN-28-width; no BN or ReLU follows conv1, so both gate positions are one."""
    from aal_bench.toolkits.learn2learn_wrn28 import wrn28 as build

    sites = {"post_bn_relu": "features.layer1", "post_conv1": "features.layer1"}
    channels = 64 * width
    last = ClassSite("features.layer3.2", channels), ClassSite("features.relu", channels)
    return Architecture(build(classes, size, width), sites, 16, (channels, 1, 1), last)


def _halves_four_times(name: str, size: int) -> None:
    if size < 16:
        raise UserError(
            f"model {name} halves the image four times and takes >= 16 px, not {size} px"
        )
