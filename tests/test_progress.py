"""A bar on a terminal, a line now and then in a log, and nothing else."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from aal_bench import progress
from aal_bench.progress import clock, track


def test_a_short_task_writes_nothing_to_a_log():
    log = io.StringIO()
    with track("train", 1000, log) as task:
        for _ in range(1000):
            task.advance()
    assert log.getvalue() == ""
    assert progress.LOG_INTERVAL == 60


def test_a_log_gets_a_line_per_interval_even_while_nothing_is_finished(monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.05)
    log = io.StringIO()
    began = time.monotonic()
    with track("apgd-t", 2000, log) as task:
        wait_for(log, 2)  # one batch of AutoAttack may take an hour
        task.advance(1000, "epoch 1/2")
        wait_for(log, 3)
    lines = log.getvalue().splitlines()
    assert len(lines) <= (time.monotonic() - began) / 0.05
    assert re.fullmatch(r"apgd-t     0/2,000  \d\d:\d\d passed", lines[0])
    shown = r"apgd-t     1,000/2,000  epoch 1/2  \d\d:\d\d passed, \d\d:\d\d left"
    assert re.fullmatch(shown, lines[-1])
    time.sleep(0.1)
    assert log.getvalue().splitlines() == lines  # over is over


def wait_for(log, count):
    until = time.monotonic() + 30
    already = len(log.getvalue().splitlines())
    while len(log.getvalue().splitlines()) < max(count, already + 1):
        assert time.monotonic() < until, "no line came"
        time.sleep(0.01)


def test_an_interrupt_is_not_swallowed_and_ends_the_lines(monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.02)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), track("train", 10, io.StringIO()):
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_work_of_an_earlier_process_says_nothing_about_this_ones_speed(monkeypatch):
    now = iter([0.0, 100.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    task = progress.Task("train", 1000)
    task.skip(800)
    task.advance(100)  # 100 in 100 s, 100 are left
    assert task.line() == "train      900/1,000  01:40 passed, 01:40 left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (75.9, "01:15"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


SHOW = """
import time
from aal_bench.progress import track
with track("train", 40) as task:
    task.skip(10)
    for _ in range(30):
        task.advance(1, "loss 0.5")
        time.sleep(0.01)
print("done")
"""


def test_a_terminal_gets_a_bar_that_is_gone_when_the_work_is_done():
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # Linux: the other end is closed
        pass
    out, _ = done.communicate()
    text = seen.decode()
    assert done.returncode == 0
    assert out == b"done\n"
    assert "train" in text
    assert "40/40" in text
    assert "loss 0.5" in text
    assert text.endswith("\x1b[2K")  # the bar's line is erased
    assert len(seen) < 20_000


def test_a_pipe_gets_no_bar():
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert done.stderr == ""
