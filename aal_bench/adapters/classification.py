"""Image classification: labelled images, cross-entropy, torchattacks and AutoAttack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from aal_bench import registry
from aal_bench.adapters.attack_stage import Fooled, Saved, Victim, run_stage
from aal_bench.adapters.method import build_method, join_companions
from aal_bench.adapters.network import build_network, probe
from aal_bench.attacks.linf import attacking, linf_pgd, uniform_start
from aal_bench.attacks.stages import Setting, Stage
from aal_bench.config import Run, Task
from aal_bench.data.load import load
from aal_bench.data.splits import Split
from aal_bench.data.subset import hold_out, some
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.methods.base import Method, Objective, fp32
from aal_bench.methods.updates import Plain
from aal_bench.models.build import Classifier
from aal_bench.training.loop import Loop, Trained
from aal_bench.training.loop import Setting as LoopSetting


def cross_entropy(model: nn.Module) -> Objective:
    """The objective of classification: CE in float32, whatever the network's autocast type."""

    def objective(x: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return functional.cross_entropy(fp32(model(x)), targets, reduction=reduction)

    return objective


def make_stage(name: str, task: Task) -> Stage:
    """Build a stage of a protocol from the registry's table."""
    found = registry.find("attack", name)
    if task.family not in found.row.families:
        raise UserError(f"attack {name} serves {', '.join(found.row.families)}, not {task.family}")
    setting = Setting(task.threat, task.attack.step, task.ways, task.evaluation.seed)
    return registry.load(found.row.target)(name, setting, *found.numbers)


def limited(split: Split, count: int | None) -> Split:
    """`count` images from everywhere in `split`: some sets are stored class by class.

    The choice is the same on every machine, and a smaller one lies within a larger one.
    """
    if count is None or count >= len(split):
        return split
    return split.subset(torch.from_numpy(some(len(split), count)))


class Classification:
    """The adapter of `Data` sets with labels."""

    def __init__(self, run: Run, data_dir: Path | None) -> None:
        self.run, self.task = run, run.task
        self.images = load(run.task, data_dir)
        self.test = limited(self.images.test, run.limits.eval)

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the whole test set's pixels and labels: a limit keeps the question."""
        return self.images.fingerprint

    @property
    def examples(self) -> int:
        """Images of the task's whole test set."""
        return len(self.images.test)

    def check(self, stages: Sequence[str], training: bool) -> None:
        """Refuse, before anything is written, a stage or a held-out part that cannot be."""
        for name in stages:
            self.stage(name)
        if training:
            images, train = len(self.training_split()[0]), self.task.train
            self._enough_for_a_batch(images)
            method = build_method(self.run)
            side = self.task.data.size + (0 if train.augment == "none" else 2 * train.pad)
            method.check(self.task.data.classes, images, (3, side, side))
            # A teacher that cannot be built is found now, not after the run was begun.
            join_companions(self.run, method)

    def _enough_for_a_batch(self, images: int) -> None:
        name, size = self.run.method.name, self.task.train.batch_size
        least = registry.load(registry.method_row(name).target).least_batch
        smallest = images % size or min(images, size)
        if smallest < least:
            raise UserError(
                f"method {name} needs batches of {least} images at least; {images} training images"
                f" in batches of {size} end with one of {smallest}: choose another --batch-size"
            )

    # ---- model and training ------------------------------------------------------------------

    def build(self) -> Classifier:
        """The run's network, initialised from its seed."""
        from accelerate.utils import set_seed

        set_seed(self.run.seed)
        return build_network(self.run)

    def objective(self, model: nn.Module) -> Objective:
        """Cross-entropy."""
        return cross_entropy(model)

    def training_split(self) -> tuple[Split, Split | None]:
        """The training images, limited and without the held-out part, and the held-out part."""
        options, train = self.task.train, self.images.train
        held: Split | None = None
        if options.validation:
            rest, out = hold_out(train.labels.numpy(), options.validation, options.validation_seed)
            held = train.subset(torch.from_numpy(out))
            train = train.subset(torch.from_numpy(rest))
        return limited(train, self.run.limits.train), held

    def fit(self, method: Method, update: Plain, model: nn.Module, folder: Path) -> Trained:
        """Train in the common loop."""
        train, held = self.training_split()
        join_companions(self.run, method)
        setting = LoopSetting(
            run=self.run,
            model=model,
            method=method,
            update=update,
            make_objective=self.objective,
            train=train,
            validate=self._validator(held, method) if held is not None and len(held) else None,
            folder=folder,
        )
        return Loop(setting).fit()

    def _validator(self, held: Split, method: Method) -> Callable[[nn.Module], dict[str, float]]:
        task, device = self.task, torch.device(self.run.device)

        def validate(model: nn.Module) -> dict[str, float]:
            """Clean and PGD accuracy on the held-out part of the *training* data.

            An image stands that stands against PGD on every objective: CE, and the method's own
            `weaknesses`.
            """
            torch.manual_seed(task.train.validation_seed)
            objective = cross_entropy(model)
            clean = robust = 0
            for images in held.batches(
                torch.arange(len(held)), 250, augment="none", pad=0, seed=0, device=device
            ):
                x, y = images.x.contiguous(memory_format=torch.channels_last), images.y
                with (
                    attacking(model, bn="eval"),
                    torch.autocast(
                        device.type, torch.bfloat16, enabled=self.run.precision == "bf16"
                    ),
                ):
                    standing = torch.ones_like(y, dtype=torch.bool)
                    plain = partial(objective, targets=y, reduction="sum")
                    for maximised in (plain, *method.weaknesses(model, y)):
                        x_adv = linf_pgd(
                            maximised,
                            x,
                            uniform_start(x, task.threat.radius),
                            task.threat.radius,
                            float(task.attack.step),
                            task.attack.steps,
                        )
                        with torch.no_grad():
                            standing &= model(x_adv).argmax(1) == y
                    with torch.no_grad():
                        clean += int((model(x).argmax(1) == y).sum())
                    robust += int(standing.sum())
            return {"val_clean": clean / len(held), "val_pgd": robust / len(held)}

        return validate

    # ---- evaluation --------------------------------------------------------------------------

    def new_evidence(self) -> Evidence:
        """One row per test image, addressed by its position in the whole test split."""
        return Evidence(self.test.origin.numpy(), self.test.labels.numpy())

    def stage(self, name: str) -> Stage:
        """The stage of that name under this task's threat."""
        return make_stage(name, self.task)

    def memory_format(self, name: str) -> str:
        """Contiguous, in every stage."""
        return "contiguous"

    def run_stage(
        self,
        name: str,
        model: nn.Module,
        evidence: Evidence,
        fooled: Fooled,
        saved: Saved,
    ) -> None:
        """Attack what `evidence` still lacks of stage `name`."""
        device = torch.device(self.run.device)
        victim = Victim(model, self.test, device, self.task.evaluation.batch_size)
        run_stage(self.stage(name), victim, evidence, fooled, saved)

    def probe(self, model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The model, and a few test images."""
        return probe(model, self.test, self.run.device)

    def check_clean(self, evidence: Evidence) -> None:
        """Refuse a foreign checkpoint that does not beat guessing.

        Raises:
            UserError: clean accuracy within three standard errors of 1/K or below.
        """
        accuracy = float(np.mean(evidence.clean_correct()))
        chance = 1 / self.task.data.classes
        bound = chance + 3 * (chance * (1 - chance) / len(evidence)) ** 0.5
        if accuracy <= bound:
            raise UserError(
                f"clean accuracy is {accuracy:.1%}, near chance ({chance:.1%}): wrong --normalise"
                " (the default is none, [0,1] input), another label order, or another model?"
            )

    # ---- figures -----------------------------------------------------------------------------

    def figures(self, method: Method, model: nn.Module, folder: Path) -> list[str]:
        """Draw what the report shows; returns paths relative to `folder`."""
        from aal_bench.adapters.classification_figures import draw

        return draw(self, method, model, folder)
