"""The result record: one JSON file that is report, submission and RobustBench row at once.

Its top-level keys are RobustBench's ``model_info`` keys with their string types, so that its own
tools read a folder of records unchanged. They are derived from the typed blocks, and a record in
which the two disagree is refused. No torch.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from aal_bench.schema import (
    Adversarials,
    AuditBlock,
    Block,
    Environment,
    EvidenceFile,
    Failure,
    Flag,
    Metrics,
    ModelBlock,
    Sha256,
    StageRecord,
    Status,
    TaskBlock,
    ThreatBlock,
    Training,
    Verification,
)
from aal_bench.threat import format_fraction

SCHEMA_VERSION = "1.1"
"""A change of the first number makes older records incompatible."""
ABSENT = ("external", "autoattack_acc", "clean_acc")
"""Keys that are left out when unknown: RobustBench calls float() on whatever stands there."""
YOUNGER = ("audit",)
"""Keys that are left out when absent: older records do not have them, and keep their bytes."""


class Record(Block):
    """The envelope and the typed blocks of a result."""

    schema_version: str = Field(SCHEMA_VERSION, pattern=r"^1\.\d+$")
    """Version of this format."""
    submission_id: str
    """The entry's name, equal to the file's stem on a leaderboard."""
    status: Status
    """Only ``success`` is eligible for a leaderboard."""
    error: Failure | None = None
    """Why not success."""
    created: str
    """RFC 3339, with a time zone."""
    command: list[str]
    """The exact argument vector."""
    protocol: str
    """Name of the list of stages."""
    limit: int | None = Field(None, ge=1)
    """Limit on evaluated images or episodes; anything but null is not eligible."""
    smoke: bool = False
    """True: a trial of the machinery, never a result."""
    run_hash: Sha256 | None = None
    """Over everything that may change a number; null until there is a checkpoint."""
    task: TaskBlock
    """Which question was asked."""
    threat: ThreatBlock
    """What the attacker may do."""
    model: ModelBlock
    """What was attacked."""
    training: Training | None = None
    """How the weights came about; null for somebody else's checkpoint."""
    evaluation: list[StageRecord] = Field(default_factory=list)
    """One entry per stage, in order."""
    metrics: Metrics | None = None
    """What the evidence says."""
    evidence: EvidenceFile | None = None
    """The per-sample table."""
    adversarials: Adversarials | None = None
    """Stored adversarials of fooled images."""
    environment: Environment
    """What the numbers were measured with."""
    flags: list[Flag] = Field(default_factory=list)
    """Findings of the audit and of the attacks' own checks."""
    audit: AuditBlock | None = None
    """What the audit came to; absent where there was none."""
    verification: Verification = Field(default_factory=lambda: Verification(level=0))
    """Set by maintainers."""
    seal: Sha256 | None = None
    """sha256 of everything else in the file: tells an accident, not a forger, who can renew it."""

    @model_validator(mode="after")
    def _complete(self) -> Record:
        measured = (self.metrics, self.evidence, self.run_hash)
        if self.status == "success" and None in measured:
            raise ValueError("status success needs metrics, evidence and run_hash")
        if (self.status == "error") != (self.error is not None):
            raise ValueError(f"status {self.status} and error disagree")
        if self.status == "success" and any(s.status != "success" for s in self.evaluation):
            raise ValueError("status success with a stage that did not succeed")
        if self.metrics and (self.metrics.episodes is None) != (self.task.episodes is None):
            raise ValueError("task.episodes and metrics.episodes go together")
        if self.metrics and (self.metrics.detection is None) == (self.task.family == "detection"):
            raise ValueError("family detection and metrics.detection go together")
        if any((s.n_out is None) != (self.task.family == "detection") for s in self.evaluation):
            raise ValueError("n_out is absent of a detection's stages, and of no other")
        return self


