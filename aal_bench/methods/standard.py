"""Training without an attack: the undefended control."""

from __future__ import annotations

from typing import ClassVar

from aal_bench.methods.base import Method


class Standard(Method):
    """Cross-entropy on the clean batch: min_W CE(f(x), y). Cost: 1 forward, 1 backward."""

    attacks: ClassVar[bool] = False
