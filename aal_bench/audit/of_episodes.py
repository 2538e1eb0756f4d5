"""Few-shot episodes as a subject of the audit: one network and its queries for each episode."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from aal_bench.adapters.episode_victim import EpisodeVictim
from aal_bench.audit.episode_control import EpisodeControl
from aal_bench.audit.of_run import ALONE, MOST, NOTHING_TOLD, Beside, Told, claims_of, common
from aal_bench.audit.subject import Part, Subject
from aal_bench.audit.table import Budget
from aal_bench.data.subset import some
from aal_bench.errors import UserError

if TYPE_CHECKING:
    from aal_bench.adapters.fewshot import FewShot


def audited(adapter: FewShot, budget: Budget) -> np.ndarray:
    """Ascending rows of the evidence that are audited: whole episodes, one at least."""
    whole = max(1, (budget.images or MOST) // adapter.queries)
    first = some(len(adapter.episodes), whole) * adapter.queries
    return (first[:, None] + np.arange(adapter.queries)).reshape(-1)


def subject_of(
    adapter: FewShot,
    model: nn.Module,
    budget: Budget,
    told: Told = NOTHING_TOLD,
    beside: Beside = ALONE,
) -> Subject:
    """The subject of a few-shot run.

    Each part is an episode: its queries, and the network as the method's head made it from the
    support set. That is made once: attacks go through it, not through the fitting of the head.

    Args:
        adapter: of the task, with its episodes.
        model: the embedding network, whose modules are looked at.
        budget: how many queries, rounded down to whole episodes.
        told: what the run says of itself.
        beside: an undefended embedding network, which the same head answers with, or nothing.

    Raises:
        UserError: the head's answer to a query depends on the others, or networks are given that no
            check of episodes looks at.
    """
    adapter.head().attackable()
    if beside.baseline is not None or beside.surrogates:
        raise UserError(
            "an audit of episodes compares with an undefended network at most: omit --baseline and"
            " --surrogate"
        )
    rows = audited(adapter, budget)
    parts = _parts(adapter, model, rows)
    subject = Subject(
        parts=parts,
        network=model,
        claims=claims_of(told, rows),
        **common(adapter.run, beside),
    )
    if beside.undefended is None:
        return subject
    others = _parts(adapter, beside.undefended, rows)
    control = EpisodeControl(
        [(part.model, other.model) for part, other in zip(parts, others, strict=True)]
    )
    return replace(subject, undefended=control)


def _parts(adapter: FewShot, model: nn.Module, rows: np.ndarray) -> tuple[Part, ...]:
    model.eval()
    return tuple(
        Part(make().eval(), images.x.contiguous(), images.y, images.idx.cpu().numpy())
        for make, images in EpisodeVictim(adapter, model).batches(rows)
    )
