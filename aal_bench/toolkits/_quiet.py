"""Import a third-party package without the warnings that its own source sets off."""

from __future__ import annotations

import importlib
import re
import warnings
from types import ModuleType


def import_quietly(module: str, *messages: str) -> ModuleType:
    """Import `module`, ignoring only warnings whose text begins with one of `messages`.

    Any other warning, and every error, passes through.

    Args:
        module: Dotted name, such as ``"robustbench"``.
        messages: Literal beginnings of the warnings to ignore (not regular expressions).

    Raises:
        ImportError: whatever the import itself raises.
    """
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message=re.escape(message))
        return importlib.import_module(module)
