"""What a run cannot know of itself: paper, authors, venue, addresses. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import field_validator

from aal_bench.config import Strict, parse, read_toml
from aal_bench.record import Result

TOML = "submission.toml"
PERCENT = re.compile(r"\d{1,3}(\.\d+)?", re.ASCII)


class Metadata(Strict):
    """What the run itself cannot know; ``submission.toml`` beside it, or options."""

    paper: str | None = None
    """Title of the paper; RobustBench calls it ``name``."""
    authors: str | None = None
    """Comma-separated."""
    venue: str | None = None
    """``NeurIPS 2020``; the default is ``unpublished``."""
    link: str | None = None
    """Address of the paper."""
    reported: str | None = None
    """The authors' own robust accuracy, percent."""
    footnote: str | None = None
    """Plain text."""
    license: str | None = None
    """SPDX name of the weights' licence."""
    checkpoint_url: str | None = None
    """Where anybody can fetch the weights."""
    adversarials_url: str | None = None
    """Where anybody can fetch the adversarials."""
    entry: str | None = None
    """Name of the entry, ``<Name><Year><Word>``; default: the run's submission_id."""

    @field_validator("reported", mode="before")
    @classmethod
    def _as_printed(cls, value: Any) -> Any:
        """A TOML number is printed as RobustBench prints it: 53.4 -> "53.40"."""
        text = f"{value:.2f}" if isinstance(value, int | float) else value
        if isinstance(text, str) and not (PERCENT.fullmatch(text) and float(text) <= 100):
            raise ValueError(f"write the percentage, as in 53.40, got {text!r}")
        return text

    @field_validator("authors", mode="before")
    @classmethod
    def _one_string(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError('one string, comma-separated: authors = "A. One, B. Two"')
        return value


def metadata(run: Path, given: dict[str, str | None]) -> Metadata:
    """``submission.toml`` of the run, where there is one, under the options of the command line.

    Raises:
        UserError: an unknown key or a wrong type.
    """
    path = run / TOML
    held = read_toml(path) if path.is_file() else {}
    chosen = {key: value for key, value in given.items() if value is not None}
    return parse(Metadata, held | chosen, TOML if held else "metadata")


def inherited(about: Metadata, old: Result, new: Result) -> Metadata:
    """What is not given anew stays as the replaced entry has it; addresses, for equal weights."""
    held = {
        "paper": old.name if old.authors else None,  # else it only says what was run
        "authors": old.authors or None,
        "venue": old.venue,
        "link": old.link or None,
        "reported": old.reported,
        "footnote": old.footnote,
        "license": old.model.license,
    }
    if checkpoint_of(old) == checkpoint_of(new) and old.model.checkpoint is not None:
        held["checkpoint_url"] = old.model.checkpoint.url
        held["adversarials_url"] = old.adversarials.url if old.adversarials else None
    given = about.model_dump(exclude_none=True)
    return Metadata.model_validate({key: value for key, value in held.items() if value} | given)


def checkpoint_of(result: Result) -> str | None:
    """The sha256 of the evaluated weights."""
    return None if result.model.checkpoint is None else result.model.checkpoint.sha256
