"""The dependency direction of the design holds, and what is called torch-free is."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
TORCH_FREE = next(
    contract["source_modules"]
    for contract in SETTINGS["contracts"]
    if "torch" in contract.get("forbidden_modules", [])
)
HEAVY = (
    "torch",
    "torchvision",
    "torchattacks",
    "robustbench",
    "accelerate",
    "learn2learn",
    "mmdet",
)


def lint(folder):
    """Run import-linter on the package in `folder` with this project's contracts."""
    run = "from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", run, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_contract_is_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"Contracts: {len(SETTINGS['contracts'])} kept, 0 broken." in done.stdout


def test_the_contracts_can_be_broken(tmp_path):
    """In a copy: a metric needs torch, a method reads data, an error knows the CLI, ..."""
    shutil.copytree(
        ROOT / "aal_bench", tmp_path / "aal_bench", ignore=shutil.ignore_patterns("__pycache__")
    )
    for module, line in {
        "metrics": "import torch",
        "methods/pgd": "from aal_bench.data.load import load",
        "errors": "from aal_bench import cli",
        "training/loop": "import torchattacks",
    }.items():
        path = tmp_path / "aal_bench" / f"{module}.py"
        path.write_text(path.read_text() + f"\n\ndef _() -> None:\n    {line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    for broken in (
        "aal_bench.metrics -> torch",
        "aal_bench.methods.pgd -> aal_bench.data.load",
        "aal_bench.errors -> aal_bench.cli",
        "aal_bench.training.loop -> torchattacks",
    ):
        assert broken in done.stdout


@pytest.mark.parametrize("modules", [TORCH_FREE, ["aal_bench.cli", "aal_bench.environment"]])
def test_torch_free_modules_import_no_torch(modules):
    """The contract sees import statements; this sees what a new interpreter really loads."""
    code = """
import importlib, json, pkgutil, sys
for name in json.loads(sys.argv[1]):
    module = importlib.import_module(name)
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"{name}.{found.name}")
print(json.dumps([name for name in json.loads(sys.argv[2]) if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(modules), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []


def test_the_torch_free_list_is_what_the_design_names():
    named = "evidence results record schema metrics report leaderboard registry config threat"
    named += " hashing paths progress errors files"
    assert {f"aal_bench.{name}" for name in named.split()} <= set(TORCH_FREE)
