"""Digits in textured scenes; `python -m aal_bench.data.scenes data/scenes` makes the folder."""

_base_ = ["./pipelines.py"]

data_root = "data/scenes/"
metainfo = dict(classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"))
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="XMLDataset",
        metainfo=metainfo,
        data_root=data_root,
        ann_file="ImageSets/Main/train.txt",
        data_prefix=dict(sub_data_root=""),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline={{_base_.train_pipeline}},
    ),
)
val_dataloader = None
val_evaluator = None
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="XMLDataset",
        metainfo=metainfo,
        data_root=data_root,
        ann_file="ImageSets/Main/test.txt",
        data_prefix=dict(sub_data_root=""),
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    ),
)
test_evaluator = dict(type="VOCMetric", metric="mAP", eval_mode="11points")
