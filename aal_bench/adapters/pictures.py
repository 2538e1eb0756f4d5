"""What the pictures of images and of episodes share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aal_bench import figures
from aal_bench.aal.attention import has_gate
from aal_bench.aal.kernels import upsample
from aal_bench.config import Run
from aal_bench.data.splits import Images
from aal_bench.methods.base import Batch
from aal_bench.results import method_name

if TYPE_CHECKING:
    from aal_bench.adapters.base import Adapter


def identity(run: Run) -> str:
    """What a picture is of, also when it leaves its report."""
    mark = "SMOKE · " if run.smoke else ""
    return f"{mark}{run.task.id} · {method_name(run)} · {run.model.name} · seed {run.seed}"


def metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; none where nothing was trained."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_selective(method: Any, model: nn.Module) -> bool:
    """Whether `method` attacks `model` inside a mask, which `selective` can show."""
    control = getattr(method.options, "control", None)
    return has_gate(model) and hasattr(method, "association") and control != "no_attack"


def selective(
    adapter: Adapter, method: Any, model: nn.Module, images: Images, path: Path, title: str
) -> None:
    """The AAL paper's Fig. 3 from the method's own attack on these images, for the eye only."""
    x, lr = images.x, adapter.run.task.train.lr
    batch = Batch(x=x, targets=images.y, idx=torch.arange(len(x)), progress=1.0, lr=lr)
    torch.manual_seed(0)
    x_adv = method.attack(model, batch, adapter.objective(model)).detach()
    found = method.association
    size = (x.shape[-2], x.shape[-1])
    arrays = (x, upsample(found.M, size), upsample(found.Ma, size), found.K, x_adv - x, x_adv)
    figures.selective_attack(
        *(value.detach().float().cpu().numpy() for value in arrays),
        path=path,
        eps=adapter.run.task.threat.radius,
        title=title,
    )
