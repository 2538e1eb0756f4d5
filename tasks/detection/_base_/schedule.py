"""24 epochs of SGD at 3e-3 for a batch of 32, as the AAL paper trains; warm-up and clipping ours.

The rate is high for SSD: it needs the batch norms, a linear warm-up and clipped gradients.
"""

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=24, val_interval=1)
val_cfg = None
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=3e-3, momentum=0.9, weight_decay=5e-4),
    clip_grad=dict(max_norm=10.0, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1),
]
auto_scale_lr = dict(enable=True, base_batch_size=32)
