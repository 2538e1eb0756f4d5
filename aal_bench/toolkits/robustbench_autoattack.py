"""Fault: ``import robustbench`` fails with "No module named 'autoattack'".

robustbench 1.1.1 imports ``autoattack`` and ``autoattack.state`` (RobustBench/robustbench #117),
the modules of fra31/auto-attack, which is on no package index; what robustbench declares as its
dependency and pip installs is ``pyautoattack``, with another module name and a keyword-only
signature.

Repair: the two module names, filled from ``pyautoattack`` by `autoattack_bridge`. Where the
original package is installed, or was imported before, it is used and nothing is done.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def fault_present() -> bool:
    """Whether ``import autoattack`` would fail although pyautoattack is installed."""
    return find_spec("autoattack") is None and find_spec("pyautoattack") is not None


def repair() -> None:
    """Provide ``autoattack`` and ``autoattack.state`` for the rest of this process."""
    if not fault_present():
        return
    from aal_bench.toolkits import autoattack_bridge

    package, state = _module("autoattack", is_package=True), _module("autoattack.state")
    package.AutoAttack = autoattack_bridge.AutoAttack  # pyright: ignore[reportAttributeAccessIssue]
    package.state = state  # pyright: ignore[reportAttributeAccessIssue]
    state.EvaluationState = autoattack_bridge.EvaluationState  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["autoattack"], sys.modules["autoattack.state"] = package, state


def _module(name: str, is_package: bool = False) -> ModuleType:
    module = ModuleType(name, doc="Provided by aal_bench.toolkits.robustbench_autoattack.")
    # find_spec() raises for a module in sys.modules whose __spec__ is None
    module.__spec__ = ModuleSpec(name, loader=None, is_package=is_package)
    if is_package:
        module.__path__ = []
    return module
