"""Sums over the steps of an epoch, kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Sums:
    """Loss, a method's logged scalars and the first bad step; read out once per epoch.

    `add` never waits for the device; `bad_step` and `means` do.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loss = torch.zeros((), device=device, dtype=torch.float64)
        self._log: dict[str, Tensor] = {}
        self._count = 0
        self._first_bad = torch.full((), -1, device=device, dtype=torch.int64)
        self.seconds = 0.0

    def add(self, step: int, loss: Tensor, log: dict[str, Tensor]) -> None:
        """Take in the detached loss of `step` and the scalars that the method logged in it."""
        bad = (self._first_bad < 0) & ~torch.isfinite(loss)
        self._first_bad = torch.where(bad, step, self._first_bad)
        self._loss += loss
        for name, value in log.items():
            self._log[name] = self._log.get(name, 0.0) + value.detach().double()
        self._count += 1

    def bad_step(self) -> int | None:
        """The first step of this epoch whose loss was NaN or infinite, if any was."""
        step = int(self._first_bad)
        return None if step < 0 else step

    def means(self) -> dict[str, float]:
        """``loss`` and the logged scalars, averaged over the steps."""
        sums = {"loss": self._loss, **self._log}
        return {name: float(value) / self._count for name, value in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """What an epoch that is resumed in its middle needs; a bad step is never saved."""
        return {
            "loss": self._loss,
            "log": dict(self._log),
            "count": self._count,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._loss = state["loss"].to(self._device)
        self._log = {name: value.to(self._device) for name, value in state["log"].items()}
        self._count, self.seconds = state["count"], state["seconds"]
