"""Weights in and out: our self-describing safetensors, and what others saved, never unpickled."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aal_bench.errors import UserError
from aal_bench.files import replacing

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights", "ema_state_dict")
PREFIXES = ("module.", "_orig_mod.")
METADATA = "aal_bench"
DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What ``torch.load`` raises on files that are cut short, overwritten or no checkpoint at all."""


class Described(NamedTuple):
    """What ``model.safetensors`` says of itself."""

    model: str
    classes: int
    size: int
    normalisation: dict[str, Any]
    method: str
    options: dict[str, Any]
    names: tuple[str, ...] = ()
    """Class names of a detector, in order."""
    source: str | None = None
    """sha256 of a detector's MMDetection config: its priors are in no weight."""


def save(path: Path, weights: dict[str, Tensor], described: Described) -> None:
    """Write weights with the description from which `evaluate` and `verify` rebuild the model."""
    from safetensors.torch import save as serialise

    optional = ("names", "source")
    told = {key: v for key, v in described._asdict().items() if key not in optional or v}
    metadata = {METADATA: json.dumps(told, sort_keys=True)}
    with replacing(path) as handle:
        handle.write(serialise(weights, metadata=metadata))


def describe(path: Path) -> Described | None:
    """The description inside a safetensors file of ours; None for a foreign file.

    Raises:
        UserError: a description that this version does not understand.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            text = (handle.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError):
        return None
    if text is None:
        return None
    try:
        told = json.loads(text)
        return Described(**{**told, "names": tuple(told.get("names", ()))})
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: describes itself in a way that this version does not know ({error})"
        ) from None


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU: safetensors, or torch files with ``weights_only=True``.

    ``state_dict``-like wrappers and ``module.`` prefixes are taken off.

    Raises:
        UserError: no such file, an HTML page, a pickle that wants to run code, or no state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with path.open("rb") as handle:
            head = handle.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!|html|head|body|\?xml)", head, re.IGNORECASE):
        raise UserError(
            f"{path}: an HTML page, not weights (a download link's quota or login page?);"
            " download it again"
        )
    # A safetensors file opens with the length of its JSON header, whatever its name.
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return _unwrap(_safetensors(path), path)
    return _unwrap(_torch(path), path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from None


def _torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Of unknown protocols and TorchScript: what follows is an error that says more.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise UserError(f"{path}: not a checkpoint of torch or safetensors") from None
        raise UserError(
            f"{path}: holds {named[1]}, which would run code when loaded, not only tensors; save"
            " the model's state_dict() with torch.save or as safetensors"
        ) from None
    except (OSError, *DAMAGED) as error:
        reason = str(error).partition("\n")[0]
        # Some of these say no more than the byte that they stumbled over.
        said = f"{type(error).__name__}: {reason[:160]}" if " " in reason else type(error).__name__
        raise UserError(f"{path}: damaged, or not a checkpoint of torch ({said})") from None


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, dict) and not _is_state(loaded):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict) or not _is_state(loaded):
        raise UserError(f"{path}: holds no state dict (looked for {', '.join(WRAPPERS)})")
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in loaded)), None):
        loaded = {key.removeprefix(prefix): value for key, value in loaded.items()}
    return loaded


def _is_state(tree: dict[Any, Any]) -> bool:
    return bool(tree) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tree.items()
    )


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
        f"{_bare(key)} {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model"
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


def checkpoint_block(model: nn.Module) -> dict[str, Any]:
    """``{sha256, bytes, format}`` of the safetensors file that a model without one would make."""
    from safetensors.torch import save as serialise

    state = {
        name: value.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }
    content = serialise(state)
    digest = hashlib.sha256(content).hexdigest()
    return {"sha256": digest, "bytes": len(content), "format": "safetensors"}


def _derived(own: dict[str, Tensor]) -> set[str]:
    # The normalisation is given, not learnt, and counters of training batches do not act at test:
    # a foreign file need not carry them.
    return {
        key for key in own if key.startswith("normalise.") or key.endswith(".num_batches_tracked")
    }


def _shown(keys: list[str]) -> str:
    listed = ", ".join(_bare(key) for key in keys[:2])
    return listed + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _bare(key: str) -> str:
    return key.removeprefix("network.")
