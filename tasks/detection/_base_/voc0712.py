"""Pascal VOC 2007 and 2012 trainval to train on, VOC 2007 test to test on, 11-point mAP."""

_base_ = ["./pipelines.py"]

data_root = "data/VOCdevkit/"
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ConcatDataset",
        ignore_keys=["dataset_type"],
        datasets=[
            dict(
                type="VOCDataset",
                data_root=data_root,
                ann_file="VOC2007/ImageSets/Main/trainval.txt",
                data_prefix=dict(sub_data_root="VOC2007/"),
                filter_cfg=dict(filter_empty_gt=True),
                pipeline={{_base_.train_pipeline}},
            ),
            dict(
                type="VOCDataset",
                data_root=data_root,
                ann_file="VOC2012/ImageSets/Main/trainval.txt",
                data_prefix=dict(sub_data_root="VOC2012/"),
                filter_cfg=dict(filter_empty_gt=True),
                pipeline={{_base_.train_pipeline}},
            ),
        ],
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
        type="VOCDataset",
        data_root=data_root,
        ann_file="VOC2007/ImageSets/Main/test.txt",
        data_prefix=dict(sub_data_root="VOC2007/"),
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    ),
)
test_evaluator = dict(type="VOCMetric", metric="mAP", eval_mode="11points")
