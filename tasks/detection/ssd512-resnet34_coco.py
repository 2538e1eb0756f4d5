"""SSD-512, ResNet-34 (variant A) on COCO 2017; the priors of MMDetection's SSD-512 for COCO."""

_base_ = [
    "./_base_/ssd512-resnet34.py",
    "./_base_/coco.py",
    "./_base_/schedule.py",
    "./_base_/runtime.py",
]

model = dict(bbox_head=dict(num_classes=80, anchor_generator=dict(basesize_ratio_range=(0.1, 0.9))))
