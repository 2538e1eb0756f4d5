"""The files of an MMDetection config, without MMDetection: which they are, and their hash."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from aal_bench.errors import UserError
from aal_bench.hashing import sha256_file, sha256_json
from aal_bench.paths import data_folder


def config_path(model: str, config: str) -> Path:
    """The file ``tasks/detection/<model>_<config>.py``, or `config` itself where it is a path.

    Raises:
        UserError: there is none.
    """
    if config.endswith(".py"):
        if not Path(config).is_file():
            raise UserError(f"detection.config = {config}: no such file")
        return Path(config)
    folder = data_folder("tasks") / "detection"
    path = folder / f"{model}_{config}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.py")))
        raise UserError(f"no MMDetection config {path.name} in {folder.name}/; there are {known}")
    return path


def config_sha256(path: Path) -> str:
    """Hex sha256 over a config and every file that its ``_base_`` names, directly or not.

    Priors, thresholds and augmentation are in these files: others are another configuration.
    """
    files = _with_bases(path)
    return sha256_json({os.path.relpath(file, path.parent): sha256_file(file) for file in files})


def _with_bases(path: Path) -> list[Path]:
    found = [path]
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "_base_":
            named = ast.literal_eval(statement.value)
            for base in [named] if isinstance(named, str) else named:
                found += _with_bases(path.parent / base)
    return found
