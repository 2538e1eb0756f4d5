"""Level 0, what is written for people: no steering characters, addresses, times. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import leaves, rule, shown
from aal_bench.record import Result

STEERING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u2028", "\u2029"}
"""Not control characters by name, but they turn or break a line all the same."""
WEB = ("http", "https")
REPOSITORY = (*WEB, "ssh", "git")
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)

_PERCENT = re.compile(r"\d{1,3}(\.\d{1,10})?", re.ASCII)


def findings(tree: dict[str, Any], record: Result) -> list[Finding]:
    """The rules about texts, for a record and its JSON as it is written."""
    return [
        rule(0, "characters", _steering(tree), "no control characters in any text"),
        rule(0, "addresses", _addresses(record), "links are empty, or http and https"),
        rule(0, "dates", _dates(record), "dates have a time and a zone"),
        rule(0, "reported", _reported(record), _claim(record)),
    ]


def moment(text: str) -> datetime | None:
    """An RFC 3339 date with its zone; None where `text` is none."""
    if not _RFC3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        return None


def _steering(tree: dict[str, Any]) -> Iterator[str]:
    for path, value in leaves(tree):
        if isinstance(value, str):
            found = {c for c in value if unicodedata.category(c) == "Cc"} | STEERING & set(value)
            if found:
                yield f"{path} holds a control character, U+{ord(min(found)):04X}"


def _addresses(record: Result) -> Iterator[str]:
    links: dict[str, str | None] = {"link": record.link}
    if record.model.checkpoint is not None:
        links["model.checkpoint.url"] = record.model.checkpoint.url
    if record.evidence is not None:
        links["evidence.url"] = record.evidence.url
    if record.adversarials is not None:
        links["adversarials.url"] = record.adversarials.url
    origins = {"environment.aal_bench.origin": record.environment.aal_bench.origin}
    if record.training is not None:
        origins["training.code.origin"] = record.training.code.origin
        for position, source in enumerate(record.training.data):
            links[f"training.data.{position}.url"] = source.url
    for schemes, addresses in ((WEB, links), (REPOSITORY, origins)):
        for name, address in addresses.items():
            if address and not _is_address(address, schemes):
                yield f"{name} is no {' or '.join(schemes)} address: {shown(address)}"


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and not re.search(r"[\s<>\"]", text)
    except ValueError:
        return False


def _dates(record: Result) -> Iterator[str]:
    dates = {"created": record.created, "verification.date": record.verification.date}
    for position, event in enumerate(record.verification.history):
        dates[f"verification.history.{position}.at"] = event.at
    for name, text in dates.items():
        if text is not None and moment(text) is None:
            yield f"{name} is no date and time with a zone (RFC 3339): {shown(text)}"


def _reported(record: Result) -> Iterator[str]:
    """Boards print it as percent, and RobustBench's tool makes a number of it."""
    text = record.reported
    if text and not (_PERCENT.fullmatch(text) and float(text) <= 100):
        yield f"reported is {shown(text)}, not a percentage: digits, 0 to 100"


def _claim(record: Result) -> str:
    return f"the authors claim {record.reported} %" if record.reported else "no claim"
