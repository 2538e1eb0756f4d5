"""Evidence saved every few seconds: nothing that was done is left out of the accounts."""

import time

import pytest

from aal_bench.adapters.throttled import Throttled

NONE = {"norm": 0.0, "box": 0.0}


def test_seconds_add_up_and_the_worst_violation_is_kept(monkeypatch):
    passed_on = []
    clock = iter([0.0, 1.0, 2.0, 6.0, 6.0, 7.0, 99.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    saved = Throttled(lambda *account: passed_on.append(account))
    saved(0.5, NONE | {"norm": 2e-8})
    saved(0.25, NONE | {"box": 1e-9})
    assert passed_on == []
    saved(0.125, NONE)  # five seconds after the first
    assert passed_on == [(0.875, {"norm": 2e-8, "box": 1e-9})]
    saved(1.0, NONE)
    saved.flush()
    saved.flush()  # nothing has gathered since
    assert passed_on[1:] == [(1.0, NONE)]


def test_what_raises_is_not_accounted_for():
    passed_on = []
    saved = Throttled(lambda *account: passed_on.append(account))
    with pytest.raises(ValueError, match="no"), saved.timed():
        raise ValueError("no")
    saved.flush()
    assert passed_on == []
