"""RFS-simple: one good embedding for all episodes (Tian et al. 2020, arXiv 2003.11539)."""

from __future__ import annotations

from typing import ClassVar

from aal_bench.methods.base import Method


class RFS(Method):
    """Cross-entropy over all training classes; episodes are answered by logistic regression.

    Training is plain classification; the features are frozen for the test.
    """

    attacks: ClassVar[bool] = False
