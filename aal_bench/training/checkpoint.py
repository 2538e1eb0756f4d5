"""Checkpoints written atomically: a killed process leaves the old one or the new one, whole."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aal_bench.errors import UserError
from aal_bench.files import replacing

FORMAT = 2
"""Raised when what training saves changes, so that an old file is refused, not misread."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain values so that `load` reads them without unpickling objects.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file stays.
    """
    with replacing(path) as handle:
        try:
            torch.save({**state, "format": FORMAT}, handle)
        except RuntimeError as error:
            # torch's writer hides a failed write (a full disk) behind an error of its own.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path: Path) -> dict[str, Any]:
    """Load with ``weights_only=True`` onto the CPU, after every checksum in the file held.

    Raises:
        UserError: not a checkpoint of ours, or damaged.
    """
    try:
        # torch does not look at the checksums: one flipped bit would be trained on in silence.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(OSError, EOFError, RuntimeError, ValueError, KeyError, NotImplementedError),
        *(zipfile.BadZipFile, pickle.UnpicklingError),
    ) as error:
        raise _unreadable(path, type(error).__name__) from error
    if damaged:
        raise _unreadable(path, f"{damaged} is damaged")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise _unreadable(path, "written by something else")
    return state


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"{path}: not a readable checkpoint ({why}); delete it to start anew")


def clear_leftovers(path: Path) -> None:
    """Delete the temporary files that processes killed while writing `path` left beside it."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of every generator that training on `device` may draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.array(keys, dtype=np.int64)), int(position)],
        "numpy_gauss": [int(has_gauss), float(gauss)],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore `rng_state`; a run continued on another kind of device draws other numbers there."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    name, keys, position = state["numpy"]
    legacy = (name, keys.numpy().astype(np.uint32), position, *state["numpy_gauss"])
    np.random.set_state(legacy)  # noqa: NPY002  a method's own code may draw from it
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
