"""What of an audit stands in the result's record: its block, and a flag for each failed check."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from aal_bench.audit.outcome import Severity
from aal_bench.audit.record import Audit
from aal_bench.audit.table import BY_NUMBER
from aal_bench.hashing import sha256_file
from aal_bench.schema import AuditBlock, Flag

_SEVERITY: dict[Severity, Literal["note", "warning", "unreliable"]] = {
    "unreliable": "unreliable",
    "warning": "warning",
    "information": "note",
}
PREFIX = "audit-"
"""How the code of an audit's flag begins."""


def block(audit: Audit, path: Path) -> AuditBlock:
    """The record's block of an audit whose file lies at `path`, beside the record."""
    return AuditBlock(
        path=path.name,
        sha256=sha256_file(path),
        budget=audit.budget,
        images=audit.images,
        passed=audit.count("pass"),
        failed=[BY_NUMBER[finding.number].code for finding in audit.failed],
        not_applicable=audit.count("not applicable"),
        not_decided=audit.count("not decided"),
    )


def flags(audit: Audit) -> list[Flag]:
    """A flag for each failed check, those that make the result unreliable first."""
    return [
        Flag(
            code=BY_NUMBER[finding.number].code,
            severity=_SEVERITY[finding.severity],
            value=finding.value,
            threshold=finding.threshold,
            note=finding.sentence,
        )
        for finding in audit.failed
    ]
