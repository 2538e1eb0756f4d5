"""`doctor` finds what is broken, says which command mends it, and survives what it examines."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from aal_bench import doctor
from aal_bench.doctor import Finding, Toolkit, examine, healthy

EXAMINE = """
import json
from aal_bench.doctor import examine, healthy
findings = examine()
print(json.dumps({"healthy": healthy(findings), "findings": [f._asdict() for f in findings]}))
"""


def examine_with(pythonpath):
    """Run `examine` in an interpreter that finds the modules of a folder first."""
    paths = filter(None, [str(pythonpath), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", EXAMINE], capture_output=True, text=True, env=environment, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["healthy"], {f["name"]: f for f in answer["findings"]}


def test_broken_toolkits_are_named_and_the_others_are_still_examined(tmp_path):
    (tmp_path / "torchattacks.py").write_text("raise ImportError('libcudart.so.99: no such file')")
    (tmp_path / "ray.py").write_text("import os; os.abort()")
    well, found = examine_with(tmp_path)

    broken = found["torchattacks"]
    assert not broken["ok"]
    assert broken["core"]
    assert broken["problem"] == "ImportError: libcudart.so.99: no such file"
    assert broken["mend"] == "pip install --force-reinstall --no-deps torchattacks"
    assert found["ray"]["problem"] == "importing it crashes Python (SIGABRT)"
    assert found["ray"]["mend"] == "pip install 'aal-bench[cluster]'"
    assert not found["ray"]["core"]
    assert not well

    others = [f for name, f in found.items() if name not in ("torchattacks", "ray")]
    assert [f["name"] for f in others if not f["ok"]] == []
    assert found["mmdet"]["version"] == version("onedl-mmdetection")
    assert found["robustbench"]["version"] == version("robustbench")
    assert found["python"]["version"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert f"{os.cpu_count()} cores" in found["cpu"]["version"]
    assert "bf16 instructions" in found["cpu"]["version"]


def test_only_a_broken_core_is_unhealthy():
    core = Finding("torch", "2.6", ok=True, core=True)
    extra = Finding("ray", "", ok=False, core=False, problem="not installed", mend="pip ...")
    assert healthy([core, extra])
    assert not healthy([core._replace(ok=False), extra])


def test_missing_toolkit_is_mended_by_its_extra(monkeypatch):
    rows = (Toolkit("not_there", "not-there", "detection"), Toolkit("nor_here", "nor-here"))
    monkeypatch.setattr(doctor, "TOOLKITS", rows)
    *_, extra, core = examine()
    assert extra == Finding(
        "not_there", "", False, False, "not installed", "pip install 'aal-bench[detection]'"
    )
    assert core == Finding("nor_here", "", False, True, "not installed", "pip install nor-here")


def test_old_python_is_a_broken_core(monkeypatch):
    monkeypatch.setattr(doctor, "TOOLKITS", ())
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (99, 1))
    findings = examine()
    assert findings[0].problem == "aal-bench needs Python 99.1 or newer"
    assert findings[0].mend.startswith("python99.1 -m venv")
    assert not healthy(findings)


@pytest.mark.parametrize(
    ("torch", "needs", "broken", "says"),
    [
        ("2.14.0", "torch (==2.15.0)", False, "it needs torch==2.15.0"),
        ("2.15.0+cpu", "torch (==2.15.0)", True, "one is a build for another device"),
        ("2.15.0+cpu", "torch (==2.15.0)", False, ""),  # it imports: nothing to complain of
        ("2.15.0", "torch (>=2.14)", True, ""),  # broken for another reason
    ],
)
def test_torch_and_torchvision_are_judged_by_their_metadata(
    tmp_path, monkeypatch, torch, needs, broken, says
):
    for name, number, line in (("torch", torch, ""), ("torchvision", "0.30", needs)):
        folder = tmp_path / f"{name}-{number}.dist-info"
        folder.mkdir()
        requires = f"Requires-Dist: {line}\n" if line else ""
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{requires}"
        )
    monkeypatch.syspath_prepend(tmp_path)
    problem = doctor._mismatched_pair(broken)
    assert problem == (f"torchvision 0.30 does not fit torch {torch}: {says}" if says else "")
    if says:
        kit = Toolkit("torchvision", "torchvision")
        assert doctor._mend(kit, problem) == "pip install --force-reinstall torch torchvision"


def test_two_faults_are_mended_by_what_causes_them():
    kit = Toolkit("robustbench", "robustbench")
    missing = "ModuleNotFoundError: No module named 'pkg_resources'"
    assert doctor._mend(kit, missing) == "pip install 'setuptools<81'"
    overwritten = "11 files of robustbench were overwritten by another package"
    again = f"pip install --force-reinstall --no-deps robustbench=={version('robustbench')}"
    assert doctor._mend(kit, overwritten) == again


def test_the_examination_itself_needs_no_toolkit():
    code = "import sys, aal_bench.doctor; print({'torch', 'mmcv', 'gym'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
