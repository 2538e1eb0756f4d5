"""The detector of a run, before any surgery, from its MMDetection config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aal_bench.config import Run
from aal_bench.detection import mmconfig
from aal_bench.detection.quiet import quiet
from aal_bench.errors import UserError
from aal_bench.hashing import sha256_file
from aal_bench.models import weights


def detector(run: Run) -> nn.Module:
    """The run's ``AttackedSingleStageDetector``, randomly initialised from torch's generator.

    Where the run names pretrained weights, its backbone has them.

    Raises:
        UserError: no such config, a size that the network cannot take, or weights of another
            backbone.
    """
    from mmdet.registry import MODELS

    config = mmconfig.network(run)
    model = MODELS.build(config)
    with quiet():  # it tells how it initialised every weight
        model.init_weights()
    if run.pretrained is not None:
        _pretrained(model.backbone, run)
    return model.requires_grad_()


def _pretrained(backbone: nn.Module, run: Run) -> None:
    assert run.pretrained is not None
    path = Path(run.pretrained.path)
    state = weights.read(path)
    if sha256_file(path) != run.pretrained.sha256:
        raise UserError(f"{path}: not the file that the run was begun with (sha256 differs)")
    own = backbone.state_dict()
    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    # A classifier's last layer has no place in a detector.
    given = {name: value for name, value in state.items() if name in own}
    missing = [name for name in own if name not in given and "num_batches_tracked" not in name]
    shapes = [name for name, value in given.items() if value.shape != own[name].shape]
    if missing or shapes:
        what = f"no {missing[0]}" if missing else f"{shapes[0]} of another shape"
        raise UserError(f"{path}: not weights of a ResNet-34 ({what})")
    backbone.load_state_dict(given, strict=False)


def check_classes(state: dict[str, Tensor], model: Any, path: Path, names: tuple[str, ...]) -> None:
    """Refuse weights whose head is for another number of classes than the class list has.

    Raises:
        UserError: names both numbers.
    """
    head = model.bbox_head
    key = "bbox_head.cls_convs.0.0.weight"
    if key not in state:
        return
    outputs = state[key].shape[0] / head.num_base_priors[0]
    if outputs != head.num_classes + 1:
        raise UserError(
            f"{path}: was trained on {outputs - 1:g} classes, the class list has"
            f" {len(names)}: {', '.join(names[:3])}...; give its own with --classes"
        )


def raw_outputs(model: Any, x: Tensor) -> Tensor:
    """Everything that the head says of images (B, 3, H, W) in [0, 1], flattened, (B, -1)."""
    from aal_bench.detection.pixels import PixelSpace

    inputs = PixelSpace(model.data_preprocessor).inputs(x)
    outputs = model.bbox_head(model.extract_feat(inputs))
    return torch.cat([level.flatten(1) for kind in outputs for level in kind], 1)
