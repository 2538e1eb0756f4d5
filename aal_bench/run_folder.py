"""The folder of a run: what it holds, whose configuration it is, and how far it got."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aal_bench.config import Run, differing, shorten
from aal_bench.errors import UserError
from aal_bench.files import write_text
from aal_bench.hashing import sha256_file

State = Literal["new", "unfinished", "finished"]
SHOWN = 6
"""Differing fields that an error spells out; the others are counted."""


class RunFolder:
    """``run.json`` and its neighbours; the status in it is true at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {}

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def inspect(self, run: Run, checkpoint: str | None, data_dir: Path | None) -> State:
        """Say how far this very configuration got here.

        Raises:
            UserError: the folder holds another configuration (the fields are named) or no run.
        """
        if not self.path.exists():
            return "new"
        if not self.path.is_dir():
            raise UserError(f"--out {self.path}: is a file, not a folder")
        if not (self / "run.json").exists():
            if any(self.path.iterdir()):
                raise UserError(f"--out {self.path}: not empty, and not a run; choose another")
            return "new"
        self.record = self.read()
        wanted = run.identity() | {
            "seed": run.seed,
            "checkpoint": checkpoint,
            "data_dir": _text(data_dir),
        }
        held = self.record["identity"] | {
            key: self.record.get(key) for key in ("seed", "checkpoint", "data_dir")
        }
        changed = differing(held, wanted)
        if changed:
            raise UserError(
                f"{self.path} holds another configuration: {_listed(changed, held, wanted)}."
                " Choose another --out"
            )
        return "finished" if self.record["status"] == "success" else "unfinished"

    def same_data(self, fingerprint: dict[str, str]) -> None:
        """Refuse to continue on other images than those that the run was begun with.

        Raises:
            UserError: the fingerprint of pixels or labels has changed.
        """
        if self.record.get("fingerprint", fingerprint) != fingerprint:
            raise UserError(
                f"{self.path} was begun on other test images than are there now: bring those back,"
                " or choose another --out"
            )

    def read(self) -> dict[str, Any]:
        """The folder's ``run.json``.

        Raises:
            UserError: it cannot be read, or is no run's.
        """
        path = self / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        if not isinstance(record, dict) or not {"identity", "status"} <= record.keys():
            raise UserError(f"{path}: not the record of a run; choose another --out")
        return record

    def begin(self, run: Run, fields: dict[str, Any]) -> None:
        """Write ``status: started``, keeping what an earlier attempt measured."""
        self.record = {
            **self.record,
            "status": "started",
            "error": None,
            "created": self.record.get("created", _now()),
            "identity": run.identity(),
            "config_hash": run.hash(),
            "seed": run.seed,
            "device": run.device,
            "stages": self.record.get("stages", {}),
            "attempts": [*self.record.get("attempts", []), _attempt(fields)],
            **fields,
        }
        self.write()

    def update(self, **fields: Any) -> None:
        """Change fields of ``run.json``."""
        self.record |= fields
        self.write()

    def write(self) -> None:
        """Write ``run.json`` whole or not at all."""
        write_text(self / "run.json", json.dumps(self.record, indent=1) + "\n")

    def account(self, stage: str, seconds: float, violation: dict[str, float]) -> None:
        """Add a batch's seconds and keep the stage's worst violation."""
        spent = self.record["stages"].setdefault(
            stage, {"seconds": 0.0, "violation": {"norm": 0.0, "box": 0.0}}
        )
        spent["seconds"] = round(spent["seconds"] + seconds, 4)
        worst = spent["violation"]
        spent["violation"] = {key: max(worst[key], violation[key]) for key in worst}
        self.write()


class Job(NamedTuple):
    """One run and where it goes."""

    run: Run
    folder: RunFolder
    command: list[str]
    data_dir: Path | None
    resume: bool = False
    foreign: Any = None
    """An `evaluate.Foreign` checkpoint; None: train."""


def checkpoint_block(path: Path) -> dict[str, Any]:
    """``{sha256, bytes, format}`` of a weights file."""
    return {
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "format": "safetensors" if path.suffix == ".safetensors" else "torch",
    }


def _listed(names: list[str], held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """``train.lr (0.1 there, 0.05 here), ...``."""

    def value(tree: Any, dotted: str) -> str:
        for part in dotted.split("."):
            tree = tree.get(part) if isinstance(tree, dict) else None
        if dotted == "data_dir" and tree is not None:
            return f"...{tree[-40:]}" if len(tree) > 43 else tree  # folders differ at their end
        return "none" if tree is None else shorten(str(tree), 24)

    spelt = [f"{name} ({value(held, name)} there, {value(wanted, name)} here)" for name in names]
    more = len(names) - SHOWN
    return ", ".join(spelt[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _attempt(fields: dict[str, Any]) -> dict[str, Any]:
    """When, by which command and with what: a resumed run may have had two environments."""
    kept = {key: fields[key] for key in ("command", "environment") if key in fields}
    return {"at": _now(), **kept}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
