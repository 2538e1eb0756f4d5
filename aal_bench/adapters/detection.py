"""Object detection: MMDetection's data sets, networks, losses and metrics, MMEngine's Runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from torch import Tensor, nn

from aal_bench import environment
from aal_bench.adapters.attack_stage import Fooled, Saved
from aal_bench.adapters.network import build_network
from aal_bench.adapters.throttled import Throttled
from aal_bench.attacks.detector import DetectorStage
from aal_bench.attacks.stages import Setting
from aal_bench.boxes import Objects
from aal_bench.config import Convention, Detection, Run
from aal_bench.data.subset import some
from aal_bench.detection import mmconfig
from aal_bench.detection.adversarial import Adversarial
from aal_bench.detection.build import raw_outputs
from aal_bench.detection.checked import dropped, sentence
from aal_bench.detection.fingerprint import fingerprint
from aal_bench.detection.layouts import file_names, find
from aal_bench.detection.objective import DetectionObjective
from aal_bench.detection.objects import coco_objects_of, objects_of, objects_sha256
from aal_bench.detection.schedule import check
from aal_bench.detection_evidence import DetectionEvidence
from aal_bench.detection_metrics import means
from aal_bench.errors import UserError
from aal_bench.methods.base import Method
from aal_bench.methods.updates import Plain
from aal_bench.training.loop import Trained


class ObjectDetection:
    """The adapter of detectors. A unit is an image; nothing in it is simply right or wrong."""

    def __init__(self, run: Run, data_dir: Path | None) -> None:
        assert run.task.detection is not None
        self.run, self.task = run, run.task
        self.config: Detection = run.task.detection
        if not self.config.names:
            raise UserError(
                f"task {self.task.name} has no class list of its own: give --classes a,b,c, or"
                " --classes FILE with one name on each line"
            )
        self.images = find(run.task, data_dir)
        self.test = mmconfig.test_set(run, self.images.test[0])
        if environment.rank() == 0:
            self._say()
        self.rows = some(len(self.test), run.limits.eval)
        self._fingerprint = fingerprint(self.test)
        if self.config.coco:  # the objects that are scored, which are the file's own
            _, objects = self._objects(np.arange(len(self.test)))
            self._fingerprint |= {"labels": objects_sha256(objects)}

    def _say(self) -> None:
        """What was dropped of the test split, and what the backbone starts from."""
        for note in self.notes:
            print(f"data      {note}", flush=True)
        start = self.run.pretrained
        told = "from scratch" if start is None else f"{start.path} (sha256 {start.sha256[:8]})"
        print(f"backbone  {told}", flush=True)

    @property
    def notes(self) -> list[str]:
        """What the test split's annotations hold and its evaluation does not."""
        told = sentence("test", dropped(self.test))
        return [] if told is None else [told]

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the whole test split's pixels as fed, and of its objects."""
        return self._fingerprint

    @property
    def examples(self) -> int:
        """Images of the task's whole test split."""
        return len(self.test)

    def check(self, stages: Sequence[str], training: bool) -> None:
        """Refuse, before anything is written, what would fail after hours."""
        for name in stages:
            self.stage(name)
        self.new_evidence()
        if not training:
            return
        for option, given in {
            "--ema": self.run.ema is not None,
            "--compile": self.run.compile,
        }.items():
            if given:
                raise UserError(f"{option} is not offered for detection: omit it")
        if self.task.train.validation and not self.images.validation:
            raise UserError(
                f"task {self.task.name} has no validation split: set train.validation=0, or"
                " detection.validation to one"
            )
        if self.task.train.validation:
            self._enough_to_validate()
        # What is wrong with the training data is said now, not when the folder is begun.
        for part in (*self.images.train, *self.images.validation):
            mmconfig.test_set(self.run, part)
        if self.task.train.checkpoint_every is not None:
            raise UserError(
                "train.checkpoint_every: a detector is saved after every epoch; omit it"
            )
        check(self.task.train)

    def _enough_to_validate(self) -> None:
        """Hold ``train.validation`` to the split's size: COCO's metric counts all of its images."""
        wanted, part = self.task.train.validation, self.images.validation[0]
        path = Path(part["data_root"]) / part["ann_file"]
        if self.config.coco:
            there = len(file_names(path))
        else:
            there = len(path.read_text(encoding="utf-8").split())
        if wanted > there or (self.config.coco and wanted < there):
            raise UserError(
                f"train.validation = {wanted}, but {path.name} has {there} images: set {there}"
            )

    # ---- model and training ------------------------------------------------------------------

    def build(self) -> nn.Module:
        """The run's detector, initialised from its seed."""
        from accelerate.utils import set_seed

        set_seed(self.run.seed)
        return build_network(self.run)

    def objective(self, model: nn.Module) -> DetectionObjective:
        """The detector's whole loss."""
        return DetectionObjective(model)

    def fit(self, method: Method, update: Plain, model: nn.Module, folder: Path) -> Trained:
        """Train with MMEngine's Runner."""
        from aal_bench.detection.train import train

        parts = (self.images.train, self.images.validation, self.images.test)
        config = mmconfig.resolved(self.run, *parts, folder / "mmengine")
        adversarial = Adversarial(method, update, self.run.precision == "bf16", channels_last=True)
        return train(self.run, config, model, adversarial, folder)

    # ---- evaluation --------------------------------------------------------------------------

    @property
    def annotations(self) -> str:
        """Path of the test split's annotation file."""
        return str(self.test.ann_file)

    @property
    def conventions(self) -> list[Convention]:
        """The task's convention, and the others of its evaluator."""
        same = [c for c in get_args(Convention) if c.endswith("coco") == self.config.coco]
        return sorted(same, key=lambda convention: convention != self.config.metric)

    def new_evidence(self) -> DetectionEvidence:
        """One row per test image, with the objects in it."""
        names, objects = self._objects(self.rows)
        return DetectionEvidence(self.rows, names, self.config.names, self.conventions, objects)

    def _objects(self, positions: np.ndarray) -> tuple[list[str], Objects]:
        if self.config.coco:
            return coco_objects_of(self.test, positions, self.annotations, self.config.names)
        return objects_of(self.test, positions)

    def stage(self, name: str) -> DetectorStage:
        """The stage of that name under this task's threat."""
        task = self.task
        setting = Setting(task.threat, task.attack.step, task.data.classes, task.evaluation.seed)
        return DetectorStage(name, setting)

    def memory_format(self, name: str) -> str:
        """Contiguous, in every stage."""
        return "contiguous"

    def run_stage(
        self, name: str, model: nn.Module, evidence: DetectionEvidence, fooled: Fooled, saved: Saved
    ) -> None:
        """Attack every image that `evidence` lacks, and detect.

        Adversarial images are not kept: none of them is simply fooled, so `fooled` is unused.

        Raises:
            RunFailed: the stage failed, or MMDetection's metric says another number than ours.
        """
        from aal_bench.adapters import detection_stage

        throttled = Throttled(saved)
        detection_stage.run(self, self.stage(name), model, evidence, throttled)
        throttled.flush()
        detection_stage.agree(self, name, evidence)

    def told(self, name: str, evidence: DetectionEvidence) -> str:
        """What a stage found, for its line in the terminal."""
        metric = self.config.metric
        return f"mAP {means(evidence, name)[metric]:6.1%}  ({metric}, {len(evidence):,} images)"

    def probe(self, model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """What the head says of images, and a few of them."""
        from aal_bench.adapters.detection_stage import batch_of

        x = batch_of(self, model, self.rows[:2]).x
        return (lambda images: raw_outputs(model, images)), x

    def check_clean(self, evidence: DetectionEvidence) -> None:
        """Refuse a foreign checkpoint that detects nothing.

        Raises:
            UserError: mAP below 1 %.
        """
        found = means(evidence, "clean")[self.config.metric]
        if found < 0.01:
            raise UserError(
                f"clean mAP is {found:.1%}: another order of classes, another normalisation (the"
                " config's mean, std and bgr_to_rgb), or another model?"
            )

    # ---- figures -----------------------------------------------------------------------------

    def figures(self, method: Method, model: nn.Module, folder: Path) -> list[str]:
        """Draw what the report shows; returns paths relative to `folder`."""
        from aal_bench.adapters.detection_figures import draw

        return draw(self, method, model, folder)
