"""Small subjects: a network, its images and labels, a threat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from aal_bench.audit.subject import Part, Subject
from aal_bench.threat import Threat

MakeSubject = Callable[..., Subject]


@pytest.fixture
def subject() -> MakeSubject:
    """Make a subject of one network: ``subject(model, x, y, eps="8/255", **fields)``."""

    def make(model: nn.Module, x: Tensor, y: Tensor, eps: Any = "8/255", **fields: Any) -> Subject:
        threat = Threat(eps=eps)
        return Subject(
            parts=(Part(model.eval(), x, y, np.arange(len(y))),),
            network=model,
            threat=threat,
            **{"step": threat.radius / 4, "classes": int(y.max()) + 1, **fields},
        )

    return make
