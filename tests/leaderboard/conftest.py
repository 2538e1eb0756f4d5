"""A committed entry of the digits board, copied to where it may be changed, and ways to do it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aal_bench import registry, results
from aal_bench.config import read_task
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file, sha256_json
from aal_bench.leaderboard import verify
from aal_bench.leaderboard.extend import is_extra
from aal_bench.leaderboard.findings import Finding
from aal_bench.paths import data_folder
from aal_bench.record import ABSENT, Record, Result, robustbench_view

COMMITTED = data_folder("leaderboards") / "digits" / "Linf"


class Copied:
    """One entry on a board of its own; every change is written where `verify` reads it."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.source = source
        self.root = folder / "leaderboards"
        self.board = self.root / "digits" / "Linf"
        self.board.mkdir(parents=True)
        self.path = self.add(source)
        self._record = self.path.read_text(encoding="utf-8")

    def original(self) -> dict[str, Any]:
        """The record's JSON as it was at first; a new tree each time."""
        return json.loads(self._record)

    def restore(self) -> None:
        """Record and table as they were at first."""
        shutil.copy(self.source.with_suffix(".npz"), self.table_path)
        self.path.write_text(self._record, encoding="utf-8")

    @property
    def table_path(self) -> Path:
        return self.path.with_suffix(".npz")

    def add(self, source: Path) -> Path:
        """Copy an entry and its evidence onto the board, as it was submitted."""
        path = self.board / source.name
        shutil.copy(source.with_suffix(".npz"), path.with_suffix(".npz"))
        tree = json.loads(source.read_text(encoding="utf-8"))
        _as_submitted(tree)
        write(path, tree)
        return path

    def tree(self) -> dict[str, Any]:
        """The record's JSON, read anew."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    def write(self, tree: dict[str, Any], seal: bool = True) -> None:
        """Write the record as aal-bench does; with `seal`, as a forger who renews it."""
        write(self.path, tree, seal)

    def change(self, edit: Callable[[dict[str, Any]], Any], seal: bool = True) -> None:
        """Let `edit` change the record's JSON in place."""
        tree = self.tree()
        edit(tree)
        self.write(tree, seal)

    def rename(self, name: str) -> None:
        """Another name for the entry, its files and what the record says of them."""
        tree, table = self.tree(), self.table_path
        self.path = self.path.rename(self.path.with_name(f"{name}.json"))
        table.rename(self.table_path)
        tree["submission_id"], tree["evidence"]["path"] = name, f"{name}.npz"
        self.write(tree)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the evidence file, as numpy reads them."""
        with np.load(self.table_path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def forge(
        self, arrays: dict[str, np.ndarray], edit: Callable[[dict[str, Any]], Any] = lambda _: None
    ) -> None:
        """Write another table, and a record that states its sha256 under a renewed seal."""
        np.savez_compressed(self.table_path, **arrays)  # pyright: ignore[reportArgumentType]
        tree = self.tree()
        tree["evidence"]["sha256"] = sha256_file(self.table_path)
        edit(tree)
        self.write(tree)

    def recount(self, tree: dict[str, Any]) -> None:
        """What a forger can do: every number of the record from the table that lies there now."""
        table = Evidence.load(self.table_path)
        stages = [stage["attack"] for stage in tree["evaluation"]]
        metrics = results.METRICS["classification"](table, stages)
        tree["metrics"] = {**metrics, "autoattack": metrics.pop("autoattack")}
        tree["clean_acc"] = results.percent(metrics["clean"]["value"])
        tree["autoattack_acc"] = results.percent(tree["metrics"]["autoattack"]["value"])
        for stage in tree["evaluation"]:
            name = stage["attack"]
            if name == "clean":
                stage["n_out"] = int(table.clean_correct().sum())
                continue
            attacked = table.column(name, "attacked")
            stage["n_in"], stage["n_out"] = int(attacked.sum()), int(table.column(name, "ok").sum())
            for way in ("forwards", "backwards"):
                stage[way] = float(table.column(name, way)[attacked].mean())
        tree["adversarials"]["count"] = int((table.clean_correct() & ~table.robust()).sum())

    @staticmethod
    def rederive(tree: dict[str, Any]) -> None:
        """A careful forger keeps RobustBench's keys in step with the typed blocks."""
        fields = {key: tree[key] for key in Record.model_fields if key in tree}
        for key in ABSENT:
            tree.pop(key, None)
        tree |= robustbench_view(Record.model_validate(fields))

    def another(self, name: str, checkpoint: str = "1" * 64, seed: int = 7) -> None:
        """Turn the entry into that of other weights, seed and name, its hashes renewed."""

        def edit(tree: dict[str, Any]) -> None:
            tree["model"]["checkpoint"]["sha256"] = checkpoint
            tree["training"]["seeds"] = [seed]
            tree["command"] = ["aal-bench", "run", "--seed", str(seed)]
            self.rehash(tree)

        self.rename(name)
        self.change(edit)

    def rehash(self, tree: dict[str, Any]) -> None:
        """And renews the hashes of what he changed."""
        task = read_task(registry.task_file("digits"))
        if tree["training"] is not None:
            tree["training"]["config_hash"] = sha256_json(tree["training"]["config"])
        tree["task"]["hash"] = task.hash(tree["evidence"]["dataset_fingerprint"])
        self.rederive(tree)
        record = Result.model_validate(tree)
        tree["run_hash"] = results.run_hash(
            record.task.hash, record.threat, record.model, record.evaluation, record.limit
        )
        tree["verification"]["history"][0]["run_hash"] = tree["run_hash"]

    def findings(self, level: int = 1) -> list[Finding]:
        """What `verify` says of the entry."""
        (verdict,) = verify.verify(self.path, level)
        return verdict.findings

    def broken(self, level: int = 1) -> set[str]:
        """``"0 seal"``: level and rule of what is broken."""
        return {f"{found.level} {found.rule}" for found in self.findings(level) if not found.ok}

    def said(self, rule: str, level: int = 1) -> str:
        """What one rule of a level found."""
        found = [found for found in self.findings(level) if found.rule == rule]
        return found[-1].text


def write(path: Path, tree: dict[str, Any], seal: bool = True) -> None:
    """Write a record as aal-bench does; with `seal`, as a forger who renews it."""
    if seal:
        tree["seal"] = results.seal(tree)
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _as_submitted(tree: dict[str, Any]) -> None:
    """Without the verifications that the committed entry may have had since."""
    if tree["training"] is not None:
        tree["training"]["siblings"] = []
    block = tree["verification"]
    block |= dict.fromkeys(("by", "date", "seed", "report_sha256"))
    tree["verification"] = block | {"level": 1, "history": block["history"][:1]}


@pytest.fixture(scope="session")
def committed() -> list[Path]:
    """The committed entries of the digits board that no verification has extended."""
    found = [
        path
        for path in sorted(COMMITTED.glob("*.json"))
        if not any(
            is_extra(stage["attack"])
            for stage in json.loads(path.read_text(encoding="utf-8"))["evaluation"]
        )
    ]
    assert len(found) > 1, "the digits board has too few entries to copy"
    return found


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, committed: list[Path]) -> Copied:
    """A trained entry for a whole file of tests, each of which restores what it changes."""
    return Copied(tmp_path_factory.mktemp("victim"), committed[-1])


@pytest.fixture
def copied(tmp_path: Path, committed: list[Path]) -> Copied:
    """A trained entry, alone on its board."""
    source = next(path for path in committed if path.name.startswith("pgd-"))
    return Copied(tmp_path, source)
