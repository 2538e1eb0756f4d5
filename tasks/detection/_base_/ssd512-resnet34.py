"""SSD-512 on ResNet-34, variant A: the maps of stages 2 to 4, MMDetection's usual idiom.

Grids 64, 32, 16, 8, 4, 2, 1 and so the 24,564 priors of SSD-512 on VGG. Batch norm trains, in the
extra layers too: the last map is 1 x 1, so a process needs at least two images.
"""

# The repairs of the toolkits (SSD cannot predict on MMDetection 3.2 to 3.5), and what is ours.
custom_imports = dict(imports=["aal_bench.detection.register"], allow_failed_imports=False)

model = dict(
    type="AttackedSingleStageDetector",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type="ResNet",
        depth=34,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    neck=dict(
        type="SSDNeck",
        in_channels=(128, 256, 512),
        out_channels=(128, 256, 512, 512, 256, 256, 256),
        level_strides=(2, 2, 2, 1),
        level_paddings=(1, 1, 1, 1),
        l2_norm_scale=None,
        last_kernel_size=4,
        norm_cfg=dict(type="BN"),
    ),
    bbox_head=dict(
        type="SSDHead",
        in_channels=(128, 256, 512, 512, 256, 256, 256),
        num_classes=20,
        anchor_generator=dict(
            type="SSDAnchorGenerator",
            scale_major=False,
            input_size=512,
            basesize_ratio_range=(0.15, 0.9),
            strides=[8, 16, 32, 64, 128, 256, 512],
            ratios=([2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]),
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type="PseudoSampler"),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type="nms", iou_threshold=0.45),
        min_bbox_size=0,
        score_thr=0.02,
        max_per_img=200,
    ),
)
cudnn_benchmark = True
