"""Checkpoints written atomically: a killed process leaves the old one or the new one, never half."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aal_bench.errors import UserError
from aal_bench.files import replacing


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain values so that `load` reads them without unpickling objects."""
    with replacing(path) as handle:
        torch.save(state, handle)


def load(path: Path) -> dict[str, Any]:
    """Load with ``weights_only=True`` onto the CPU.

    Raises:
        UserError: not a checkpoint of ours, or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); delete it to start anew"
        ) from error


def rng_state() -> dict[str, Any]:
    """State of every generator that training draws from."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.array(keys, dtype=np.int64)), int(position)],
        "numpy_gauss": [int(has_gauss), float(gauss)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore `rng_state`."""
    torch.set_rng_state(state["torch"])
    name, keys, position = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, *state["numpy_gauss"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
