"""robustbench reads the accuracy from AutoAttack's state."""

import datetime

import pytest
import torch

from aal_bench.toolkits import (
    robustbench_autoattack,
    robustbench_import,
    robustbench_overwritten,
    robustbench_state,
)


@pytest.fixture
def unrepaired(monkeypatch):
    """`robustbench.eval` with the class that it imported."""
    robustbench_overwritten.repair()
    robustbench_autoattack.repair()
    robustbench_import.repair()
    import robustbench.eval
    from autoattack.state import EvaluationState

    monkeypatch.setattr(robustbench.eval, "EvaluationState", EvaluationState)
    return robustbench.eval


def test_flags_can_be_averaged_after_repair(unrepaired, tmp_path):
    path = tmp_path / "state.json"
    state = unrepaired.EvaluationState({"apgd-ce"}, path=path)
    state.robust_flags = torch.tensor([True, True, True, False])

    assert robustbench_state.fault_present()
    with pytest.raises(RuntimeError, match="mean"):
        unrepaired.EvaluationState.from_disk(path).robust_flags.mean()

    robustbench_state.repair()
    repaired = unrepaired.EvaluationState
    assert repaired.from_disk(path).robust_flags.mean().item() == 0.75
    assert isinstance(repaired.from_disk(path)._last_saved, datetime.datetime)
    robustbench_state.repair()
    assert unrepaired.EvaluationState is repaired
    assert not robustbench_state.fault_present()


def test_repair_steps_aside_when_benchmark_converts_the_flags_itself(
    unrepaired, tmp_path, monkeypatch
):
    mended = tmp_path / "mended.py"
    mended.write_text(
        "def benchmark(state):\n    return state.robust_flags.float().mean().item()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mended as module

    monkeypatch.setattr(unrepaired, "benchmark", module.benchmark)
    before = unrepaired.EvaluationState
    robustbench_state.repair()
    assert unrepaired.EvaluationState is before
