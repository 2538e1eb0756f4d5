"""What a number was measured with: interpreter, packages, device, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aal_bench import __version__
from aal_bench.hashing import sha256_file
from aal_bench.paths import PACKAGE

PACKAGES = (
    *("torch", "torchvision", "torchattacks", "pyautoattack", "robustbench", "accelerate"),
    *("numpy", "learn2learn", "onedl-mmdetection", "onedl-mmcv", "onedl-mmengine"),
)


def package_versions() -> dict[str, str]:
    """Installed versions of the toolkits; absent ones are left out."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """``{version, origin, commit, dirty}`` of this checkout; commit is None outside one."""
    state: dict[str, Any] = {"version": __version__, "origin": None, "commit": None, "dirty": None}
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return state

    def git(*arguments: str) -> str | None:
        # Without locks: a run that is killed meanwhile must not leave one in the user's repository.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    state["origin"] = public_url(git("remote", "get-url", "origin"))
    state["commit"] = git("rev-parse", "HEAD")
    state["dirty"] = None if status is None else bool(status)
    return state


def public_url(origin: str | None) -> str | None:
    """A remote's address without user and password; None for what only this machine can reach."""
    parts = urlsplit(origin or "")
    if parts.scheme in {"", "file"} or not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit(parts._replace(netloc=parts.hostname + port, query="", fragment=""))


def cpu_name() -> str:
    """The processor's model, as precisely as the platform tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def rank() -> int:
    """This process among those that a launcher (torchrun) started; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def describe() -> dict[str, Any]:
    """The environment block of a record. Imports torch."""
    import torch

    cuda = torch.cuda.is_available()
    lock = PACKAGE.parent / "requirements.lock"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpu_count": torch.cuda.device_count() if cuda else 0,
        "packages": package_versions(),
        "lock_sha256": sha256_file(lock) if lock.is_file() else None,
        "aal_bench": git_state(),
    }


def has_fast_bf16(device: str) -> bool:
    """Does this device multiply bfloat16 in hardware?"""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    if device != "cpu":
        return False
    flags = _cpu_flags()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & flags)


def _cpu_flags() -> set[str]:
    if not sys.platform.startswith("linux"):
        return set()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    return set()
