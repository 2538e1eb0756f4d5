"""What an audit's shared things cost: each is made once, and who asked for it is remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import nn

from aal_bench.training.passes import counting_passes

Found = TypeVar("Found")


class NoGradient(Exception):
    """The model cannot be differentiated: checks 11 and 12 say so, others cannot decide."""


class Passes(NamedTuple):
    """Images sent through a network, forward and backward."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: tuple[int, ...]) -> Passes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Passes(self.forward + other[0], self.backward + other[1])

    @property
    def total(self) -> int:
        return self.forward + self.backward


class Accounts:
    """Base of the banks: what was made under which name, for which check, with how many passes.

    Args:
        seed: of whatever a check draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._made: dict[str, Any] = {}
        self._cost: dict[str, Passes] = {}
        self._needs: dict[str, set[str]] = {}
        self._open: list[str] = []
        self._asked: dict[int, set[str]] = {}
        self._check: int | None = None

    def once(self, name: str, make: Callable[[], Found]) -> Found:
        """What `make` returns, made at the first call of that name; its passes are counted."""
        if self._open:
            self._needs[self._open[-1]].add(name)
        elif self._check is not None:
            self._asked[self._check].add(name)
        if name not in self._made:
            self._cost[name], self._needs[name] = Passes(), set()
            self._open.append(name)
            try:
                self._made[name] = make()
            except NoGradient as error:
                self._made[name] = error
            finally:
                self._open.pop()
        found = self._made[name]
        if isinstance(found, NoGradient):
            raise found
        return found

    @contextmanager
    def charging(self, number: int) -> Iterator[None]:
        """What is made or asked for in this context is for check `number`."""
        before, self._check = self._check, number
        self._asked.setdefault(number, set())
        self._cost.setdefault(_own(number), Passes())
        try:
            yield
        finally:
            self._check = before

    @property
    def spent(self) -> Passes:
        """Passes of the whole audit."""
        total = Passes()
        for passes in self._cost.values():
            total += passes
        return total

    def naive(self) -> Passes:
        """Passes that the checks would have made one by one, sharing nothing."""
        total = Passes()
        for number in self._asked:
            total += self.alone(number)
        return total

    def alone(self, number: int) -> Passes:
        """Passes of one check by itself: its own, and of everything that it asked for."""
        total = self._cost.get(_own(number), Passes())
        reached: set[str] = set()
        waiting = list(self._asked.get(number, ()))
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                total += self._cost[name]
                waiting += self._needs[name]
        return total

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Account for every pass through `model` inside the context."""
        with counting_passes(model) as counted:
            try:
                yield
            finally:
                self.charge((counted["forward"], counted["backward"]))

    def charge(self, spent: tuple[int, int]) -> None:
        """Account for passes (forward, backward) to what is being made."""
        name = self._open[-1] if self._open else _own(self._check or 0)
        self._cost[name] = self._cost.get(name, Passes()) + spent


def _own(number: int) -> str:
    return f"check {number}"
