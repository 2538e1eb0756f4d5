"""Typed models of a task and a run; TOML in, unknown keys refused, ``--set`` overrides folded in.

Precedence: command line > recipe > task file. What is stored is always the resolved value.
"""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from aal_bench.errors import UserError, did_you_mean
from aal_bench.hashing import sha256_json
from aal_bench.threat import ExactFraction, Threat, format_fraction

Family = Literal["classification", "detection", "fewshot"]
M = TypeVar("M", bound=BaseModel)
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What torch, numpy and Python all take."""


Augment = Literal["none", "shift", "crop-flip", "jitter-crop-flip", "resized-crop-flip", "ssd"]
"""Augmentations of a training batch; `data.augment` says what each does. ``ssd``: detection's, the
pipeline of its MMDetection config."""
YOUNGER = {
    "optimizer": "sgd",
    "nesterov": False,
    "watch_every": 1,
    "stop_on_overfitting": False,
}
"""Fields of `Train` younger than the first entries on a board, and what they then were: at these
values they are no part of a configuration, so that it keeps its hash."""


class Strict(BaseModel):
    """Frozen, and an unknown key is an error: a mistyped option must never be a silent default."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_in_disguise(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` for 1 and ``"30"`` for 30, which pydantic would convert."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        every = {*(get_args(annotation) or [annotation])}
        if value == "none" and type(None) in every:
            return None  # TOML, and a --set, cannot say it otherwise
        kinds = every - {type(None)}
        if isinstance(value, bool | str) and kinds and kinds <= {int, float}:
            raise ValueError(f"must be a number, got {value!r}")
        return value


class Subset(Strict):
    """A fixed, class-balanced part of the test split that *is* the task's test set."""

    count: int = Field(gt=0)
    seed: Seed = 0


class Data(Strict):
    """Which images, and what is done to them before the model sees [0, 1] pixels."""

    name: str
    """Loader: an embedded set (``digits``) or one on disk (``cifar10``, ``imagenet``, ...)."""
    classes: int = Field(ge=1)
    """Of the training split; a few-shot task's other splits have other classes. Two at least, but
    for detection."""
    size: int = Field(gt=0)
    """Side of the square images fed to the model, in pixels."""
    resize: int | None = None
    """Shorter side before the centre crop, for images of varying size; None: must already fit."""
    subset: Subset | None = None
    fingerprints: dict[str, str] = {}
    """Known sha256 of the test pixels as fed -> where those pixels come from."""
    labels: dict[str, str] = {}
    """Known pixels' sha256 -> sha256 of their labels."""


class Attack(Strict):
    """Step of every multi-step attack, and steps of the training's; the budget is the threat's."""

    step: ExactFraction = Field(gt=0)
    steps: int = Field(default=10, ge=1)


