"""A task of somebody's own with sixty images, a network made without training, and its entries.

Everything is real and small: the task is an installed package's, the run is `evaluate`'s, and what
fell and what stands is what the attacks found.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from aal_bench import plugins, results
from aal_bench.config import Normalisation, set_path
from aal_bench.data import digits
from aal_bench.evaluate import Source, evaluate
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import entries
from aal_bench.leaderboard.entries import Entry
from aal_bench.models import weights
from aal_bench.models.build import build
from aal_bench.record import Record, Result, robustbench_view
from aal_bench.resolve import Request
from aal_bench.verification.rebuild import Rebuilt, rebuild

COUNT, BATCH = 60, 16
CHEAP = "clean,fgsm,apgd-ce,apgd-t"
"""Seconds: AutoAttack's two attacks that fell these images, and one that is none of it."""
NORMALISATION = Normalisation(mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
TASK = f"""
name = "sixty"
title = "sixty digits"
model = "cnn4-16"
[data]
name = "digits"
classes = 10
size = 16
subset = {{ count = {COUNT}, seed = 0 }}
[threat]
eps = "2/255"
[attack]
step = "1/510"
[train]
epochs = 1
lr = 0.1
[paper]
robustbench = "cifar10"
[evaluation]
batch_size = {BATCH}
"""


class Case(NamedTuple):
    """An entry of a board of one's own, and what its submitter kept."""

    path: Path
    checkpoint: Path
    adversarials: Path

    @property
    def entry(self) -> Entry:
        """As it lies on disk now."""
        return entries.read(self.path)

    def rebuilt(self) -> Rebuilt:
        """Its model and its images."""
        findings, made = rebuild(self.entry, self.checkpoint, None)
        assert made is not None, findings
        return made

    def edit(self, **changes: Any) -> None:
        """Set dotted names in the JSON, and seal it again: what a forger does."""
        tree = json.loads(self.path.read_text())
        for dotted, value in changes.items():
            set_path(tree, dotted, value)
        write(self.path, tree)

    def forge(self, evidence: Evidence) -> None:
        """Give the entry another table, and every number that follows from it."""
        tree = json.loads(self.path.read_text())
        evidence.save(self.path.with_suffix(".npz"))
        tree["evidence"]["sha256"] = sha256_file(self.path.with_suffix(".npz"))
        stages = [stage["attack"] for stage in tree["evaluation"]]
        tree["metrics"] = results.METRICS["classification"](evidence, stages)
        for stage in tree["evaluation"][1:]:
            attacked = evidence.column(stage["attack"], "attacked")
            stage["n_in"] = int(attacked.sum())
            stage["n_out"] = int(evidence.column(stage["attack"], "ok").sum())
            for way in ("forwards", "backwards"):
                stage[way] = float(evidence.column(stage["attack"], way)[attacked].mean())
        write(self.path, tree)

    def keep(self, **arrays: np.ndarray) -> Path:
        """Write other adversarials over those kept; the entry names the new file."""
        np.savez(self.adversarials, allow_pickle=False, **arrays)  # pyright: ignore
        count = len(arrays["index"])
        self.edit(**{"adversarials.sha256": sha256_file(self.adversarials)})
        self.edit(**{"adversarials.count": count})
        return self.adversarials

    def kept(self) -> dict[str, np.ndarray]:
        """The adversarials as they lie there."""
        with np.load(self.adversarials, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="package", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package that offers the task, as pip would leave it."""
    site = tmp_path_factory.mktemp("site")
    (site / "their_tasks" / "tasks").mkdir(parents=True)
    (site / "their_tasks" / "__init__.py").touch()
    (site / "their_tasks" / "tasks" / "sixty.toml").write_text(TASK)
    info = site / "their_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aal_bench.tasks]\nsixty = their_tasks.tasks\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(site))
    _forget()
    yield
    sys.path.remove(str(site))
    _forget()
    torch.set_num_threads(threads)


def _forget() -> None:
    plugins._every_entry_point.cache_clear()


def network(seed: int = 0) -> nn.Module:
    """Random convolutions and the least-squares head on what they see: a fair classifier."""
    torch.manual_seed(seed)
    model = build("cnn4-16", 10, 16, NORMALISATION).eval().requires_grad_(False)
    train = digits.read(16).train
    x, y = torch.from_numpy(train.images[:1000]) / 255, torch.from_numpy(train.labels[:1000])
    seen: list[torch.Tensor] = []
    head: nn.Linear = model.network.classifier  # pyright: ignore
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(x)
    handle.remove()
    f = torch.cat([seen[0], torch.ones(len(x), 1)], 1).double()
    ridge = f.T @ f + 1e-3 * torch.eye(f.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(ridge, f.T @ nn.functional.one_hot(y, 10).double()).float()
    head.weight.copy_(20 * solved[:-1].T)
    head.bias.copy_(20 * solved[-1])
    return model


def save(model: nn.Module, path: Path, **changes: Any) -> Path:
    """The weights with a word about themselves, as a run of ours would leave them."""
    described = {
        "model": "cnn4-16",
        "classes": 10,
        "size": 16,
        "normalisation": NORMALISATION.model_dump(mode="json"),
        "method": "standard",
        "options": {},
    }
    weights.save(path, model.state_dict(), weights.Described(**(described | changes)))
    return path


@pytest.fixture(name="network")
def _network() -> Callable[..., nn.Module]:
    """``network(seed=0)``: the network of the entries; another seed, another network."""
    return network


@pytest.fixture(name="save")
def _save() -> Callable[..., Path]:
    """``save(model, path, **description)``: as a run of ours would leave it."""
    return save


@pytest.fixture(scope="package")
def runs(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``runs(protocol)``: the folder of a finished evaluation; each is made once."""
    made: dict[str, Path] = {}

    def run(protocol: str) -> Path:
        if protocol not in made:
            folder = tmp_path_factory.mktemp("run")
            source = Source(save(network(), folder / "model.safetensors"), None, None)
            asked = Request(task="sixty", protocol=protocol, device="cpu", precision="fp32")
            evaluate(asked, source, folder / "run")
            made[protocol] = folder
        return made[protocol]

    return run


@pytest.fixture
def submitted(runs: Callable[[str], Path], tmp_path: Path) -> Callable[..., Case]:
    """``submitted(protocol=)``: an entry made of that run, by clean code; and what goes with it."""

    def make(protocol: str = CHEAP) -> Case:
        folder = runs(protocol)
        kept = tmp_path / "kept"
        kept.mkdir(exist_ok=True)
        case = Case(
            entries.folder(tmp_path / "boards", "sixty", "Linf") / "theirs.json",
            Path(shutil.copy(folder / "model.safetensors", kept)),
            Path(shutil.copy(folder / "run" / "adversarials.npz", kept)),
        )
        case.path.parent.mkdir(parents=True)
        shutil.copy(folder / "run" / "evidence.npz", case.path.with_suffix(".npz"))
        tree = json.loads((folder / "run" / "result.json").read_text())
        tree["submission_id"] = "theirs"
        tree["evidence"]["path"] = "theirs.npz"
        tree["adversarials"]["path"] = None
        tree["environment"]["aal_bench"] |= {"commit": "c0ffee" * 6 + "c0de", "dirty": False}
        event = {"at": tree["created"], "by": "submitter", "event": "submitted", "level": 1}
        history = [event | {"run_hash": tree["run_hash"]}]
        tree["verification"] = {"level": 1, "history": history}
        write(case.path, tree)
        return case

    return make


def write(path: Path, tree: dict[str, Any]) -> None:
    """Write an entry's JSON with its derived keys and its seal renewed."""
    kept = {key: value for key, value in tree.items() if key in Record.model_fields}
    derived = robustbench_view(Record.model_validate(kept))
    results.write(path, results.sealed(Result.model_validate(tree | derived)))


class Liar(NamedTuple):
    """An entry that calls images robust which fall."""

    case: Case
    rows: np.ndarray
    """Their positions in its table."""
    proofs: dict[str, np.ndarray]
    """The adversarials under which they fall."""


@pytest.fixture
def liar(submitted: Callable[..., Case]) -> Callable[..., Liar]:
    """``liar(count, protocol=)``: so many false survivors, told consistently.

    In its table, its numbers, and its file of adversarials, from which theirs are gone.
    """

    def make(count: int, protocol: str = CHEAP) -> Liar:
        case = submitted(protocol)
        evidence, kept = case.entry.evidence(), case.kept()
        false = np.flatnonzero(kept["stage"] == "apgd-ce")[:count]
        rows = np.flatnonzero(np.isin(evidence.index, kept["index"][false]))
        case.forge(standing_again(evidence, rows))
        case.keep(**{name: np.delete(values, false, axis=0) for name, values in kept.items()})
        return Liar(case, rows, {name: values[false] for name, values in kept.items()})

    return make


def standing_again(evidence: Evidence, rows: np.ndarray) -> Evidence:
    """The same table with `rows` called robust: each says what a survivor says of itself."""
    model = int(np.flatnonzero(evidence.robust())[0])
    forged = Evidence(evidence.index, evidence.label)
    forged.record("clean", np.arange(len(evidence)), pred=evidence.clean_pred)
    for stage in evidence.stages:
        columns = {
            name: evidence.column(stage, name)
            for name in ("attacked", "pred", "norm", "forwards", "backwards")
        }
        for name, values in columns.items():
            values[rows] = evidence.label[rows] if name == "pred" else values[model]
        attacked = np.flatnonzero(columns.pop("attacked"))
        given = {name: values[attacked] for name, values in columns.items()}
        forged.record(stage, attacked, **given)
        forged.skip(stage, np.setdiff1d(np.arange(len(evidence)), attacked))
    return forged
