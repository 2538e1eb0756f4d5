"""Adversarial images that somebody stored: read as the untrusted file that it is, and replayed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from aal_bench import npz
from aal_bench.adapters.attack_stage import exact_arithmetic
from aal_bench.errors import RunFailed, UserError
from aal_bench.evidence import Evidence
from aal_bench.verification.rebuild import Rebuilt

WHAT = "file of adversarials"
SLACK = 1 << 20
"""Bytes of a file beyond its images."""
LONGEST = 64
"""Characters of a stage's name."""


class Stored(NamedTuple):
    """The images of a file, in the order of the evidence's rows."""

    rows: NDArray[np.intp]
    """(n,) positions in the evidence, ascending, distinct."""
    x: NDArray[np.float32]
    """(n, 3, H, W), finite."""
    stage: NDArray[np.str_] | None
    """(n,) the stage under which each image fell, where the file says so."""
    place: NDArray[np.intp]
    """(n,) rows of the file that the images have come from."""

    def __len__(self) -> int:
        return len(self.rows)


class Replay(NamedTuple):
    """What one forward pass and a look at the original say of each stored image, all (n,)."""

    pred: NDArray[np.int64]
    norm: NDArray[np.float64]
    """|x' - x| in pixel units."""
    over: NDArray[np.float64]
    """By how much `norm` exceeds eps; 0 inside the ball."""
    outside: NDArray[np.float64]
    """By how much any pixel leaves [0, 1]; 0 inside the box."""


def read(path: Path, evidence: Evidence, size: int) -> Stored:
    """Read ``index``, ``x`` and perhaps ``stage`` from an npz, without unpickling.

    Args:
        path: of the file, whoever wrote it.
        evidence: the images that may occur, by their index in the test split.
        size: side of the images in pixels.

    Raises:
        UserError: it is no such file; one line that says which array or image is wrong.
    """
    if path.is_file() and not path.stat().st_size:
        raise UserError(f"{path}: is empty (0 bytes), no {WHAT}")
    pixels = 3 * size * size
    arrays = npz.read(path, len(evidence) * (4 * pixels + 8 + 4 * LONGEST) + SLACK, WHAT)
    index, x, stage = arrays.get("index"), arrays.get("x"), arrays.get("stage")
    if index is None or x is None or arrays.keys() - {"index", "x", "stage"}:
        raise UserError(
            f"{path}: has {', '.join(sorted(arrays)) or 'no array'}; adversarials are index and x"
            " (and stage)"
        )
    if index.shape == (0,):
        raise UserError(f"{path}: holds no images: its index is empty")
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise UserError(f"{path}: index is {index.dtype} {index.shape}, not whole numbers (n,)")
    if x.dtype != np.float32 or x.shape != (len(index), 3, size, size):
        cast = ': x.astype("float32")' if x.dtype.kind == "f" and x.dtype != np.float32 else ""
        raise UserError(
            f"{path}: x is {x.dtype} {x.shape}, not float32 {(len(index), 3, size, size)}{cast}"
        )
    if stage is not None and (stage.shape != index.shape or stage.dtype.kind != "U"):
        raise UserError(f"{path}: stage is {stage.dtype} {stage.shape}, not names {index.shape}")
    unknown = ~np.isin(index, evidence.index)
    if unknown.any():
        raise UserError(f"{path}: index {index[unknown][0]} is none of the test images")
    held, counts = np.unique(index, return_counts=True)
    if len(held) < len(index):
        raise UserError(f"{path}: index {held[counts > 1][0]} occurs twice")
    bad = ~np.isfinite(x).reshape(len(x), -1).all(1)
    if bad.any():
        raise UserError(f"{path}: image {index[bad][0]} (row {bad.argmax()}) is not finite")
    by_index = np.argsort(evidence.index)
    rows = by_index[np.searchsorted(evidence.index[by_index], index.astype(np.int64))]
    order = np.argsort(rows)
    named = None if stage is None else stage[order]
    return Stored(rows[order], np.ascontiguousarray(x[order]), named, order)


def replay(stored: Stored, rebuilt: Rebuilt) -> Replay:
    """Predict every stored image once, in the task's batches, fp32, and measure it.

    Raises:
        RunFailed: the model's logits are not finite.
    """
    task, batch = rebuilt.run.task, rebuilt.run.task.evaluation.batch_size
    parts: list[tuple[torch.Tensor, ...]] = []
    originals = rebuilt.adapter.test.batches(
        torch.from_numpy(stored.rows),
        batch,
        augment="none",
        pad=0,
        seed=0,
        device=rebuilt.device,
    )
    with exact_arithmetic(), torch.no_grad():
        for original, given in zip(originals, torch.from_numpy(stored.x).split(batch), strict=True):
            x = given.to(rebuilt.device)
            logits = rebuilt.model(x)
            if not bool(torch.isfinite(logits).all()):
                raise RunFailed("the model's logits on the stored images are not finite")
            norm = task.threat.distance(x, original.x)
            flat = x.flatten(1)
            outside = (-flat).amax(1).maximum((flat - 1).amax(1)).clamp_min(0)
            over = (norm - task.threat.radius).clamp_min(0)
            parts.append((logits.argmax(1), norm, over, outside.double()))
    return Replay(*(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)))
