"""Progress: bars on a terminal, one line a minute in a log. Never synchronises with a device."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TextIO

LOG_INTERVAL = 60.0
"""Seconds between lines when the output is not a terminal."""


class Task:
    """One line of progress: done out of total, with a free text."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.text = name, total, 0, ""
        self._skipped = 0
        self._began = time.monotonic()

    def advance(self, amount: int = 1, text: str | None = None) -> None:
        """Count `amount` more; `text` replaces the description shown beside the count."""
        self.done += amount
        if text is not None:
            self.text = text

    def skip(self, amount: int) -> None:
        """Count work that an earlier process did: it says nothing about the speed of this one."""
        self.done += amount
        self._skipped += amount
        self.total = max(self.total, self.done)

    def line(self) -> str:
        """``train      900/1,000  loss 0.41  01:40 passed, 00:11 left``."""
        seconds = time.monotonic() - self._began
        times = f"{clock(seconds)} passed"
        done = self.done - self._skipped
        if done:
            times += f", {clock(seconds * (self.total - self.done) / done)} left"
        parts = (f"{self.name:9}", f"{self.done:,}/{self.total:,}", self.text, times)
        return "  ".join(part for part in parts if part)


class _Bar(Task):
    def __init__(self, name: str, total: int, stream: TextIO) -> None:
        super().__init__(name, total)
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
            transient=True,  # a line on standard output says how it ended
        )
        self._id = self._bar.add_task(name, total=total, text="")
        self._bar.start()

    def advance(self, amount: int = 1, text: str | None = None) -> None:
        super().advance(amount, text)
        self._bar.update(self._id, advance=amount, text=self.text)

    def skip(self, amount: int) -> None:
        super().skip(amount)
        # A bar begun at this count: rich measures the speed from here on.
        self._bar.reset(self._id, total=self.total, completed=self.done, text=self.text)

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
        task = Task(name, total)
        with _minute_by_minute(task, out):
            yield task


@contextmanager
def _minute_by_minute(task: Task, out: TextIO) -> Iterator[None]:
    # A thread, because one batch of AutoAttack may take an hour, and a silent log looks dead.
    over = Event()

    def speak() -> None:
        while not over.wait(LOG_INTERVAL):
            print(task.line(), file=out, flush=True)

    speaker = Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()
