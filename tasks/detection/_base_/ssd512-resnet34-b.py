"""SSD-512 on ResNet-34, variant B, after NVIDIA's SSD and MLPerf's.

The last stage is left out and stage 3 keeps its resolution: one map of 256 channels at stride 8,
all others from extra layers. Same grids, so the same priors as variant A.
"""

_base_ = ["./ssd512-resnet34.py"]

model = dict(
    backbone=dict(
        num_stages=3,
        strides=(1, 2, 1),
        dilations=(1, 1, 1),
        out_indices=(2,),
    ),
    neck=dict(
        in_channels=(256,),
        out_channels=(256, 512, 512, 256, 256, 256, 256),
        level_strides=(2, 2, 2, 2, 2, 1),
        level_paddings=(1, 1, 1, 1, 1, 1),
    ),
    bbox_head=dict(in_channels=(256, 512, 512, 256, 256, 256, 256)),
)
