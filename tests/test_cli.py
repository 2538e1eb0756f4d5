"""The command line answers at once, in one line when something is wrong."""

import json
import os
import resource
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from aal_bench import __version__, registry
from aal_bench.cli import KINDS, main, show_findings
from aal_bench.doctor import TOOLKITS, Finding

QUICK = [["--help"], ["run", "--help"], ["evaluate", "--help"], ["list"], ["--version"]]
QUICK += [["list", kind] for kind in KINDS] + [["list", "-v"], ["list", "methods", "-v"]]


def invoke(*args):
    return CliRunner().invoke(main, list(args))


# ---- quick answers -------------------------------------------------------------------------------


def test_help_and_lists_import_neither_torch_nor_pydantic():
    code = f"""
import json, sys
from click.testing import CliRunner
from aal_bench.cli import main
codes = [CliRunner().invoke(main, args).exit_code for args in {QUICK!r}]
heavy = {{"torch", "pydantic", "numpy", "rich", "torchattacks", "sklearn", "matplotlib"}}
print(json.dumps([codes, sorted(heavy & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[0] * len(QUICK), []]


def cpu_seconds(*args):
    """Processor time of the process, which a busy machine does not stretch as it does the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "aal_bench.cli", *args], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("args", [["--help"], ["list"], ["list", "methods", "-v"]])
def test_help_and_lists_take_less_than_a_third_of_a_second(args):
    assert min(cpu_seconds(*args) for _ in range(5)) < 0.3


# ---- what is listed ------------------------------------------------------------------------------


def test_the_whole_list_has_every_name_with_its_families():
    done = invoke("list")
    assert done.exit_code == 0
    words = done.output.split()
    for table in (registry.METHODS, registry.ATTACKS, registry.MODELS, registry.PROTOCOLS):
        assert set(table) <= set(words)
    assert set(registry.task_files()) <= set(words)
    assert [line for line in done.output.splitlines() if not line.startswith(" ")] == list(KINDS)


def test_a_list_of_one_kind_shows_what_a_name_is_for():
    lines = {line.split()[0]: line for line in invoke("list", "methods").output.splitlines()[1:]}
    assert "any family" in lines["pgd"]
    assert "classification" in lines["trades"]
    assert "TRADES" not in lines["pgd"]
    tasks = invoke("list", "tasks").output
    assert "handwritten digits" in tasks
    assert "--update awp" in invoke("list", "methods").output


def test_methods_in_detail_show_cost_memory_needs_and_paper_on_lines_that_fit_a_terminal():
    text = invoke("list", "methods", "-v").output
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert {
        "name for passes memory needs paper",
        "pgd any 11+11 - - Madry 2018, 1706.06083",
        "lbgat classification 12+11 and 1+1 a second network teacher network Cui 2021, 2011.11164",
        "free not fewshot 8+8 one batch of δ - Shafahi 2019, 1904.12843",
        "--update awp any the loss again 2 copies of w - Wu 2020, 2004.05884",
    } <= lines
    named = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert registry.METHODS.keys() <= named
    assert max(map(len, text.splitlines())) <= 120


def test_a_method_of_a_package_is_shown_in_detail_without_facts(monkeypatch):
    row = registry.Row("somewhere:Theirs", registry.ANY, "from somewhere")
    monkeypatch.setattr(registry, "entry_points", lambda _: {"theirs": row})
    lines = invoke("list", "methods", "-v").output.splitlines()
    assert [line.split() for line in lines if "theirs" in line] == [["theirs", "any", *"----"]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "methods"])
def test_in_detail_the_other_kinds_are_listed_as_ever(kind):
    assert invoke("list", kind, "-v").output == invoke("list", kind).output


def test_version():
    assert invoke("--version").output == f"aal-bench, version {__version__}\n"


def test_without_a_command_there_is_help():
    done = invoke()
    assert "aal-bench run digits --method aal-pgd       train, attack, report" in done.output
    assert {"run", "evaluate", "list", "doctor"} <= set(main.commands)


def test_run_has_the_options_of_the_issue():
    options = {name for option in main.commands["run"].params for name in option.opts}
    options |= {name for option in main.commands["run"].params for name in option.secondary_opts}
    asked = (
        "--method --model --data-dir --epochs --batch-size --limit-train --limit-eval --protocol"
        " --seed --device --precision --compile --no-compile --ema --out --resume --set --smoke"
    )
    assert set(asked.split()) <= options


# ---- mistakes in the command itself --------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean run?"),
        (["run"], "Missing argument 'TASK'"),
        (["run", "digits", "--methd", "pgd"], "No such option"),
        (["run", "digits", "--epochs", "0"], "Invalid value for '--epochs': 0 is not in the range"),
        (["run", "digits", "--epochs", "ten"], "'ten' is not a valid integer"),
        (["run", "digits", "--limit-eval", "-1"], "Invalid value for '--limit-eval'"),
        (["run", "digits", "--ema", "1"], "Invalid value for '--ema'"),
        (["run", "digits", "--precision", "fp8"], "'fp8' is not one of 'fp32', 'bf16'"),
        (["run", "digits", "cifar10"], "unexpected extra argument (cifar10)"),
        (["list", "method"], "'method' is not one of 'tasks', 'methods'"),
    ],
)
def test_a_mistyped_command_is_one_line(args, message):
    done = invoke(*args)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- doctor --------------------------------------------------------------------------------------


def test_findings_are_shown_with_what_is_wrong_and_the_command_that_mends_it(capsys):
    show_findings(
        [
            Finding("torch", "2.6", ok=True, core=True),
            Finding("ray", "", ok=False, core=False, problem="not installed", mend="pip install x"),
        ]
    )
    assert click.unstyle(capsys.readouterr().out).splitlines() == [
        "ok  torch  2.6",
        "no  ray",
        "    not installed",
        "    mend: pip install x",
    ]


def test_doctor_exits_with_1_when_the_core_is_broken(tmp_path):
    """Every toolkit, torch among them, behind a file that cannot be imported: as if none worked."""
    for toolkit in TOOLKITS:
        (tmp_path / f"{toolkit.module}.py").write_text("raise ImportError('libgone.so: no file')")
    done = subprocess.run(
        [sys.executable, "-m", "aal_bench.cli", "doctor"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "no  torch " in done.stdout
    assert "ok  python" in done.stdout
    assert "    ImportError: libgone.so: no file" in done.stdout
    assert "    mend: pip install" in done.stdout
    assert done.stderr == ""
