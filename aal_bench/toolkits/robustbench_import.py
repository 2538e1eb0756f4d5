"""Fault: ``import robustbench`` 1.1.1 prints other packages' deprecation notices.

Its ``loaders.py`` imports ``pkg_resources``, which setuptools < 81 announces the end of and
setuptools >= 81 no longer has; its model zoo imports timm's old module names and, through timm,
``torch.jit.interface``. None of it concerns who uses robustbench, and all of it would be an error
where warnings are errors.

Repair: import it once, with `robustbench_autoattack` in place, ignoring exactly these notices.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from aal_bench.toolkits import robustbench_autoattack
from aal_bench.toolkits._quiet import import_quietly

NOTICES = (
    "pkg_resources is deprecated as an API",
    "Importing from timm.models",
    "`torch.jit.interface` is deprecated",
)


def fault_present() -> bool:
    """Whether robustbench is installed and not imported yet (only the first import warns)."""
    return "robustbench" not in sys.modules and find_spec("robustbench") is not None


def repair() -> None:
    """Import robustbench quietly. Errors, and warnings of any other kind, pass through."""
    if fault_present():
        robustbench_autoattack.repair()
        import_quietly("robustbench", *NOTICES)
