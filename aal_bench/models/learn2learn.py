"""learn2learn's small networks, at sizes other than its 84 px."""

from __future__ import annotations

from aal_bench.errors import UserError
from aal_bench.models.build import Architecture


def cnn4(classes: int, size: int, width: int = 64) -> Architecture:
    """CNN4: four times conv-bn-relu-maxpool; the gate precedes the first max-pool."""
    if size < 16:
        raise UserError(f"model cnn4 halves the image four times and takes >= 16 px, not {size} px")
    from aal_bench.toolkits.learn2learn_vision import cnn4 as build

    sites = {"post_bn_relu": "features.0.max_pool", "post_conv1": "features.0.normalize"}
    return Architecture(build(classes, size, hidden=width), sites, width)
