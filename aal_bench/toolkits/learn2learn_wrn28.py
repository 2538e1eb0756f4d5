"""Fault: learn2learn's ``WRN28`` fits 84 pixels only.

``learn2learn.vision.models.WRN28`` (0.2.0) ends with ``F.avg_pool2d(out, 21)`` inside its forward:
the whole map of 84 pixels. Smaller images raise "Output size is too small"; of larger ones the
classifier gets too many features.

There is no repair to apply: `wrn28` strings the backbone's own modules together with a pooling of
the map that `size` leaves. The forward pass of learn2learn is these modules in this order. Two
things stay as they are: the module's deprecated initialisers, which nothing calls, and the last
batch norm's momentum of 0.9, with which its running statistics follow the latest batch.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from aal_bench.toolkits import learn2learn_vision

if TYPE_CHECKING:
    from torch import nn

DEPTH, WIDTH = 28, 10


def wrn28(classes: int, size: int, width: int = WIDTH) -> nn.Module:
    """Build learn2learn's WRN-28-`width`, without dropout, for square images of `size` pixels.

    Args:
        classes: Number of logits.
        size: Height and width of the input in pixels.
        width: Widening factor; 10 is ``learn2learn.vision.models.WRN28``.

    Returns:
        x (B,3,size,size) -> logits (B,classes), in two parts, ``features`` and ``classifier``. The
        state dict has the keys of learn2learn's.

    Raises:
        UserError: learn2learn is not installed.
    """
    backbone = learn2learn_vision.models("wrn28").wrn28.WideResNet(DEPTH, width, dropout_rate=0.0)
    from torch import nn

    side = -(-size // 4)  # two strides of 2, each of which rounds up
    features = nn.Sequential(
        OrderedDict(
            conv1=backbone.conv1,
            layer1=backbone.layer1,
            layer2=backbone.layer2,
            layer3=backbone.layer3,
            bn1=backbone.bn1,
            relu=nn.ReLU(),
            pool=nn.AvgPool2d(side),
            flatten=nn.Flatten(),
        )
    )
    classifier = nn.Linear(64 * width, classes)
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))
