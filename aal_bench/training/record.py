"""What training says about itself: a line of progress, the best epoch, the memory it took."""

from __future__ import annotations

from typing import Any

import torch


def headline(row: dict[str, Any], epochs: int) -> str:
    """One epoch's row of ``metrics.jsonl`` as the text beside the progress bar."""
    text = f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}"
    if "val_clean" in row:
        text += f"  val clean {row['val_clean']:.1%}"
    if "val_pgd" in row:
        text += f"  val PGD {row['val_pgd']:.1%}"
    if "val_map" in row:
        text += f"  val mAP {row['val_map']:.1%}"
    return text


def selected_by(row: dict[str, Any]) -> str:
    """What a validated epoch is judged by: mAP, else PGD accuracy, or clean without an attack."""
    return next(name for name in ("val_map", "val_pgd", "val_clean") if name in row)


def best_epoch(rows: list[dict[str, Any]]) -> int | None:
    """The first epoch of highest held-out accuracy; None without a held-out part."""
    validated = [row for row in rows if "val_clean" in row or "val_map" in row]
    return max(validated, key=lambda row: row[selected_by(row)])["epoch"] if validated else None


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device for CUDA, of the process otherwise; since the process started."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
