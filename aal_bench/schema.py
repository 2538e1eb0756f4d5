"""The typed blocks of a result record; `results.Result` is made of them. No torch.

A record is the project's public format: a field's meaning is the docstring under it, and appears in
the JSON schema (`Result.model_json_schema()`). Accuracies are fractions in [0, 1].
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from aal_bench.config import Convention, Episodes, Family, Strict
from aal_bench.threat import TOLERANCE, ExactFraction

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Status = Literal["success", "error", "cancelled", "started"]


class Block(Strict):
    """Base of every block: unknown keys are errors, NaN and infinity too."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


class Failure(Block):
    """Why a run or a stage did not succeed."""

    stage: str
    """``train``, or the evaluation stage."""
    type: str
    """The exception's class."""
    message: str
    """Its message, one line."""


class TaskBlock(Block):
    """Which question was asked."""

    id: str
    """The leaderboard's folder: the task's name, with ways and shots of a few-shot task."""
    version: str
    """The task file's version."""
    family: Family
    """What kind of units are evaluated."""
    hash: Sha256
    """task_hash: rows are ranked together only where it is equal."""
    classes: int = Field(ge=1)
    """Number of classes (few-shot: of an episode): AutoAttack's number of targets follows."""
    examples: int = Field(ge=1)
    """Size of the task's whole test set: images, or episodes."""
    episodes: Episodes | None = None
    """The list of episodes of a few-shot task; absent for any other."""

    @property
    def rows(self) -> int:
        """Rows of its whole evidence: images, or the query images of every episode."""
        return self.examples * (self.queries or 1)

    @property
    def queries(self) -> int | None:
        """Query images of an episode; None: no few-shot task."""
        return None if self.episodes is None else self.episodes.ways * self.episodes.queries

    @property
    def unit(self) -> str:
        """What `examples` counts: ``images`` or ``episodes``."""
        return "images" if self.episodes is None else "episodes"

    @model_validator(mode="after")
    def _episodic(self) -> TaskBlock:
        if (self.family == "fewshot") != (self.episodes is not None):
            raise ValueError("family fewshot and the block episodes go together")
        if self.episodes is None:
            return self
        if (self.classes, self.examples) != (self.episodes.ways, self.episodes.count):
            raise ValueError(
                f"{self.classes} classes and {self.examples} examples are not the episodes'"
                f" {self.episodes.ways} ways and {self.episodes.count} episodes"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent(dump(self), "episodes")


class ThreatBlock(Block):
    """What the attacker may do, in pixel units."""

    norm: Literal["Linf", "L2"]
    """Norm of the perturbation."""
    eps: ExactFraction
    """Budget as an exact fraction: ``8/255``."""
    box: tuple[float, float] = (0.0, 1.0)
    """Range of valid pixels."""
    targeted: bool = False
    """True when a prediction must become a given class to count as fallen."""


class Checkpoint(Block):
    """The evaluated weights."""

    sha256: Sha256
    """Of the file."""
    bytes: Count
    """Size of the file."""
    format: Literal["safetensors", "torch"]
    """``torch``: loadable with ``weights_only=True``."""
    url: str | None = None
    """Where anybody can fetch it; required from verification level 3 on."""


class NormalisationBlock(Block):
    """Per-channel statistics of the layer inside the model."""

    mean: tuple[float, ...]
    """Subtracted from [0, 1] pixels."""
    std: tuple[float, ...]
    """Divided by."""


class ModelBlock(Block):
    """What was attacked."""

    name: str
    """The registered name (``wrn-34-10``), or ``module:builder``."""
    architecture: str
    """As RobustBench writes it: ``WideResNet-34-10``."""
    parameters: Count | None = None
    """Counted by the harness, surgery included."""
    macs: Count | None = None
    """Multiply-accumulates of one forward pass of one image."""
    checkpoint: Checkpoint | None = None
    """None while training has not finished."""
    loader: str | None = None
    """``module:function`` that rebuilds the model."""
    source: Sha256 | None = None
    """Of the MMDetection config that describes it, bases included; absent for any other."""
    surgery: dict[str, Any] | None = None
    """Method and options that put a gate into the network or answer its episodes; None: as the
    toolkit has it."""
    normalisation: NormalisationBlock | None = None
    """None: the model takes [0, 1] pixels as they are."""
    license: str | None = None
    """SPDX name of the weights' licence."""
    forward_passes: int = Field(1, ge=1)
    """Forward passes per prediction: above 1 for ensembles."""
    deterministic_forward: bool | None = None
    """Measured: two forwards of the same images agree bit by bit."""
    optimises_at_inference: bool = False
    """Declared: the model runs an optimisation of its own when it predicts."""

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent(dump(self), "source")


class DataSource(Block):
    """One source of training images."""

    name: str
    """Data set."""
    role: Literal["train", "extra", "synthetic"] = "train"
    """``extra`` and ``synthetic`` make `additional_data` true."""
    count: Count
    """Images used."""
    url: str | None = None
    """Where they come from."""


class Selection(Block):
    """Which checkpoint of the training was evaluated, and how it was chosen."""

    split: Literal["last", "validation"]
    """``last``: no choice; ``validation``: by a held-out part of the training split. Never test."""
    metric: str | None = None
    """What the choice maximised."""
    size: Count = 0
    """Images held out for it, or validation episodes."""


class Passes(Block):
    """Hardware-independent cost."""

    forward: float = Field(ge=0)
    """Forward passes."""
    backward: float = Field(ge=0)
    """Backward passes."""


class Code(Block):
    """A state of a repository."""

    version: str | None = None
    """The package's version."""
    origin: str | None = None
    """The repository's address."""
    commit: str | None = None
    """The commit's hash."""
    dirty: bool | None = None
    """Uncommitted changes: caps the verification at level 1."""


class Training(Block):
    """How the weights came about; absent for somebody else's checkpoint."""

    method: str
    """The method's name."""
    method_version: str
    """Version of the package that trained."""
    config: dict[str, Any]
    """The resolved configuration."""
    config_hash: Sha256
    """Of `config`: without seed, paths and device."""
    data: list[DataSource]
    """Every source of training images."""
    seeds: list[int]
    """This row's seed; other seeds are `siblings`."""
    siblings: list[str] = Field(default_factory=list)
    """Empty in an entry: a board finds the other seeds of a configuration by `config_hash`."""
    selection: Selection
    """How the evaluated checkpoint was chosen."""
    epochs: Count | None = None
    """Epochs trained."""
    steps: Count | None = None
    """Optimiser steps."""
    wall_seconds: float = Field(ge=0)
    """Seconds of training."""
    gpu: str | None = None
    """Accelerator's name; None: CPU."""
    gpu_count: Count = 0
    """Accelerators used."""
    peak_memory_bytes: Count | None = None
    """Most memory that training held."""
    passes: Passes | None = None
    """Passes per image and epoch."""
    code: Code = Code()
    """The state of the code that trained."""


class Implementation(Block):
    """Whose code attacked."""

    package: str
    """Distribution's name."""
    version: str | None = None
    """Its version."""
    commit: str | None = None
    """Upstream commit, where the distribution repackages one."""


class MaxViolation(Block):
    """How far any adversarial left its bounds; at most 1e-6, which is float32 rounding."""

    norm: float = Field(ge=0)
    """Excess over eps."""
    box: float = Field(ge=0)
    """Excess over the valid pixel range."""


class StageRecord(Block):
    """One stage of the evaluation, with everything needed to repeat it."""

    attack: str
    """The stage's name: ``clean``, ``pgd-10``, ``apgd-ce``."""
    implementation: Implementation
    """Whose code attacked."""
    params: dict[str, Any]
    """Every parameter, defaults included; eps and steps as exact fractions."""
    seed: int
    """Seed set before every batch."""
    batch_size: int = Field(ge=1)
    """Images per batch."""
    partition: str
    """How images were cut into batches: ``survivors-in-index-order``."""
    n_in: Count
    """Images attacked, or queries of all episodes."""
    n_out: Count | None = None
    """Of these, how many are still correct; absent for detection, where no image has a verdict."""
    dtype: str = "float32"
    """Arithmetic of the attack."""
    tf32: bool = False
    """Reduced-precision matrix products allowed."""
    deterministic: bool = True
    """Deterministic kernels requested."""
    compiled: bool = False
    """Through ``torch.compile``."""
    memory_format: str = "contiguous"
    """Layout of the images in memory."""
    wall_seconds: float = Field(ge=0)
    """Seconds spent."""
    forwards: float = Field(ge=0)
    """Mean forward passes per attacked image or query."""
    backwards: float = Field(ge=0)
    """Mean backward passes per attacked image or query."""
    max_violation: MaxViolation
    """Worst adversarial of the stage."""
    status: Status = "success"
    """An attack that raised is an error, never robust."""
    error: Failure | None = None
    """Why not success."""

    @model_validator(mode="after")
    def _sound(self) -> StageRecord:
        if self.n_out is not None and self.n_out > self.n_in:
            raise ValueError(f"stage {self.attack}: {self.n_out} survive of {self.n_in} attacked")
        if self.status == "success" and max(self.max_violation.norm, self.max_violation.box) > (
            TOLERANCE
        ):
            raise ValueError(f"stage {self.attack} left its bounds, yet its status is success")
        if (self.status == "error") != (self.error is not None):
            raise ValueError(f"stage {self.attack}: status {self.status} and error disagree")
        return self

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent(dump(self), "n_out")


class Measure(Block):
    """A share of the evaluated images, or a mean over episodes or over the classes detected."""

    value: Share
    """k / n; few-shot: the mean over episodes of an episode's share of queries; detection: the mean
    over classes of average precision."""
    n: int = Field(ge=1)
    """Images, or episodes."""
    ci95: tuple[Share, Share]
    """Wilson interval; few-shot: Student's t interval of the mean, within [0, 1]; detection:
    percentile bootstrap over images."""

    @model_validator(mode="after")
    def _ordered(self) -> Measure:
        if not self.ci95[0] <= self.value <= self.ci95[1]:
            raise ValueError(f"{self.value} lies outside its interval {list(self.ci95)}")
        return self


class EpisodeMetrics(Block):
    """What a mean over episodes leaves out."""

    n: int = Field(ge=1)
    """Episodes."""
    queries: int = Field(ge=1)
    """Query images of each."""
    sd: dict[str, Share | None]
    """``clean``, ``robust``, ``autoattack`` or stage -> sample standard deviation of the episodes'
    accuracies (n - 1 in the divisor); null for one episode."""


class DetectionMetrics(Block):
    """What one mean average precision leaves out."""

    conventions: list[Convention] = Field(min_length=1)
    """How the means are taken, the headline first: it is what `Metrics` states."""
    stages: dict[str, dict[Convention, Measure]]
    """Stage, ``clean`` among them -> convention -> mean average precision."""
    classes: dict[str, dict[str, Share | None]]
    """Stage -> class -> average precision in the headline's convention; null: the class has no
    object."""
    objects: dict[str, Count]
    """Class -> objects that count (neither difficult nor a crowd)."""
    samples: int = Field(ge=1)
    """Resamples of the images behind the intervals."""
    seed: Count
    """Seed of their draw."""

    @model_validator(mode="after")
    def _whole(self) -> DetectionMetrics:
        named = set(self.conventions)
        if len(named) != len(self.conventions) or any(
            named != set(s) for s in self.stages.values()
        ):
            raise ValueError(f"every stage is measured once in each of {self.conventions}")
        if self.classes.keys() != self.stages.keys():
            raise ValueError("stages and classes name different stages")
        if any(found.keys() != self.objects.keys() for found in self.classes.values()):
            raise ValueError("classes and objects name different classes")
        return self


class Metrics(Block):
    """What the evidence says; every number is recomputable from it."""

    clean: Measure
    """Accuracy without attack; detection: mean average precision, in the headline's convention."""
    robust: Measure | None = None
    """Share correct without attack and under every stage (AND per sample); absent where a few-shot
    protocol has no attack, and for detection, where no image has a verdict."""
    stages: dict[str, Measure]
    """Stage -> share correct without attack and under it; AutoAttack's are cumulative. Detection:
    mean average precision under it."""
    autoattack: Measure | None = None
    """AND of clean and AutoAttack's four, where all four ran."""
    episodes: EpisodeMetrics | None = None
    """Of a few-shot run; absent for any other."""
    detection: DetectionMetrics | None = None
    """Of a detection run; absent for any other."""

    @model_validator(mode="after")
    def _whole(self) -> Metrics:
        if self.detection is not None:
            return self._detecting(self.detection)
        if self.robust is None and (self.episodes is None or self.stages):
            raise ValueError("robust is missing")
        if self.episodes is not None and self.episodes.n != self.clean.n:
            raise ValueError(f"{self.episodes.n} episodes, but clean is over {self.clean.n}")
        return self

    def _detecting(self, detection: DetectionMetrics) -> Metrics:
        if (self.robust, self.autoattack, self.episodes) != (None, None, None):
            raise ValueError("detection has no robust, autoattack or episodes: no image stands")
        headline = detection.conventions[0]
        found = {stage: means[headline] for stage, means in detection.stages.items()}
        if found != {"clean": self.clean, **self.stages}:
            raise ValueError(f"clean and stages are not {headline} of detection.stages")
        return self

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent(dump(self), "robust", "episodes", "detection")


class EvidenceFile(Block):
    """The per-sample table beside the record."""

    path: str | None = None
    """Relative to the record."""
    url: str | None = None
    """Where it is, when it is too large to lie beside the record."""
    sha256: Sha256
    """Of the file."""
    format: str
    """Format and version, as the file itself states."""
    rows: Count
    """Images, or the query images of every episode."""
    columns: list[str]
    """Stored columns."""
    dataset_fingerprint: dict[str, str]
    """sha256 of the test pixels as fed, of the labels and, few-shot, of the list of episodes."""


class Adversarials(Block):
    """Stored adversarials of fooled images: they make the non-robust part replayable."""

    path: str | None = None
    """Relative to the record."""
    url: str | None = None
    """Where anybody can fetch them; required from verification level 2 on."""
    sha256: Sha256
    """Of the file."""
    dtype: str
    """Of the stored pixels."""
    count: Count
    """Images."""


class Environment(Block):
    """What the numbers were measured with."""

    python: str
    """Interpreter version."""
    torch: str | None
    """torch version."""
    platform: str | None = None
    """Operating system."""
    cpu: str | None = None
    """Processor."""
    threads: int | None = None
    """Threads that torch used."""
    cuda: str | None = None
    """CUDA version; None: not used."""
    cudnn: int | str | None = None
    """cuDNN version."""
    gpu: str | None = None
    """Accelerator's name; None: CPU."""
    gpu_count: Count = 0
    """Accelerators visible."""
    driver: str | None = None
    """Driver version."""
    packages: dict[str, str]
    """Toolkit -> version."""
    lock_sha256: Sha256 | None = None
    """Of requirements.lock."""
    aal_bench: Code
    """The state of this package."""


class Flag(Block):
    """One finding of the audit or of an attack's own checks."""

    code: str
    """The check's name."""
    severity: Literal["note", "warning", "unreliable"]
    """``unreliable`` makes the whole entry so."""
    value: float | str | None = None
    """What was measured."""
    threshold: float | str | None = None
    """What the rule allows."""
    note: str = ""
    """One sentence for a reader."""


class AuditBlock(Block):
    """What the audit of the run came to; every check is in its file."""

    path: str | None = None
    """Relative to the record."""
    sha256: Sha256
    """Of the file."""
    budget: Literal["quick", "full"]
    """How much was spent."""
    images: Count
    """Images audited, or queries of episodes."""
    passed: Count
    """Checks that passed."""
    failed: list[str]
    """Names of the checks that failed; each is a flag as well."""
    not_applicable: Count
    """Checks that do not apply."""
    not_decided: Count
    """Checks on too few images to be significant."""


class Event(Block):
    """One thing that happened to an entry; what it said before stays on record."""

    at: str
    """When, RFC 3339."""
    by: str
    """Who."""
    event: Literal["submitted", "amended", "replaced", "verified", "reattacked", "challenged"]
    """``amended``: other metadata of the same run; ``replaced``: by another run; ``reattacked`` and
    ``challenged`` add a stage."""
    level: int = Field(ge=0, le=4)
    """The level that the entry had afterwards."""
    run_hash: Sha256 | None = None
    """The run that the entry held until then (``replaced``), or holds."""
    checkpoint: Sha256 | None = None
    """The weights that the entry held until then (``replaced``)."""
    autoattack_acc: str | None = None
    """Percent, before a replacement."""
    external: str | None = None
    """Percent, before this event; null: it had none."""
    stage: str | None = None
    """Name of the stage that was added."""
    fallen: Count | None = None
    """Images that stood before and fell now."""
    note: str = ""
    """One sentence."""


class Verification(Block):
    """Set by maintainers; a submitter may not claim more than level 1."""

    level: int = Field(0, ge=0, le=4)
    """0 well-formed, 1 recomputed, 2 replayed, 3 re-evaluated, 4 contested or adaptive."""
    by: str | None = None
    """Who verified."""
    date: str | None = None
    """When, RFC 3339."""
    seed: int | None = None
    """Seed of the re-evaluation, drawn after the submission."""
    report_sha256: Sha256 | None = None
    """Of the verification's report."""
    history: list[Event] = Field(default_factory=list)
    """What happened to the entry, oldest first."""


def _without_absent(tree: dict[str, Any], *names: str) -> dict[str, Any]:
    """`tree` without those of `names` that are None: younger fields, that older records lack."""
    return {key: value for key, value in tree.items() if key not in names or value is not None}
