"""The adversarials of fooled images: they make the non-robust part of a claim replayable.

One per image, from the first stage under which it fell; float32, because rounding to 8 bits would
change verdicts. Written in parts, batch by batch, and merged when the evaluation is complete.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from aal_bench.evidence import Evidence
from aal_bench.files import replacing


class Adversarials:
    """Parts under ``adversarials/`` of a run's folder, merged into ``adversarials.npz``."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.parts, self.merged = folder / "adversarials", folder / "adversarials.npz"
        self._kept = np.zeros(rows, bool)
        for part in self._sorted():
            with np.load(part, allow_pickle=False) as arrays:
                self._kept[arrays["row"]] = True

    def _sorted(self) -> list[Path]:
        return sorted(self.parts.glob("*.npz")) if self.parts.is_dir() else []

    def keep(self, stage: str, rows: np.ndarray, x_adv: np.ndarray) -> None:
        """Keep the adversarials (b, 3, H, W) of rows that have none yet."""
        fresh = ~self._kept[rows]
        if not fresh.any():
            return
        with replacing(self.parts / f"{len(self._sorted()):05}-{stage}.npz") as handle:
            np.savez(handle, row=rows[fresh], x=x_adv[fresh], stage=np.array(stage))
        self._kept[rows[fresh]] = True

    def merge(self, evidence: Evidence) -> int:
        """Write ``adversarials.npz`` (index, stage, x) in index order; returns their number."""
        if self.merged.exists():
            # It is written once, when everything is there: parts beside it are a killed clean-up's.
            shutil.rmtree(self.parts, ignore_errors=True)
            with np.load(self.merged, allow_pickle=False) as arrays:
                return len(arrays["index"])
        rows, stages, images = [], [], []
        for part in self._sorted():
            with np.load(part, allow_pickle=False) as arrays:
                rows.append(arrays["row"])
                stages.append(np.full(len(arrays["row"]), str(arrays["stage"])))
                images.append(arrays["x"])
        if not rows:
            return 0
        row = np.concatenate(rows)
        order = np.argsort(row)
        with replacing(self.merged) as handle:
            np.savez(
                handle,
                index=evidence.index[row][order],
                stage=np.concatenate(stages)[order],
                x=np.concatenate(images)[order],
            )
        shutil.rmtree(self.parts)  # a killed write's temporary file included
        return len(row)
