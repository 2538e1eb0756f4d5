"""Imported by every config of ``tasks/detection``: registers what is ours in MMDetection.

``custom_imports`` of a config names this module, so that MMDetection's own tools train and test it.
"""

from __future__ import annotations

from aal_bench.detection import checked, detector, hooks, seeded

__all__ = ["checked", "detector", "hooks", "seeded"]
