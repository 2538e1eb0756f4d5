"""Relation networks (Sung et al. 2018, arXiv 1711.06025)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from aal_bench.methods.episodes import EpisodicMethod

WIDTH, HIDDEN = 64, 8
"""Channels of the relation module's two blocks, and units between its two linear layers."""


class RelationNet(EpisodicMethod):
    """min_W of the mean of (r(f(q), sum f(s_k)) - [q is of class k])^2, r a learnt relation.

    The official code (floodsung/LearningToCompare_FSL) compares 19x19 maps of a network of its
    own, which pools twice; here it is the last map of the run's network, whatever its size. That
    code also leaves batch norm in training mode in the test, on all queries together; here each
    query is answered alone.
    """

    train_defaults: ClassVar[dict[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "batch_size": 1,
        "grad_clip": 0.5,
        "schedule": "step",
        "milestones": [0.2, 0.4, 0.6, 0.8],
        "decay": 0.5,
    }

    @property
    def head(self) -> str:
        return "relation"

    def build(self, model: nn.Module) -> nn.Module:
        """Add the relation module, as ``model.relation``."""
        model.relation = RelationModule(*model.feature_shape)  # pyright: ignore
        return model


class RelationModule(nn.Module):
    """Pairs of feature maps (B, 2C, h, w), the class's before the query's -> scores (B,).

    Two blocks of conv 3x3, batch norm, ReLU and max-pool, and two linear layers. The sigmoid that
    follows is left to the loss. Maps are padded, and pooled where both sides are 2 or more.
    Initialised as the official code does.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs in (2 * channels, WIDTH):
            blocks += [nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
            if min(height, width) >= 2:
                blocks.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.blocks = nn.Sequential(*blocks)
        self.compare = nn.Sequential(
            nn.Flatten(), nn.Linear(WIDTH * height * width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.ones_(module.bias)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.compare(self.blocks(pairs))[:, 0]
