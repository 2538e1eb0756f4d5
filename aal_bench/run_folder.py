"""The folder of a run: what it holds, whose configuration it is, and how far it got."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aal_bench.config import Run, differing
from aal_bench.errors import UserError
from aal_bench.files import write_text

State = Literal["new", "unfinished", "finished"]


class RunFolder:
    """``run.json`` and its neighbours. The status in it is true at any moment, also after a kill."""

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
        self.record = self._read()
        changed = differing(self.record["identity"], run.identity())
        wanted = {"seed": run.seed, "checkpoint": checkpoint, "data_dir": _text(data_dir)}
        changed += [key for key, value in wanted.items() if self.record.get(key) != value]
        if changed:
            raise UserError(
                f"{self.path} holds another configuration: {', '.join(changed)} differ."
                " Choose another --out"
            )
        return "finished" if self.record["status"] == "success" else "unfinished"

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads((self / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self / 'run.json'}: cannot be read ({error})") from None

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


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
