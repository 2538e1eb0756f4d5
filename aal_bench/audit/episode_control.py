"""The undefended control of episodes: a classifier in the place of each episode's own."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class EpisodeControl(nn.Module):
    """For every episode's network the one that the same support set made of an undefended network.

    Args:
        pairs: (audited, undefended) of each episode.
    """

    def __init__(self, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self._pairs = list(pairs)

    def of(self, model: nn.Module) -> nn.Module:
        """The control in the place of the audited network `model`.

        Raises:
            KeyError: it is no episode's.
        """
        for audited, undefended in self._pairs:
            if audited is model:
                return undefended
        raise KeyError("no episode is answered by this network")


def standing_in(control: nn.Module, model: nn.Module) -> nn.Module:
    """What takes `model`'s place: `control`, or its network of the same episode."""
    return control.of(model) if isinstance(control, EpisodeControl) else control
