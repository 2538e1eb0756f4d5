"""The data folders are found from the package, in a checkout and in an installed copy alike."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from aal_bench import paths


def test_a_checkout_has_its_data_beside_the_package():
    root = Path(__file__).parent.parent
    assert paths.data_folder("tasks") == root / "tasks"
    assert (paths.data_folder("leaderboards") / "README.md").is_file()


def test_an_installed_package_carries_its_data_and_ignores_the_current_folder(tmp_path):
    """A copy without pyproject.toml beside it, run from a folder that has a `tasks` of its own."""
    site = tmp_path / "site"
    inside = site / "aal_bench"
    shutil.copytree(paths.PACKAGE, inside, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(paths.data_folder("tasks"), inside / "_data" / "tasks")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tasks").mkdir(parents=True)
    (elsewhere / "tasks" / "digits.toml").write_text("not ours")
    code = """
import json
from aal_bench import paths, registry
names = sorted(registry.task_files())
print(json.dumps([str(paths.PACKAGE), str(registry.task_file("digits")), names]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    package, digits, names = json.loads(done.stdout)
    assert Path(package) == inside
    assert Path(digits) == inside / "_data" / "tasks" / "digits.toml"
    assert {"digits", "cifar10", "imagenet"} <= set(names)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("AAL_BENCH_CACHE", str(tmp_path / "mine"))
    assert paths.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("AAL_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache_folder() == tmp_path / "xdg" / "aal-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_folder() == tmp_path / ".cache" / "aal-bench"


def test_a_runs_folder_names_task_method_configuration_and_seed():
    folder = paths.run_folder("digits", "mine.py:Class", "0123456789abcdef", 3)
    assert folder == Path("runs/digits/mine.py_Class/0123456789ab-seed3")
    assert ".." not in paths.run_folder("digits", "../up/mine.py:Class", "0" * 64, 0).parts
