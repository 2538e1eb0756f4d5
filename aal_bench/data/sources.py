"""What a reader hands over: encoded images that are decoded when asked for, or pixels at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

Origin = Literal["embedded", "torchvision", "parquet", "folders"]


class Source(Protocol):
    """One split as encoded image files, in a fixed order; picklable, for loader workers."""

    labels: np.ndarray
    """int64, shape (N,)."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """Return the encoded image `i`; OSError where it cannot be read."""
        ...

    def where(self, i: int) -> str:
        """Name image `i` the way that a user finds it: a file, or a shard and a row."""
        ...

    def stamp(self) -> list[list[str]]:
        """Name, size and time of every file behind the split: equal only while none changed."""
        ...


@dataclass(frozen=True)
class Pixels:
    """One split as decoded pixels."""

    images: np.ndarray
    """uint8, shape (N, 3, H, W)."""
    labels: np.ndarray
    """int64, shape (N,)."""


@dataclass(frozen=True)
class Found:
    """Both splits of a set, as one reader found them."""

    train: Source | Pixels
    test: Source | Pixels
    class_names: tuple[str, ...]
    source: Origin
    official: bool = False
    """Read by the toolkit's own loader with its checksums."""


def stamp_file(path: Path) -> list[str]:
    """Return name, size and modification time (ns) of one file, for `Source.stamp`."""
    status = path.stat()
    return [path.name, str(status.st_size), str(status.st_mtime_ns)]
