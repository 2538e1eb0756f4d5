"""Weights in and out: our self-describing safetensors, and whatever others saved, never unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.errors import UserError
from aal_bench.files import replacing

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights", "ema_state_dict")
PREFIXES = ("module.", "_orig_mod.")
METADATA = "aal_bench"


class Described(NamedTuple):
    """What ``model.safetensors`` says of itself."""

    model: str
    classes: int
    size: int
    normalisation: dict[str, Any]
    method: str
    options: dict[str, Any]


def save(path: Path, weights: dict[str, Tensor], described: Described) -> None:
    """Write weights with the description that `evaluate`, `audit` and `verify` rebuild them from."""
    from safetensors.torch import save as serialise

    metadata = {METADATA: json.dumps(described._asdict(), sort_keys=True)}
    with replacing(path) as handle:
        handle.write(serialise(weights, metadata=metadata))


def describe(path: Path) -> Described | None:
    """The description inside a safetensors file of ours; None for a foreign file."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            text = (handle.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError):
        return None
    return None if text is None else Described(**json.loads(text))


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU: safetensors, or torch files with ``weights_only=True``.

    ``state_dict``-like wrappers and ``module.`` prefixes are taken off.

    Raises:
        UserError: no such file, an HTML page, a pickle that wants to run code, or no state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    with path.open("rb") as handle:
        head = handle.read(512)
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path}: an HTML page, not weights (a download link's quota or login page?);"
            " download it again"
        )
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds objects beyond tensors, which would run code when loaded; save its"
            " state_dict() with torch.save or as safetensors"
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint: {str(error).splitlines()[0]}") from None
    return _unwrap(loaded, path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from None


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, dict) and not _is_state(loaded):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict) or not _is_state(loaded):
        raise UserError(f"{path}: holds no state dict (looked for {', '.join(WRAPPERS)})")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in loaded):
            loaded = {key.removeprefix(prefix): value for key, value in loaded.items()}
    return loaded


def _is_state(tree: dict[Any, Any]) -> bool:
    return bool(tree) and all(isinstance(value, Tensor) for value in tree.values())


def load_into(model: nn.Module, weights: dict[str, Tensor], path: Path, name: str) -> None:
    """Load a state dict of a whole `Classifier`, or of the network inside it.

    Raises:
        UserError: another architecture; the first keys that do not match are named.
    """
    own = model.state_dict()
    if not set(weights) & set(own):
        weights = {f"network.{key}": value for key, value in weights.items()}
    missing = sorted(set(own) - set(weights) - _derived(own))
    extra = sorted(set(weights) - set(own))
    shapes = [
        f"{key} {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model"
        for key, value in weights.items()
        if key in own and own[key].shape != value.shape
    ]
    if missing or extra or shapes:
        parts = [
            f"the model has {_shown(missing)}" if missing else "",
            f"the file has {_shown(extra)}" if extra else "",
            f"shapes differ: {shapes[0]}" if shapes else "",
        ]
        raise UserError(
            f"{path}: not weights of '{name}': {'; '.join(part for part in parts if part)}"
        )
    model.load_state_dict(weights, strict=False)


def _derived(own: dict[str, Tensor]) -> set[str]:
    # The normalisation is given, not learnt: a foreign file need not carry it.
    return {key for key in own if key.startswith("normalise.")}


def _shown(keys: list[str]) -> str:
    listed = ", ".join(key.removeprefix("network.") for key in keys[:2])
    return listed + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
