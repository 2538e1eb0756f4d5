"""Object detection on MMDetection: importing any part of this repairs the toolkit first."""

from aal_bench.toolkits import mmcv_ops, mmdet_eval_map, mmdet_ssd

mmcv_ops.repair()
mmdet_ssd.repair()
mmdet_eval_map.repair()
