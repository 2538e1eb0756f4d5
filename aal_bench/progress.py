"""Progress: bars on a terminal, one line a minute in a log. Never synchronises with a device."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LOG_INTERVAL = 60.0
"""Seconds between lines when the output is not a terminal."""


class Task:
    """One line of progress: done out of total, with a free text."""

    def __init__(self, name: str, total: int, stream: TextIO) -> None:
        self.name, self.total, self.done, self.text = name, total, 0, ""
        self._stream = stream
        self._began = self._last = time.monotonic()

    def advance(self, amount: int = 1, text: str | None = None) -> None:
        """Count `amount` more; `text` replaces the description shown beside the count."""
        self.done += amount
        if text is not None:
            self.text = text
        now = time.monotonic()
        if now - self._last >= LOG_INTERVAL:
            self._last = now
            left = (now - self._began) * (self.total - self.done) / max(self.done, 1)
            print(
                f"{self.name:9} {self.done}/{self.total}  {self.text}  {clock(left)} left",
                file=self._stream,
                flush=True,
            )

    def skip(self, amount: int) -> None:
        """Count work that an earlier process did: it says nothing about the speed of this one."""
        self.done += amount
        self.total = max(self.total, self.done)


class _Bar(Task):
    def __init__(self, name: str, total: int, stream: TextIO) -> None:
        super().__init__(name, total, stream)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(file=stream),
            transient=False,
        )
        self._id = self._bar.add_task(name, total=total, text="")
        self._bar.start()

    def advance(self, amount: int = 1, text: str | None = None) -> None:
        self.done += amount
        if text is not None:
            self.text = text
        self._bar.update(self._id, advance=amount, text=self.text)

    def skip(self, amount: int) -> None:
        super().skip(amount)
        self._bar.update(self._id, advance=amount)

    def close(self) -> None:
        self._bar.stop()


def clock(seconds: float) -> str:
    """``75`` -> ``01:15``; hours appear when there are any."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes:02}:{whole % 60:02}"


@contextmanager
def track(name: str, total: int, stream: TextIO | None = None) -> Iterator[Task]:
    """Show the progress of `total` units of work under `name` on standard error."""
    out = stream or sys.stderr
    if out.isatty():
        bar = _Bar(name, total, out)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield Task(name, total, out)