class Result(Record):
    """A record with RobustBench's keys at the top."""

    link: str = ""
    """The paper's address."""
    name: str
    """The paper's title; for unpublished runs, what was run."""
    authors: str = ""
    """Comma-separated."""
    venue: str = "unpublished"
    """``NeurIPS 2020``, ``arXiv, Jun 2024``."""
    additional_data: bool
    """Trained on an extra or synthetic source (derived from ``training.data``)."""
    number_forward_passes: int
    """Derived from ``model.forward_passes``."""
    dataset: str
    """Derived from ``task.id``."""
    architecture: str
    """Derived from ``model.architecture``."""
    eps: str
    """Derived from ``threat.eps``."""
    clean_acc: str | None = None
    """Percent, two decimals (derived); absent when not measured, and for detection: a mean average
    precision is no accuracy."""
    autoattack_acc: str | None = None
    """Percent (derived); present only for full standard AutoAttack on the whole test set, which
    few-shot is every query of every episode."""
    reported: str | None = None
    """The authors' own number, percent."""
    external: str | None = None
    """Lowest verified adaptive accuracy, percent; absent when unknown, never null."""
    unreliable: bool
    """Derived: a flag of that severity."""
    footnote: str | None = None
    """Plain text."""

    @model_validator(mode="before")
    @classmethod
    def _never_null(cls, tree: Any) -> Any:
        for key in ABSENT:
            if isinstance(tree, dict) and key in tree and tree[key] is None:
                raise ValueError(f"{key} is null: leave the key out when it is unknown")
        return tree

    @model_validator(mode="after")
    def _agrees(self) -> Result:
        derived = robustbench_view(self)
        own = {key: getattr(self, key) for key in derived}
        own |= {key: getattr(self, key) for key in ABSENT[1:] if getattr(self, key) is not None}
        wrong = [key for key in own if own[key] != derived.get(key)]
        if wrong:
            key = wrong[0]
            raise ValueError(
                f"{key} is {own[key]!r}, but the typed blocks say {derived.get(key)!r}"
            )
        return self

    @model_serializer(mode="wrap")
    def _ordered(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree = dump(self)
        top = [key for key in type(self).model_fields if key not in Record.model_fields]
        keys = [*top, *Record.model_fields]
        optional = (*ABSENT, *YOUNGER)
        return {key: tree[key] for key in keys if key not in optional or tree[key] is not None}


def robustbench_view(record: Record) -> dict[str, Any]:
    """The derived ``model_info`` keys; those in `ABSENT` only when they are known."""
    sources = record.training.data if record.training else []
    view: dict[str, Any] = {
        "additional_data": any(source.role != "train" for source in sources),
        "number_forward_passes": record.model.forward_passes,
        "dataset": record.task.id,
        "architecture": record.model.architecture,
        "eps": format_fraction(record.threat.eps),
        "unreliable": any(flag.severity == "unreliable" for flag in record.flags),
    }
    if record.metrics is not None and record.metrics.detection is None:  # else: no accuracy
        view["clean_acc"] = percent(record.metrics.clean.value)
        if record.metrics.autoattack is not None and whole_autoattack(record):
            view["autoattack_acc"] = percent(record.metrics.autoattack.value)
    return view


def whole_autoattack(record: Record) -> bool:
    """Full standard AutoAttack on the whole test set: the only thing called autoattack_acc."""
    if record.metrics is None or record.limit is not None or record.smoke:
        return False
    measure = record.metrics.autoattack
    if measure is None or measure.n != record.task.examples:
        return False
    ran = {stage.attack: stage for stage in record.evaluation if stage.status == "success"}
    targets = min(9, record.task.classes - 1)
    standard = {
        "apgd-ce": {"steps": 100, "restarts": 1},
        "apgd-t": {"steps": 100, "restarts": 1, "targets": targets},
        "fab-t": {"steps": 100, "restarts": 1, "targets": targets},
        "square": {"queries": 5000, "restarts": 1},
    }
    eps = format_fraction(record.threat.eps)
    return all(
        attack in ran
        and ran[attack].implementation.package == "pyautoattack"
        and (params | {"version": "standard", "eps": eps}).items() <= ran[attack].params.items()
        for attack, params in standard.items()
    )


def percent(share: float) -> str:
    """A fraction as RobustBench prints it: 0.8534 -> "85.34"."""
    return f"{100 * share:.2f}"
