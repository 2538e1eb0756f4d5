"""The sha256 of a detection test set: its pixels as fed, and its boxes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from aal_bench.data.sources import stamp_file
from aal_bench.errors import UserError
from aal_bench.files import write_text
from aal_bench.hashing import sha256_json
from aal_bench.paths import cache_folder
from aal_bench.progress import track

MANY = 500
"""Images from which the pass over them shows its progress."""
AHEAD = 64
"""Images decoded while those before are hashed: 50 MB at 512 pixels."""
DECODERS = ("onedl-mmcv", "opencv-python-headless", "numpy")


def fingerprint(dataset: Any) -> dict[str, str]:
    """Hash a data set as the evaluation is fed it.

    ``pixels`` covers the line ``uint8 N,3,H,W`` and then the RGB bytes in that order; it is kept in
    the cache until a file, the pipeline or a decoder changes. ``labels`` covers the canonical JSON
    of a list with, for each image, ``id``, ``size`` (width, height), ``boxes`` (x1, y1, x2, y2 in
    its own pixels), ``labels`` and ``ignore``.

    Args:
        dataset: of MMDetection, with a pipeline that draws nothing at random and feeds one size.

    Returns:
        ``{"pixels": hex, "labels": hex, "count": str(N)}``

    Raises:
        ValueError: images of several sizes, or not of bytes.
    """
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return {
        "pixels": _pixels(dataset, infos),
        "labels": sha256_json([_labels(info) for info in infos]),
        "count": str(len(infos)),
    }


def _labels(info: dict[str, Any]) -> dict[str, Any]:
    objects = info["instances"]
    return {
        "id": info["img_id"],
        "size": [info["width"], info["height"]],
        # VOC's are whole numbers and COCO's are not: one number, one text.
        "boxes": [[float(side) for side in one["bbox"]] for one in objects],
        "labels": [int(one["bbox_label"]) for one in objects],
        "ignore": [int(one["ignore_flag"]) for one in objects],
    }


def _pixels(dataset: Any, infos: list[dict[str, Any]]) -> str:
    """Hash the pixels, or find in the cache what they were the last time."""
    identity = {
        "files": [stamp_file(Path(info["img_path"])) for info in infos],
        "pipeline": repr(dataset.pipeline),
        "versions": [_version(name) for name in DECODERS],
    }
    kept = cache_folder() / "fingerprints" / f"detection-{sha256_json(identity)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(kept.read_text(encoding="utf-8"))["pixels"])
    pixels = compute(dataset)
    with contextlib.suppress(UserError):  # a cache that cannot be written costs time only
        write_text(kept, json.dumps({"pixels": pixels}))
    return pixels


def _version(name: str) -> str | None:
    with contextlib.suppress(ImportError):
        return version(name)
    return None


def compute(dataset: Any) -> str:
    """Hash the pixels of a data set without looking into the cache, on all cores."""
    total = len(dataset)
    digest = hashlib.sha256()
    shape: tuple[int, ...] | None = None
    with track("read", total) if total > MANY else nullcontext() as progress:
        for pixels in _decoded(dataset, total):
            if shape is None:
                shape = pixels.shape
                digest.update(f"uint8 {total},{','.join(map(str, shape))}\n".encode())
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise ValueError(f"images of {shape} uint8, but also {pixels.shape} {pixels.dtype}")
            digest.update(pixels.data)
            if progress is not None:
                progress.advance()
    return digest.hexdigest()


def _decoded(dataset: Any, total: int) -> Iterator[np.ndarray]:
    def decode(i: int) -> np.ndarray:
        # OpenCV's order of channels is BGR.
        return np.ascontiguousarray(dataset[i]["inputs"].numpy()[::-1])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, total, AHEAD):
            yield from pool.map(decode, range(start, min(start + AHEAD, total)))
