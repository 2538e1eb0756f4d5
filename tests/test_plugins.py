"""Methods, attacks and tasks of somebody else: a file, a module, an installed package."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from aal_bench import plugins
from aal_bench.errors import UserError

METHOD = """
from aal_bench.methods.base import Method, Options

class HalfOptions(Options):
    weight: float = 0.5

class Half(Method):
    Options = HalfOptions
    attacks = False
"""
ATTACK = """
from aal_bench.attacks.stages import Stage

class Nudge(Stage):
    def perturb(self, model, x, y):
        return (x + self.eps / self.numbers[0]).clamp(0, 1)
"""
TASK = """
name = "toy"
title = "digits again"
model = "cnn4"
[data]
name = "digits"
classes = 10
size = 16
[threat]
eps = "8/255"
[attack]
step = "2/255"
[train]
epochs = 1
lr = 0.1
"""


def test_a_file_is_run_once_and_again_when_it_has_changed(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class A: pass\n")
    first = plugins.load(f"{path}:A")
    assert plugins.load(f"{path}:A") is first
    path.write_text("class A: changed = True\n")
    assert plugins.load(f"{path}:A").changed


def test_files_of_one_name_in_two_folders_are_two(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"A = {folder!r}\n")
    assert plugins.load(f"{tmp_path}/one/mine.py:A") == "one"
    assert plugins.load(f"{tmp_path}/two/mine.py:A") == "two"


def test_a_module_is_imported_by_its_name():
    assert plugins.load("json.decoder:JSONDecoder") is json.JSONDecoder


def test_the_source_of_an_object_is_its_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(METHOD)
    assert plugins.source_sha256(f"{path}:Half") == hashlib.sha256(METHOD.encode()).hexdigest()
    assert plugins.source_sha256("math:pi") is None  # compiled


@pytest.mark.parametrize(
    ("target", "content", "message"),
    [
        ("gone.py:A", None, "gone.py: no such file"),
        ("mine.py:Hafl", METHOD, "has no 'Hafl'. Did you mean Half"),
        ("mine.py:A", "class A(:\n", "mine.py:1: invalid syntax"),
        ("mine.py:A", "import no_such_package\n", "imports 'no_such_package', which is not"),
        ("no_such_package.mod:A", None, "no module named 'no_such_package.mod'"),
        ("json.nothing:A", None, "no module named 'json.nothing'"),
        ("json:", None, "is not module:name or file.py:name"),
        (":A", None, "is not module:name or file.py:name"),
        (".mod:A", None, "write the module's full name"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(target, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    with pytest.raises(UserError) as caught:
        plugins.load(target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_inside_the_users_file_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("A = 1 / 0\n")
    for _ in range(2):  # a half-run module is not kept
        with pytest.raises(ZeroDivisionError):
            plugins.load(f"{tmp_path}/mine.py:A")


# ---- an installed package ------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """A folder as pip leaves it: a package and its dist-info with entry points."""
    package = tmp_path / "site" / "their_lab"
    (package / "tasks").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "methods.py").write_text(METHOD)
    (package / "attacks.py").write_text(ATTACK)
    (package / "tasks" / "toy.toml").write_text(TASK)
    (package / "tasks" / "digits.toml").write_text(TASK.replace('"toy"', '"digits"'))
    info = package.parent / "their_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[aal_bench.methods]\nhalf = their_lab.methods:Half\npgd = their_lab.methods:Half\n"
        "[aal_bench.attacks]\nnudge-N = their_lab.attacks:Nudge\n"
        "[aal_bench.tasks]\ntheirs = their_lab.tasks\n"
    )
    return package.parent


def python(site, code):
    """Standard output of `code` where the packages of `site` are installed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_adds_methods_attacks_and_tasks(site):
    code = """
import json
from aal_bench import registry
from aal_bench.resolve import Request, resolve, stages_of
run = resolve(Request("toy", "half", settings=("weight=0.25",), protocol="clean,nudge-2"))
stage = registry.load(registry.find("attack", "nudge-2").row.target)
print(json.dumps([run.task.title, run.method.options["weight"], stages_of(run), stage.__name__]))
"""
    assert json.loads(python(site, code)) == [
        *("digits again", 0.25, ["clean", "nudge-2"], "Nudge")
    ]


def test_it_cannot_replace_what_is_ours(site):
    code = """
from aal_bench import registry
print(registry.find("method", "pgd").row.target, registry.rows("method")["pgd"].target)
print(registry.task_file("digits").parent.name, "their_lab" in str(registry.task_file("digits")))
"""
    ours = "aal_bench.methods.pgd:PGD"
    assert python(site, code) == f"{ours} {ours}\ntasks False\n"


def test_the_list_shows_whose_a_name_is_without_importing_it(site):
    code = """
import sys
from click.testing import CliRunner
from aal_bench.cli import main
print(CliRunner().invoke(main, ["list"]).output)
print(sorted({"torch", "pydantic", "their_lab.methods"} & set(sys.modules)))
"""
    listed = python(site, code)
    assert "from their_lab" in next(line for line in listed.splitlines() if "  half " in line)
    assert "digits again" in listed
    assert listed.splitlines()[-1] == "[]"


def test_a_package_that_names_a_folder_it_does_not_have_is_named(site):
    points = site / "their_lab-1.0.dist-info" / "entry_points.txt"
    points.write_text("[aal_bench.tasks]\ntheirs = gone_lab.tasks\n")
    code = """
from aal_bench import registry
print(registry.task_file("digits").stem)  # ours needs no package
try:
    registry.task_files()
except registry.UserError as error:
    print(error)
"""
    first, second = python(site, code).splitlines()
    assert first == "digits"
    assert "offers 'gone_lab.tasks', which does not exist" in second
