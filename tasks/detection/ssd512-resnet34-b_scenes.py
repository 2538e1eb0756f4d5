"""SSD-512, ResNet-34 (variant B) on the embedded scenes: few epochs, from scratch."""

_base_ = [
    "./_base_/ssd512-resnet34-b.py",
    "./_base_/scenes.py",
    "./_base_/schedule.py",
    "./_base_/runtime.py",
]

model = dict(bbox_head=dict(num_classes=10))
train_cfg = dict(max_epochs=12)
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=30),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=8)
