"""Fault: ``learn2learn.nn.SVClassifier`` raises "qpth required. Try: pip install qpth".

MetaOptNet's head (learn2learn 0.2.0, ``learn2learn/nn/metaoptnet.py``) solves the dual of its
support vector machine with ``qpth.qp.QPFunction``, and qpth is left out of the lock. Where it is
absent, ``import learn2learn`` puts an object in its place that raises when it is called.

Repair: a module ``qpth.qp`` whose ``QPFunction`` has qpth's call and our own solver
(`qpth_bridge`), and that function in ``learn2learn.nn.metaoptnet`` where that is imported already.
An installed qpth is used and nothing is done.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

USER = "learn2learn.nn.metaoptnet"


def fault_present() -> bool:
    """Whether fitting an ``SVClassifier`` would raise that qpth is required."""
    if find_spec("learn2learn") is None:
        return False
    return find_spec("qpth") is None or _without_solver() is not None


def repair() -> None:
    """Provide ``qpth.qp`` for the rest of this process, and to learn2learn if it asked before."""
    if not fault_present():
        return
    if find_spec("qpth") is None:
        from aal_bench.toolkits import qpth_bridge

        package, qp = _module("qpth", is_package=True), _module("qpth.qp")
        package.qp = qp  # pyright: ignore[reportAttributeAccessIssue]
        qp.QPFunction = qpth_bridge.QPFunction  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules["qpth"], sys.modules["qpth.qp"] = package, qp
    user = _without_solver()
    if user is not None:
        from qpth.qp import QPFunction  # pyright: ignore[reportMissingImports]

        vars(user)["QPFunction"] = QPFunction


def _without_solver() -> ModuleType | None:
    """learn2learn's module, if it was imported without qpth and holds the object that raises."""
    user = sys.modules.get(USER)
    raises = type(vars(user).get("QPFunction")).__name__ == "_ImportRaiser" if user else False
    return user if raises else None


def _module(name: str, is_package: bool = False) -> ModuleType:
    module = ModuleType(name, doc="Provided by aal_bench.toolkits.qpth_absent.")
    # find_spec() raises for a module in sys.modules whose __spec__ is None
    module.__spec__ = ModuleSpec(name, loader=None, is_package=is_package)
    if is_package:
        module.__path__ = []
    return module
