"""Where the data folders and the records are: found from the package, never from the cwd."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """``tasks`` or ``leaderboards``: beside the package in a checkout, inside it in a wheel."""
    beside = PACKAGE.parent / name
    return beside if (PACKAGE.parent / "pyproject.toml").is_file() else PACKAGE / "_data" / name


def cache_folder() -> Path:
    """Where downloaded sets and weights are kept: ``$AAL_BENCH_CACHE``, else the user's cache."""
    chosen = os.environ.get("AAL_BENCH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aal-bench"


def run_folder(task: str, method: str, config_hash: str, seed: int) -> Path:
    """The default folder of a run, relative to the current directory."""
    folder = method.replace(":", "_").replace("/", "_")
    return Path("runs") / task / folder / f"{config_hash[:12]}-seed{seed}"
