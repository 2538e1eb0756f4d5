"""Batches of a fraction of a second: the evidence is saved every few seconds, not after each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from aal_bench.adapters.attack_stage import Saved

EVERY = 5.0
"""Seconds of work that a kill may lose."""
SHARE = 20
"""Where saving takes long, a kill may lose so many times its seconds."""


class Throttled:
    """A `Saved` that gathers seconds and the worst violation, and passes them on in turn."""

    def __init__(self, saved: Saved) -> None:
        self.saved, self._took = saved, 0.0
        self._forget()

    def __call__(self, seconds: float, violation: dict[str, float]) -> None:
        self._seconds += seconds
        self._worst = {key: max(self._worst[key], violation[key]) for key in self._worst}
        self._waiting = True
        if time.monotonic() - self._last >= max(EVERY, SHARE * self._took):
            self.flush()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds of what happens inside, which violates nothing."""
        began = time.perf_counter()
        yield
        self(time.perf_counter() - began, {"norm": 0.0, "box": 0.0})

    def flush(self) -> None:
        """Pass on what has gathered."""
        if self._waiting:
            began = time.perf_counter()
            self.saved(self._seconds, self._worst)
            self._took = time.perf_counter() - began
            self._forget()

    def _forget(self) -> None:
        self._seconds, self._worst = 0.0, {"norm": 0.0, "box": 0.0}
        self._waiting, self._last = False, time.monotonic()
