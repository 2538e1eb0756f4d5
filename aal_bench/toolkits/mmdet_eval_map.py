"""Fault: mmdet's ``eval_map`` forks a pool of processes in the middle of a process with threads.

For every stage it starts four workers by fork, whatever the size of the data; after torch has begun
its threads a child may wait for ever for a lock that nobody holds there (cpython #84559; a handler
for SIGTERM, which schedulers send and the pool ends its workers with, hangs it as well).

Repair: the name ``Pool`` in its module becomes the pool of threads that multiprocessing has. The
numbers are the same.
"""

from __future__ import annotations

from importlib.util import find_spec
from multiprocessing.pool import ThreadPool
from typing import Any

from aal_bench.toolkits._quiet import import_quietly


def fault_present() -> bool:
    """Whether mmdet is installed and its ``eval_map`` forks."""
    return (
        find_spec("mmdet") is not None and getattr(_module(), "Pool", ThreadPool) is not ThreadPool
    )


def repair() -> None:
    """Let ``eval_map`` use threads."""
    if fault_present():
        _module().Pool = ThreadPool


def _module() -> Any:
    from aal_bench.toolkits import mmcv_ops, mmdet_ssd

    mmcv_ops.repair()
    with mmdet_ssd.without_notices():
        return import_quietly("mmdet.evaluation.functional.mean_ap", *mmdet_ssd.NOTICES)
