"""SSD on ResNet-34, built by mmdetection, trained a step, attacked and made to predict."""

import pytest
import torch
from torchvision.ops import box_iou

from aal_bench.toolkits import mmcv_ops, mmdet_ssd

SIDE = 256  # SSD-512's layout, one level less
CHANNELS = (128, 256, 512, 512, 256, 256)
IOU_THRESHOLD = 0.45

MODEL = {
    "type": "SingleStageDetector",
    "data_preprocessor": {"type": "DetDataPreprocessor", "mean": [0] * 3, "std": [255] * 3},
    "backbone": {"type": "ResNet", "depth": 34, "num_stages": 4, "out_indices": (1, 2, 3)},
    "neck": {
        "type": "SSDNeck",
        "in_channels": CHANNELS[:3],
        "out_channels": CHANNELS,
        "level_strides": (2, 2, 1),
        "level_paddings": (1, 1, 1),
        "last_kernel_size": 4,
        "l2_norm_scale": None,
        "norm_cfg": {"type": "BN"},
    },
    "bbox_head": {
        "type": "SSDHead",
        "num_classes": 20,
        "in_channels": CHANNELS,
        "anchor_generator": {
            "type": "SSDAnchorGenerator",
            "scale_major": False,
            "input_size": SIDE,
            "min_sizes": [20, 40, 77, 115, 154, 192],
            "max_sizes": [40, 77, 115, 154, 192, 230],
            "strides": [8, 16, 32, 64, 128, 256],
            "ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
    },
    "train_cfg": {
        "assigner": {
            "type": "MaxIoUAssigner",
            "pos_iou_thr": 0.5,
            "neg_iou_thr": 0.5,
            "min_pos_iou": 0.0,
            "ignore_iof_thr": -1,
            "gt_max_assign_all": False,
        },
        "sampler": {"type": "PseudoSampler"},
        "smoothl1_beta": 1.0,
        "allowed_border": -1,
        "pos_weight": -1,
        "neg_pos_ratio": 3,
    },
    "test_cfg": {
        "nms_pre": 100,
        "nms": {"type": "nms", "iou_threshold": IOU_THRESHOLD},
        "min_bbox_size": 0,
        "score_thr": 0.02,
        "max_per_img": 50,
    },
}


@pytest.fixture(scope="module")
def registry():
    mmcv_ops.repair()
    mmdet_ssd.repair()
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")  # as mmengine's Runner does
    return MODELS


@pytest.fixture(scope="module")
def detector(registry):
    from mmengine.config import Config  # plain dicts fail in mmdet's post-processing

    torch.manual_seed(0)
    return registry.build(Config(MODEL))


@pytest.fixture
def batch(detector):
    """Two images of noise with a box each, through mmdetection's preprocessor: x in [0,1]."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    def sample(box, label):
        meta = {"img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE), "scale_factor": (1.0, 1.0)}
        truth = InstanceData(bboxes=torch.tensor([box]), labels=torch.tensor([label]))
        return DetDataSample(metainfo=meta, gt_instances=truth)

    noise = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=noise)
    samples = [sample([30.0, 40.0, 120.0, 150.0], 3), sample([100.0, 20.0, 200.0, 90.0], 7)]
    data = detector.data_preprocessor({"inputs": list(pixels), "data_samples": samples})
    return data["inputs"], data["data_samples"]


def summed(losses):
    return sum(part.sum() for group in losses.values() for part in group)


def test_training_step_lowers_the_loss(detector, batch):
    images, samples = batch
    detector.train()  # batch norm on the last level's 1x1 map needs these two images
    first = summed(detector.loss(images, samples))
    first.backward()
    assert torch.isfinite(first)
    with torch.no_grad():
        gradients = [p.grad for p in detector.parameters() if p.grad is not None]
        length = torch.stack([g.norm() for g in gradients]).norm()
        for parameter in detector.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad / length
        assert summed(detector.loss(images, samples)) < first
    detector.zero_grad(set_to_none=True)


def test_gradient_of_the_loss_reaches_the_image(detector, batch):
    images, samples = batch
    """The derivative along a direction is what a finite difference says (float64, eval mode)."""
    detector.eval().double()
    try:
        x = images.double().requires_grad_()
        (gradient,) = torch.autograd.grad(summed(detector.loss(x, samples)), x)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
        direction = gradient / gradient.norm()
        step = 1e-5
        with torch.no_grad():
            above = summed(detector.loss(x + step * direction, samples))
            below = summed(detector.loss(x - step * direction, samples))
        slope = (above - below) / (2 * step)
        torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-3, atol=0)
    finally:
        detector.float()


def test_prediction_takes_the_softmax_of_the_head(detector, batch):
    images, samples = batch
    detector.eval()
    with torch.no_grad():
        predictions = detector.predict(images, samples)
        scores, _ = detector(images, mode="tensor")
    assert len(predictions) == 2
    for index, sample in enumerate(predictions):
        found = sample.pred_instances
        assert 0 < len(found) <= 50
        # every score is a class's share in the softmax of some anchor, background left out
        logits = torch.cat([level[index].permute(1, 2, 0).reshape(-1, 21) for level in scores])
        shares = logits.softmax(-1)[:, :-1]
        for score, label in zip(found.scores[:5], found.labels[:5], strict=True):
            assert (shares[:, label] - score).abs().min() < 1e-6
        assert found.bboxes.min() >= 0
        assert found.bboxes.max() <= SIDE
        overlap = box_iou(found.bboxes, found.bboxes).fill_diagonal_(0)
        same = found.labels[:, None] == found.labels
        assert overlap[same].max() <= IOU_THRESHOLD + 1e-6


def test_fault_is_real_and_repair_steps_aside_when_upstream_mends_it(registry, monkeypatch):
    from mmdet.models.dense_heads import SSDHead as upstream

    repaired = registry.get("SSDHead")
    assert issubclass(repaired, upstream)
    assert not mmdet_ssd.fault_present()
    mmdet_ssd.repair()
    assert registry.get("SSDHead") is repaired  # a second repair wraps nothing

    monkeypatch.setitem(registry.module_dict, "SSDHead", upstream)
    assert mmdet_ssd.fault_present()

    class Mended(upstream):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.loss_cls = torch.nn.CrossEntropyLoss()

    monkeypatch.setitem(registry.module_dict, "SSDHead", Mended)
    assert not mmdet_ssd.fault_present()
    mmdet_ssd.repair()
    assert registry.get("SSDHead") is Mended
