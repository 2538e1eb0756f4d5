"""What a verification level means, for a reader of the pages."""

from __future__ import annotations

from typing import NamedTuple

from aal_bench.leaderboard.findings import LEVELS as NAMES


class Level(NamedTuple):
    """One level."""

    number: int
    name: str
    """One or two words, for tables."""
    proves: str
    leaves: str
    """What it does not prove."""


LEVELS = (
    Level(
        0,
        NAMES[0],
        "The record is complete and agrees with itself: its numbers, hashes and attack budgets are"
        " those of the task's protocol.",
        "Anything about the model.",
    ),
    Level(
        1,
        NAMES[1],
        "Every printed number follows from the evidence, image by image, on the task's own images"
        " and labels.",
        "That the evidence is true.",
    ),
    Level(
        2,
        NAMES[2],
        "The stored adversarials fool the published weights within eps, and clean accuracy holds:"
        " the model is at most as robust as it claims.",
        "That the images said to survive do survive.",
    ),
    Level(
        3,
        NAMES[3],
        "Survivors were attacked once more with a seed drawn after the submission: all of them, or"
        " an audit sample under a one-sided binomial rule.",
        "Robustness against attacks made for this model.",
    ),
    Level(
        4,
        NAMES[4],
        "Somebody's adversarials were replayed on the weights; what fell is subtracted, and both"
        " numbers stay on record.",
        "That nobody will find a better attack.",
    ),
)
