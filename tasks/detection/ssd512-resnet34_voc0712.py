"""SSD-512, ResNet-34 (variant A) on Pascal VOC 07+12."""

_base_ = [
    "./_base_/ssd512-resnet34.py",
    "./_base_/voc0712.py",
    "./_base_/schedule.py",
    "./_base_/runtime.py",
]
