"""torchvision's ImageNet networks."""

from __future__ import annotations

from aal_bench.models.build import Architecture, ClassSite


def resnet50(classes: int, size: int) -> Architecture:  # noqa: ARG001 - it pools globally
    """ResNet-50, random weights; the gate follows conv1-bn1-relu, before the max-pool."""
    from torchvision.models import resnet50 as build

    network = build(weights=None, num_classes=classes)
    sites = {"post_bn_relu": "maxpool", "post_conv1": "bn1"}
    last = ClassSite("layer4.1", 2048), ClassSite("layer4.2", 2048)
    return Architecture(network, sites, 64, class_sites=last)
