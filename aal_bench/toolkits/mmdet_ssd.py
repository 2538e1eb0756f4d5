"""Fault: SSD cannot predict: "'SSDHead' object has no attribute 'loss_cls'".

Since mmdetection 3.2 ``BaseDenseHead._predict_by_feat_single`` reads ``self.loss_cls``, which
``SSDHead`` never sets because its loss is written out (open-mmlab/mmdetection #11063, #11305,
#11780; the mend #11524 is not merged). Training works, so the fault shows after the first epoch.

Repair: the registry's ``SSDHead`` becomes a subclass that sets ``loss_cls = None`` where
upstream set nothing; with None the prediction takes the softmax, as it did before 3.2. Configs
stay as they are.
"""

from __future__ import annotations

import importlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

from aal_bench.toolkits import mmcv_ops
from aal_bench.toolkits._quiet import import_quietly

# Python warns of escape sequences in mmdet's sources when it first compiles them; mmdet uses an old
# name of mmcv's; a metric that nobody asked for is absent; clr_head logs that it lacks a CUDA
# operator of its own; and the data sets print that those of the fork's company are not there.
NOTICES = (
    "invalid escape sequence",
    "``MultiScaleDeformableAttention`` has been moved",
    "`torch.jit.interface` is deprecated",
    "faster_coco_eval is not installed",
)
LANE_NOTICE = "Line NMS is not compiled"


def fault_present() -> bool:
    """Whether the ``SSDHead`` that configs get fails to predict (tried on a head of one level)."""
    if find_spec("mmdet") is None:
        return False
    head = _registry().build(_ONE_LEVEL_HEAD)
    return not hasattr(head, "loss_cls") and _fails_for_lack_of_it(head)


def repair() -> None:
    """Give the registered ``SSDHead`` the attribute that prediction reads."""
    if not fault_present():
        return
    registry = _registry()
    upstream: Any = registry.get("SSDHead")

    class SSDHead(upstream):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if not hasattr(self, "loss_cls"):  # a subclass may have built one
                self.loss_cls = None

    SSDHead.__doc__ = upstream.__doc__
    registry.register_module(name="SSDHead", module=SSDHead, force=True)


_ONE_LEVEL_HEAD: dict[str, Any] = {
    "type": "SSDHead",
    "num_classes": 1,
    "in_channels": (1,),
    "anchor_generator": {
        "type": "SSDAnchorGenerator",
        "scale_major": False,
        "input_size": 300,
        "strides": [300],
        "ratios": [[2]],
        "min_sizes": [30],
        "max_sizes": [60],
    },
}


def _registry() -> Any:
    """``mmdet.registry.MODELS`` with mmdet's models in it."""
    mmcv_ops.repair()
    with without_notices():
        import_quietly("mmdet.models", *NOTICES)
    return importlib.import_module("mmdet.registry").MODELS


def _fails_for_lack_of_it(head: Any) -> bool:
    import torch
    from mmengine.config import ConfigDict

    level = torch.zeros(1, 1, 1, 1)
    with torch.no_grad():
        scores, boxes = head((level,))
        try:
            head.predict_by_feat(
                scores,
                boxes,
                batch_img_metas=[{"img_shape": (300, 300), "scale_factor": (1.0, 1.0)}],
                cfg=ConfigDict(nms_pre=4, score_thr=0.0),
                with_nms=False,
            )
        except AttributeError as error:
            if "loss_cls" not in str(error):
                raise
            return True
    return False


@contextmanager
def without_notices() -> Iterator[None]:
    """Without what mmdet logs and prints while it is imported, which no user can mend."""
    from mmengine.logging import MMLogger

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(LANE_NOTICE)

    logger = MMLogger.get_current_instance()
    logger.addFilter(keep)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(keep)
