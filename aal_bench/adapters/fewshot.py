"""Few-shot episodes: learn2learn's tasks and networks, answered by the method's head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aal_bench import registry
from aal_bench.adapters.attack_stage import Fooled, Saved, exact_arithmetic, run_stage
from aal_bench.adapters.classification import limited, make_stage
from aal_bench.adapters.episode_victim import EpisodeVictim
from aal_bench.adapters.method import build_method
from aal_bench.adapters.network import build_network, probe
from aal_bench.adapters.throttled import Throttled
from aal_bench.attacks.stages import Stage
from aal_bench.config import Episodes, Run
from aal_bench.data.augment import mixed_seed
from aal_bench.data.fewshot import enough, load
from aal_bench.data.splits import InMemory
from aal_bench.errors import RunFailed, UserError
from aal_bench.evidence import Evidence
from aal_bench.fewshot.answer import answers, images_read
from aal_bench.fewshot.features import MEMORY_FORMAT
from aal_bench.fewshot.heads.base import Head
from aal_bench.fewshot.objective import EpisodeObjective
from aal_bench.fewshot.sampling import Sampler
from aal_bench.fewshot.stream import EpisodeStream
from aal_bench.methods.base import Episodic, Method, Objective
from aal_bench.methods.episodes import episode_labels
from aal_bench.methods.updates import Plain
from aal_bench.models.build import Classifier
from aal_bench.progress import track
from aal_bench.training.loop import Loop, Trained
from aal_bench.training.loop import Setting as LoopSetting

CHUNK = 50
"""Episodes recorded at a time."""


class FewShot:
    """The adapter of episodes. A unit is an episode; a row of the evidence is one query in it."""

    def __init__(self, run: Run, data_dir: Path | None) -> None:
        assert run.task.episodes is not None
        self.run, self.task = run, run.task
        self.config: Episodes = run.task.episodes
        self.images = load(run.task, data_dir)
        self.test: InMemory = self.images.test
        self.method = build_method(run)
        for note in self.images.notes:
            print(f"data      {note}", flush=True)
        self._enough("test", self.config.ways, self.config.shots, self.config.queries)
        whole = self._sampler(self.test).draw(self.config.count, self.config.seed)
        self.listed = whole
        self.episodes = whole.first(run.limits.eval or len(whole))

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the test split's pixels and labels, and of the whole list of episodes."""
        return self.images.fingerprint | {"episodes": self.listed.digest()}

    @property
    def examples(self) -> int:
        """Episodes of the task's whole list."""
        return self.config.count

    def check(self, stages: Sequence[str], training: bool) -> None:
        """Refuse, before anything is written, what would fail after hours."""
        for name in stages:
            self.stage(name)
        head = self.head()
        if len(stages) > 1:
            head.attackable()
        if not training:
            return
        if self.run.compile:
            raise UserError(
                "--compile does not reach a network's features, which few-shot heads read: omit it"
            )
        if self.task.train.validation:
            self._enough("validation", self.config.ways, self.config.shots, self.config.queries)
        plan = self._plan(self.method)
        if plan is not None:
            self._enough("train", plan.ways, plan.shots, plan.queries)

    def _enough(self, split: str, ways: int, shots: int, queries: int) -> None:
        part, names = getattr(self.images, split), self.images.class_names[split]
        where = f"task {self.task.id}: {split} split"
        prefix = "train_" if split == "train" else "episodes."
        keys = (f"{prefix}ways", f"{prefix}shots", f"{prefix}queries")
        enough(part.labels, names, ways, shots, queries, where, keys)

    def _sampler(self, split: InMemory) -> Sampler:
        config = self.config
        return Sampler(split.labels, config.ways, config.shots, config.queries)

    # ---- model and training ------------------------------------------------------------------

    def build(self) -> Classifier:
        """The run's network, initialised from its seed."""
        from accelerate.utils import set_seed

        set_seed(self.run.seed)
        return build_network(self.run)

    def head(self, name: str | None = None) -> Head:
        """The head that answers the method's test episodes, or the one of that name."""
        row = registry.find("head", name or self.method.head).row
        return registry.load(row.target)(self.method.options, self.method.threat)

    def objective(self, model: nn.Module) -> Objective:
        """Cross-entropy on labelled images, the head's query loss on episodes."""
        kind, bf16 = torch.device(self.run.device).type, self.run.precision == "bf16"
        return EpisodeObjective(
            model,
            self.head(self.method.training_head),
            lambda: torch.autocast(kind, torch.bfloat16, enabled=bf16),
        )

    def _plan(self, method: Method) -> Episodic | None:
        """The method's training episodes, as few an epoch as ``--limit-train`` images allow."""
        plan = method.episodes(self.config.ways, self.config.shots)
        if plan is None:
            return None
        split = len(self.images.train)
        images = plan.ways * (plan.shots + plan.queries)
        wanted = plan.per_epoch or round(split / images)
        allowed = (self.run.limits.train or wanted * images) // images
        return plan._replace(per_epoch=max(1, min(wanted, allowed)))

    def fit(self, method: Method, update: Plain, model: nn.Module, folder: Path) -> Trained:
        """Train in the common loop, a teacher before its pupil."""
        from accelerate.utils import set_seed

        earlier = 0.0
        if method.teacher is not None:
            # Another seed: born again is a fresh start, and in another order.
            own = self.run.model_copy(update={"seed": mixed_seed(self.run.seed, 1) % 2**32})
            set_seed(own.seed)
            teacher = build_method(own, method.teacher)
            network = teacher.build(build_network(own))
            taught = self._fit(own, teacher, update, network, folder / "teacher")
            network.load_state_dict(taught.last)
            method.learn_from(network.eval().requires_grad_(False))
            earlier = taught.record["seconds"]
        trained = self._fit(self.run, method, update, model, folder)
        trained.record["seconds"] = round(trained.record["seconds"] + earlier, 2)
        if method.teacher is not None:
            trained.record["teacher_seconds"] = earlier
        return trained

    def _fit(
        self, run: Run, method: Method, update: Plain, model: nn.Module, folder: Path
    ) -> Trained:
        images = self.images.train
        plan = self._plan(method)
        pictures = limited(images, self.run.limits.train)
        train: Any = pictures
        phases = None
        if plan is not None and plan.begins:
            phases = self._phases(pictures, EpisodeStream(images, plan, len(pictures)), plan.begins)
        elif plan is not None:
            train = EpisodeStream(images, plan)
        features = model.network.features  # pyright: ignore[reportAttributeAccessIssue]
        setting = LoopSetting(
            run=run,
            model=model,
            method=method,
            update=update,
            make_objective=self.objective,
            train=train,
            validate=self._validator() if self.task.train.validation else None,
            folder=folder,
            phases=phases,
            counted=features if isinstance(features, nn.Module) else None,
        )
        trained = Loop(setting).fit()
        trained.record["images"] = len(images if plan is not None else pictures)
        return trained

    def _phases(self, first: Any, later: Any, begins: float) -> Callable[[int], Any]:
        """The data of each epoch: `later` from the share `begins` of the epochs on."""
        epochs = self.task.train.epochs
        change = min(round(begins * epochs), epochs - 1)  # the last epoch at least
        return lambda epoch: later if epoch >= change else first

    def _validator(self) -> Callable[[nn.Module], dict[str, float]]:
        train, split = self.task.train, self.images.validation
        listed = self._sampler(split).draw(train.validation, train.validation_seed)
        plain = self.config.model_copy(update={"augment": "none"})
        device = torch.device(self.run.device)

        def validate(model: nn.Module) -> dict[str, float]:
            """Accuracy on fixed episodes of the validation classes, without augmented copies."""
            mode = model.training
            model.eval()
            try:
                right = [
                    self._right(logits)
                    for logits in answers(model, self.head(), split, listed, plain, device)
                ]
            finally:
                model.train(mode)
            return {"val_clean": float(np.mean(right))}

        return validate

    def _right(self, logits: Tensor) -> float:
        labels = episode_labels(self.config.ways, self.config.queries)
        return float((logits.argmax(1).cpu() == labels).double().mean())

    # ---- evaluation --------------------------------------------------------------------------

    def new_evidence(self) -> Evidence:
        """One row per query of each episode, in the episodes' order."""
        count = len(self.episodes)
        labels = episode_labels(self.config.ways, self.config.queries).repeat(count)
        return Evidence(
            self.episodes.query.flatten().numpy(),
            labels.numpy(),
            np.repeat(np.arange(count), self.queries),
        )

    @property
    def queries(self) -> int:
        """Rows of the evidence that an episode has."""
        return self.config.ways * self.config.queries

    def stage(self, name: str) -> Stage:
        """The stage of that name under this task's threat."""
        return make_stage(name, self.task)

    def memory_format(self, name: str) -> str:
        """Contiguous, but where features are extracted once."""
        return MEMORY_FORMAT if name == "clean" and not self.head().adapts else "contiguous"

    def run_stage(
        self, name: str, model: nn.Module, evidence: Evidence, fooled: Fooled, saved: Saved
    ) -> None:
        """Answer or attack what `evidence` still lacks of stage `name`.

        Adversarial queries are not kept (an image occurs in many episodes), so `fooled` is unused.
        """
        throttled = Throttled(saved)
        if name == "clean":
            self._clean(model, evidence, throttled)
        else:
            victim = EpisodeVictim(self, model)
            run_stage(self.stage(name), victim, evidence, lambda *_: None, throttled)
        throttled.flush()

    def _clean(self, model: nn.Module, evidence: Evidence, saved: Throttled) -> None:
        done = int(evidence.done("clean").sum()) // self.queries
        if done == len(self.episodes):
            return
        head, device = self.head(), torch.device(self.run.device)
        listed, config = self.episodes, self.config
        total = images_read(head, listed, config) + len(listed) - done
        with track("clean", total) as progress, exact_arithmetic():
            found = answers(
                model, head, self.test, listed, config, device, progress.advance, start=done
            )
            while done < len(self.episodes):
                with saved.timed():
                    logits = [next(found) for _ in range(min(CHUNK, len(self.episodes) - done))]
                    self._record(evidence, done, torch.stack(logits))
                done += len(logits)
                progress.advance(len(logits))

    def _record(self, evidence: Evidence, first: int, logits: Tensor) -> None:
        """Record the answers (e, Q, ways) of the episodes from number `first` on."""
        if logits.shape[1:] != (self.queries, self.config.ways):
            raise UserError(
                f"the head's logits are {tuple(logits.shape[1:])} for {self.queries} queries of"
                f" {self.config.ways} classes"
            )
        if not bool(torch.isfinite(logits).all()):
            raise RunFailed("stage clean: the logits of an episode are not finite")
        start = first * self.queries
        rows = np.arange(start, start + len(logits) * self.queries)
        evidence.record("clean", rows, pred=logits.argmax(2).flatten().cpu().numpy())

    def probe(self, model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The model, and a few test images."""
        return probe(model, self.test, self.run.device)

    def check_clean(self, evidence: Evidence) -> None:
        """Refuse a foreign checkpoint whose episodes are answered no better than by guessing.

        Raises:
            UserError: mean accuracy within three standard errors of 1/ways or below.
        """
        right = evidence.per_episode(evidence.clean_correct())
        chance = 1 / self.config.ways
        error = float(right.std(ddof=1)) / len(right) ** 0.5 if len(right) > 1 else 1.0
        if float(right.mean()) <= chance + 3 * error:
            raise UserError(
                f"clean accuracy is {right.mean():.1%}, near chance ({chance:.1%}): wrong"
                " --normalise (the default is none, [0,1] input), or another model?"
            )

    # ---- figures -----------------------------------------------------------------------------

    def figures(self, method: Method, model: nn.Module, folder: Path) -> list[str]:
        """Draw what the report shows; returns paths relative to `folder`."""
        from aal_bench.adapters.fewshot_figures import draw

        return draw(self, method, model, folder)
