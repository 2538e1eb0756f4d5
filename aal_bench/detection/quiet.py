"""MMDetection prints its tables; the run's own lines say the same."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on standard output inside, whether printed or logged; warnings and errors stay."""
    from mmengine.logging import MMLogger

    handlers = [
        handler
        for handler in MMLogger.get_current_instance().handlers
        if not isinstance(handler, logging.FileHandler)
    ]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
