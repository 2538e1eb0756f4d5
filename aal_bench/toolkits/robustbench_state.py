"""Fault: ``robustbench.benchmark(aa_state_path=...)`` raises after the whole attack has run.

robustbench 1.1.1 (RobustBench/robustbench #117) ends with ``aa_state.robust_flags.mean()``. The
flags are a boolean tensor, and torch refuses: "mean(): could not infer output dtype. Input dtype
must be either a floating point or complex dtype". The accuracy is lost with it.

Repair: ``robustbench.eval`` reads the state through a subclass whose flags are 0.0 and 1.0. Not
reported upstream so far.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.util import find_spec

from aal_bench.toolkits import robustbench_import, robustbench_overwritten


def fault_present() -> bool:
    """Whether ``benchmark`` takes the mean of boolean flags (imports robustbench)."""
    if find_spec("robustbench") is None or robustbench_overwritten.fault_present():
        return False
    robustbench_import.repair()
    module = importlib.import_module("robustbench.eval")
    reads_mean = "robust_flags.mean()" in inspect.getsource(module.benchmark)
    return reads_mean and not getattr(module.EvaluationState, "flags_are_numbers", False)


def repair() -> None:
    """Let ``robustbench.eval`` read the flags of an AutoAttack state as numbers."""
    if not fault_present():
        return
    module = importlib.import_module("robustbench.eval")

    class NumberedState(module.EvaluationState):
        flags_are_numbers = True

        @property
        def robust_flags(self):
            return None if self._robust_flags is None else self._robust_flags.float()

    vars(module)["EvaluationState"] = NumberedState