class Train(Strict):
    """Schedule and optimiser, equal for every method so that rows compare."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["cosine", "onecycle", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    """``step`` only: fractions of training at which the rate is multiplied by `decay`."""
    decay: float | tuple[float, ...] = 0.1
    """``step`` only: the factor of every milestone, or one for each of them."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    optimizer: Literal["sgd", "adam"] = "sgd"
    """``adam``: momentum is its beta1, and weight decay the L2 term in the gradient."""
    nesterov: bool = False
    augment: Augment = "crop-flip"
    pad: int = Field(default=4, ge=0)
    """Zero padding on every side before the random crop of every augmentation that shifts."""
    validation: int = Field(default=0, ge=0)
    """*Training* images held out, class-balanced, for selection; 0: keep "last" only.
    Few-shot: episodes on the classes of the validation split. Detection: images of that split."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint is evaluated; ``best``: highest PGD accuracy on the held-out part
    (few-shot: highest accuracy on the validation episodes; detection: highest mAP)."""
    validation_seed: Seed = 0
    validate_every: int = Field(default=1, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Also write a resumable checkpoint every so many steps; None: at the end of epochs only."""
    grad_clip: float | None = Field(default=None, gt=0)
    watch_every: int = Field(default=1, ge=0)
    """Epochs between two looks for catastrophic overfitting (`training.overfitting`); 0: none.
    Of classification, and of methods that attack."""
    stop_on_overfitting: bool = False
    """Whether training then ends the run, with an error, rather than with a warning."""

    @model_validator(mode="after")
    def _selectable(self) -> Train:
        if self.select == "best" and not self.validation:
            raise ValueError('select = "best" needs held-out images: set validation')
        return self

    @model_validator(mode="after")
    def _stops_on_what_it_sees(self) -> Train:
        if self.stop_on_overfitting and not self.watch_every:
            raise ValueError("stop_on_overfitting needs watch_every of 1 or more")
        return self

    @model_validator(mode="after")
    def _one_factor_each(self) -> Train:
        if min(self.factors, default=1.0) <= 0 or (self.decay == max(self.factors, default=0) > 1):
            raise ValueError(f"decay must be positive, and one number at most 1: {self.decay}")
        if isinstance(self.decay, tuple) and len(self.decay) != len(self.milestones):
            raise ValueError(
                f"decay has {len(self.decay)} factors for {len(self.milestones)} milestones"
            )
        return self

    @property
    def factors(self) -> tuple[float, ...]:
        """``step`` only: by what the rate is multiplied at each milestone."""
        if isinstance(self.decay, tuple):
            return self.decay
        return (self.decay,) * len(self.milestones)


class Evaluation(Strict):
    """The fixed partition and seed of every attack: they are part of the question."""

    batch_size: int = Field(default=512, ge=1)
    seed: Seed = 0


class Episodes(Strict):
    """Few-shot only: the fixed list of episodes that is the task's test, and how it is answered."""

    ways: int = Field(default=5, ge=2)
    """K: classes of an episode."""
    shots: int = Field(default=1, ge=1)
    """Labelled images of each class: the support set."""
    queries: int = Field(default=15, ge=1)
    """Images of each class to classify."""
    count: int = Field(default=2000, ge=1)
    """Episodes; a shorter list of one seed begins a longer one."""
    seed: Seed = 0
    """Of the list of episodes, and of the augmented copies of the support images."""
    rotations: bool = False
    """Each class turned by 90, 180 and 270 degrees is a class of its own (Santoro et al. 2016)."""
    copies: int = Field(default=5, ge=1)
    """Augmented copies of each support image that logistic regression is fitted to (RFS)."""
    augment: Augment = "none"
    """Augmentation of these copies; ``none``: the support images themselves, once."""
    pad: int = Field(default=4, ge=0)
    """Zero padding of that augmentation."""


Convention = Literal["map50_voc11", "map50_area", "map_coco", "map50_coco", "map75_coco"]
"""Mean average precision and how it is taken: at IoU 0.5, of 11 recalls (VOC 2007) or of the whole
area under the curve (VOC 2010 on); COCO's mean over IoU 0.50:0.95, or its one at 0.5 or 0.75."""


class Detection(Strict):
    """Detection only: the classes, the splits, the metric and the MMDetection config."""

    names: tuple[str, ...] = ()
    """Class names; their order is the order of the labels."""
    metric: Convention
    """The convention of the headline; those of the same evaluator are measured beside it."""
    config: str
    """Which of ``tasks/detection/<model>_<config>.py`` is the MMDetection config."""
    train: str
    """Split to train on: a file of ``ImageSets/Main`` without its ending, or a COCO file."""
    validation: str | None = None
    """Split to select on, where ``train.validation`` is not 0."""
    test: str
    """Split to evaluate on."""
    base_batch: int = Field(default=32, ge=1)
    """The batch that ``train.lr`` is for: the rate is scaled by batch / base_batch."""
    repeat: int = Field(default=1, ge=1)
    """How often an epoch goes through the training images (MMDetection's ``RepeatDataset``)."""

    @property
    def coco(self) -> bool:
        """Whether annotations and metric are COCO's; else VOC's."""
        return self.metric.endswith("coco")


class Pretrained(Strict):
    """Weights that a backbone starts from."""

    path: str
    """The file, as typed; no part of the configuration."""
    sha256: str


class Normalisation(Strict):
    """Per-channel mean and standard deviation of a layer inside the model; inputs stay [0, 1]."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _positive(self) -> Normalisation:
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class Task(Strict):
    """One file of ``tasks/``: a question, and the recipe by which methods compete for it."""

    name: str
    title: str
    family: Family = "classification"
    version: str = "1.0"
    data: Data
    threat: Threat
    attack: Attack
    train: Train
    model: str
    protocol: str = "full"
    evaluation: Evaluation = Evaluation()
    episodes: Episodes | None = None
    """Of a few-shot task, and of no other."""
    detection: Detection | None = None
    """Of a detection task, and of no other."""
    normalisation: Normalisation = Normalisation()
    paper: dict[str, str] = {}
    """Names this task has in published tables: ``dataset`` (the papers'), ``robustbench``."""

    @model_validator(mode="after")
    def _episodic(self) -> Task:
        if (self.family == "fewshot") != (self.episodes is not None):
            raise ValueError('family = "fewshot" and the table [episodes] go together')
        return self

    @model_validator(mode="after")
    def _detecting(self) -> Task:
        if (self.family == "detection") != (self.detection is not None):
            raise ValueError('family = "detection" and the table [detection] go together')
        if self.detection is None and self.data.classes < 2:
            raise ValueError(f"data.classes = {self.data.classes}: two at least")
        if (self.train.augment == "ssd") > (self.detection is not None):
            raise ValueError('train.augment = "ssd" is for detection')
        if self.detection is None:
            return self
        if self.detection.coco != (self.data.name == "coco"):
            raise ValueError(
                f"detection.metric = {self.detection.metric!r} does not fit data.name ="
                f" {self.data.name!r}: map_coco and its kin are for COCO files"
            )
        if self.train.augment not in {"ssd", "none"}:
            raise ValueError("train.augment of detection is ssd or none")
        names = self.detection.names
        if len(set(names)) != len(names) or len(names) not in {0, self.data.classes}:
            raise ValueError(
                f"detection.names are {self.data.classes} different classes, got {len(set(names))}"
            )
        return self

    @property
    def id(self) -> str:
        """The name of its board: ``mini-imagenet-5w1s`` for a few-shot task."""
        if self.episodes is None:
            return self.name
        return f"{self.name}-{self.episodes.ways}w{self.episodes.shots}s"

    @property
    def ways(self) -> int:
        """How many classes a prediction chooses among: an episode's, or the data set's."""
        return self.data.classes if self.episodes is None else self.episodes.ways

    def question(self, fingerprint: dict[str, str]) -> dict[str, Any]:
        """What makes two rows answers to the same question; `fingerprint` of pixels and labels."""
        question: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "family": self.family,
            "data": self.data.model_dump(mode="json", exclude={"fingerprints", "labels"}),
            "threat": self.threat.model_dump(mode="json"),
            # PGD with another step is another attack, and a tiny one makes any model look robust.
            "step": format_fraction(self.attack.step),
            "evaluation": self.evaluation.model_dump(mode="json"),
            "fingerprint": fingerprint,
        }
        if self.episodes is not None:
            question["episodes"] = self.episodes.model_dump(mode="json")
        if self.detection is not None:
            asked = {"names", "metric", "test"}
            question["detection"] = self.detection.model_dump(mode="json", include=asked)
        return question

    def hash(self, fingerprint: dict[str, str]) -> str:
        """The task_hash: rows are ranked together only where it is equal."""
        return sha256_json(self.question(fingerprint))


class Crafting(Strict):
    """The training attack, where it is not the evaluation's; None: the task's."""

    eps: ExactFraction | None = Field(default=None, gt=0, le=1)
    """Budget of training in pixel units; the test's stays the task's."""
    step: ExactFraction | None = Field(default=None, gt=0, le=1)
    steps: int | None = Field(default=None, ge=1)


class Choice(Strict):
    """A registered (or ``module:Class``) name and its resolved options."""

    name: str
    options: dict[str, Any] = {}
    source: str | None = None
    """sha256 of the file that defines a ``module:Class``: other code is another configuration."""

    def identity(self) -> dict[str, Any]:
        """What `Run.identity` keeps: ``path/to/file.py:Class`` without its path."""
        kept = {"name": self.name.rpartition("/")[2], "options": self.options}
        return kept if self.source is None else kept | {"source": self.source}


class Limits(Strict):
    """Cuts for development; a limit on evaluation is never eligible for a leaderboard."""

    train: int | None = Field(default=None, ge=1)
    eval: int | None = Field(default=None, ge=1)


class Run(Strict):
    """Everything that decides what a run computes, resolved."""

    task: Task
    method: Choice
    update: Choice = Choice(name="plain")
    model: Choice
    protocol: str
    limits: Limits = Limits()
    seed: Seed = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    ema: float | None = Field(default=None, gt=0, lt=1)
    crafting: Crafting | None = None
    """What a recipe or ``--set crafting.*`` changes of the training attack."""
    recipe: str | None = None
    """Whose settings were asked for; what they came to is in the other fields."""
    pretrained: Pretrained | None = None
    """Weights that the backbone starts from; None: from scratch."""
    smoke: bool = False
    audit: Literal["none", "quick", "full"] = "none"
    """Budget of the audit: it changes no number, and is no part of the configuration's hash."""

    def identity(self) -> dict[str, Any]:
        """The configuration without seed, paths and device: what `hash` covers."""
        tree = self.model_dump(mode="json", exclude={"seed", "device", "recipe", "audit"})
        tree |= {key: getattr(self, key).identity() for key in ("method", "update", "model")}
        for cosmetic in ("title", "paper"):
            tree["task"].pop(cosmetic)
        for known in ("fingerprints", "labels"):
            tree["task"]["data"].pop(known)
        train = tree["task"]["train"]
        for field, then in YOUNGER.items():
            if train[field] == then:
                train.pop(field)
        for optional in ("episodes", "detection"):
            if tree["task"][optional] is None:
                tree["task"].pop(optional)
        for optional in ("pretrained", "crafting"):
            if tree[optional] is None:
                tree.pop(optional)
        if self.pretrained is not None:
            tree["pretrained"].pop("path")
        return tree

    @property
    def training_attack(self) -> tuple[Fraction, Fraction, int]:
        """eps, step size and steps that training crafts with, exact, in pixel units."""
        own = self.crafting or Crafting()
        return (
            own.eps or self.task.threat.eps,
            own.step or self.task.attack.step,
            own.steps or self.task.attack.steps,
        )

    def hash(self) -> str:
        """The config_hash, which names the run's folder."""
        return sha256_json(self.identity())


_BRANCH = re.compile(r"(constrained-)?(float|int|str|bool)|(tuple|literal|function-\w+)\[.*\]")


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> UserError:
    """Turn a pydantic error into one line that names the key, what is wrong and the near keys."""
    # A mistyped key is missing under its right name too: the mistyping is what to mend.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    # pydantic names the branches of a union as if they were keys.
    key = ".".join(str(part) for part in first["loc"] if not _BRANCH.fullmatch(str(part)))
    if first["type"] == "extra_forbidden":
        return UserError(f"{where}: unknown key '{key}'.{_near_key(model, first['loc'])}")
    message = shorten(first["msg"].removeprefix("Value error, "), 160)
    told = first["type"] in {"missing", "value_error"}
    shown = "" if told else f" (got {shorten(repr(first['input']))})"
    return UserError(f"{where}: {key}: {message}{shown}" if key else f"{where}: {message}{shown}")


def shorten(text: str, width: int = 60) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _near_key(model: Any, loc: tuple[int | str, ...]) -> str:
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        kinds = [field.annotation, *get_args(field.annotation)] if field is not None else []
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    known = list(getattr(model, "model_fields", {}))
    return did_you_mean(str(loc[-1]), known) or (f" Known: {', '.join(known)}." if known else "")


def parse(model: type[M], tree: dict[str, Any], where: str) -> M:
    """Validate `tree` as `model`; `where` opens the error.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise explain(error, where, model) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it cannot be read, or is not TOML (the position is named).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def read_task(path: Path) -> Task:
    """Read one task file; its name must be the file's."""
    tree = read_toml(path)
    task = parse(Task, tree, str(path.name))
    if task.name != path.stem:
        raise UserError(f"{path.name}: name = {task.name!r}, but the file is named {path.stem!r}")
    return task


def parse_value(text: str) -> Any:
    """Read the right side of ``--set key=value`` as TOML where it is TOML, else as a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def set_path(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Assign ``a.b.c`` in a nested dict, creating tables on the way."""
    *parents, leaf = dotted.split(".")
    node = tree
    for part in parents:
        if node.get(part) is None:  # an optional table that the task leaves out
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(f"--set {dotted}: '{part}' is a value, not a table")
    node[leaf] = value


def differing(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two JSON trees differ."""
    names: list[str] = []
    for key in sorted({*a, *b}):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            names += differing(left, right, f"{prefix}{key}.")
        elif left != right:
            names.append(f"{prefix}{key}")
    return names
