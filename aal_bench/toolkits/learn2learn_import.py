"""Fault: ``import learn2learn`` prints four lines about gym on standard error.

learn2learn 0.2.0 imports ``gym`` at start (learnables/learn2learn #413 and its kin: unmaintained
since 2023), and gym 0.26.2 prints a notice from ``gym_notices`` that it is unmaintained. It
concerns reinforcement learning, which nobody here uses, and it would spoil every few-shot
command's output.

Repair: take gym's notice out of ``gym_notices`` before gym reads it. Standard error itself is
not touched, so that a real error or warning of the import is seen.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def fault_present() -> bool:
    """Whether importing learn2learn now would print gym's notice."""
    if "gym" in sys.modules or find_spec("learn2learn") is None:
        return False
    return bool(_notices().get(_gym_version()))


def repair() -> None:
    """Take the notice away; the import itself stays with the caller."""
    if fault_present():
        _notices()[_gym_version()] = ""


def _gym_version() -> str:
    try:
        return version("gym")
    except PackageNotFoundError:
        return ""


def _notices() -> dict[str, str]:
    if find_spec("gym_notices") is None:
        return {}
    return importlib.import_module("gym_notices.notices").notices
