"""The sha256 of the pixels as fed, and of the labels: what tells two versions of a set apart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from aal_bench.data.on_disk import OnDisk
from aal_bench.data.splits import Split
from aal_bench.hashing import sha256_json
from aal_bench.paths import cache_folder

BATCH = 256
KEYS = {"pixels", "labels", "count"}


def fingerprint(split: Split) -> dict[str, str]:
    """Hash a split as the evaluation is fed it.

    ``pixels`` covers the line ``uint8 N,3,H,W`` and then the bytes in that order; ``labels`` the
    line ``int64 N`` and then little-endian integers. A split on disk is decoded once (minutes for
    ImageNet); the answer is kept in the cache until a file changes.

    Returns:
        ``{"pixels": hex, "labels": hex, "count": str(N)}``
    """
    if not isinstance(split, OnDisk):
        return compute(split)
    kept = cache_folder() / "fingerprints" / f"{sha256_json(_identity(split))}.json"
    known = _read(kept)
    if known is None:
        known = compute(split)
        _keep(kept, known)
    return known


def compute(split: Split) -> dict[str, str]:
    """Hash a split without looking into the cache; a batch at a time."""
    pixels = hashlib.sha256()
    stream = split.batches(
        torch.arange(len(split)), BATCH, augment="none", pad=0, seed=0, device="cpu"
    )
    for number, batch in enumerate(stream):
        # k / 255 in float32, times 255, is within 1e-5 of k: rounding gives back the byte.
        raw = (batch.x * 255).round().to(torch.uint8).numpy()
        if number == 0:
            shape = (len(split), *raw.shape[1:])
            pixels.update(f"uint8 {','.join(map(str, shape))}\n".encode())
        pixels.update(np.ascontiguousarray(raw).data)
    labels = hashlib.sha256(f"int64 {len(split)}\n".encode())
    labels.update(split.labels.numpy().astype("<i8").tobytes())
    return {
        "pixels": pixels.hexdigest(),
        "labels": labels.hexdigest(),
        "count": str(len(split)),
    }


def _identity(split: OnDisk) -> dict[str, object]:
    """Everything that decides the pixels: files, positions, sizes and the decoders' versions."""
    return {
        "files": split.source.stamp(),
        "positions": hashlib.sha256(split.origin.numpy().astype("<i8").tobytes()).hexdigest(),
        "labels": hashlib.sha256(split.labels.numpy().astype("<i8").tobytes()).hexdigest(),
        "size": split.size,
        "resize": split.resize,
        "versions": [version("pillow"), version("torchvision")],
    }


def _read(path: Path) -> dict[str, str] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and set(known) == KEYS else None


def _keep(path: Path, known: dict[str, str]) -> None:
    """Write atomically; a cache that cannot be written costs time, not correctness."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(known), encoding="utf-8")
        partial.replace(path)
