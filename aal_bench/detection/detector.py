"""MMDetection's single-stage detector with an attack inside its training loss."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from torch import Tensor

from aal_bench.detection.adversarial import Adversarial
from aal_bench.detection.armed import armed
from aal_bench.detection.wrapped import bare


@MODELS.register_module()
class AttackedSingleStageDetector(SingleStageDetector):
    """A ``SingleStageDetector`` that trains with a method of ours, and is one in all else.

    The attack is made where the loss is taken, so that it works under data-parallel training, which
    calls ``forward(mode="loss")`` and never ``train_step``. Without `attack` it trains as
    MMDetection's own.

    Args:
        attack: ``method``, ``eps``, ``step`` and what else `armed` takes; None: none.
        **config: of ``SingleStageDetector``.
    """

    def __init__(self, attack: dict[str, Any] | None = None, **config: Any) -> None:
        super().__init__(**config)
        self.adversarial: Adversarial | None = None
        if attack is not None:
            self.init_weights()  # before the surgery, as everywhere else: the same draws
            self.adversarial = armed(self, **attack)
            self.to(memory_format=self.adversarial.memory_format)

    @property
    def gate_sites(self) -> dict[str, str]:
        """Where an attention gate goes: after conv1, batch norm and ReLU, or after conv1."""
        if not hasattr(self.backbone, "maxpool"):
            return {}
        return {"post_bn_relu": "backbone.maxpool", "post_conv1": "backbone.bn1"}

    @property
    def gate_channels(self) -> int:
        """Channels of the feature map there."""
        return self.backbone.conv1.out_channels

    def init_weights(self) -> None:
        """Initialise once; a second call (a Runner's) leaves the weights as they are."""
        if not self.is_init:
            super().init_weights()

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> dict[str, Any]:
        """Losses of a batch, under attack while training with a method."""
        if self.adversarial is None or not self.training:
            return super().loss(batch_inputs, batch_data_samples)  # pyright: ignore
        return self.adversarial.loss(self, batch_inputs, batch_data_samples)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[Any], rescale: bool = True
    ) -> list[Any]:
        """Detect; also where each part has a data-parallel wrapper, which has no ``predict``."""
        features = self.extract_feat(batch_inputs)
        found = bare(self.bbox_head).predict(features, batch_data_samples, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, found)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """One training step; a method that owns the optimiser's step takes it here."""
        if self.adversarial is None or not self.adversarial.owns_step:
            return super().train_step(data, optim_wrapper)
        data = self.data_preprocessor(data, True)
        return self.adversarial.step(self, data["inputs"], data["data_samples"], optim_wrapper)
