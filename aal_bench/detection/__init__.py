"""Object detection on MMDetection: importing any part of this repairs the toolkit first."""

from aal_bench.toolkits import mmcv_ops, mmdet_eval_map, mmdet_ssd
from aal_bench.toolkits._quiet import import_quietly

mmcv_ops.repair()
mmdet_ssd.repair()
with mmdet_ssd.without_notices():
    # A faster COCO metric, which nobody here uses, says that it is not installed.
    import_quietly("mmdet.evaluation", *mmdet_ssd.NOTICES, "faster_coco_eval is not installed")
    import_quietly("mmdet.datasets", *mmdet_ssd.NOTICES)
mmdet_eval_map.repair()
