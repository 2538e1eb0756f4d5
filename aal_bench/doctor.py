"""What is installed, what is broken, and the command that mends it (``aal-bench doctor``).

Toolkits are imported in a child process, since a broken one may raise anything or kill the
interpreter (a torchvision built for another torch does). The child imports them in order, with the
repairs of `aal_bench.toolkits`, and says so line by line; where it dies, the first line that is
missing is the broken toolkit, and another child goes on with the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Any, NamedTuple

from aal_bench.environment import cpu_name, has_fast_bf16
from aal_bench.toolkits import robustbench_overwritten

OLDEST_PYTHON = (3, 11)
PATIENCE = 300  # seconds for one child: a cold disk reads torch in a minute
MARK = "aal-bench doctor: "  # toolkits print on standard output too


class Finding(NamedTuple):
    """One line of the examination.

    Attributes:
        name: What was looked at: ``python``, ``cpu``, ``cuda`` or a toolkit.
        version: Its version, or for a device what it is; empty where it is not there.
        ok: Whether it can be used.
        core: Whether aal-bench cannot work without it.
        problem: Why it cannot be used, on one line; empty where `ok`.
        mend: The command that mends it; empty where `ok`.
    """

    name: str
    version: str
    ok: bool
    core: bool
    problem: str = ""
    mend: str = ""


class Toolkit(NamedTuple):
    """A row of `TOOLKITS`: what to import, after which repairs, and who brings it."""

    module: str
    package: str
    extra: str = ""  # the extra of aal-bench; empty for the core
    repairs: tuple[str, ...] = ()
    remedy: str = ""  # where the extra alone does not install


LEARN2LEARN = (  # its sdist has C files for Python <= 3.10: learnables/learn2learn #413
    "pip install --no-deps --config-settings=--build-option=build_ext learn2learn==0.2.0 "
    "&& pip install gym==0.26.2"
)
CHILD = "import sys; from aal_bench.doctor import _child; _child(sys.argv[1:])"
TOOLKITS = (
    Toolkit("torch", "torch"),
    Toolkit("torchvision", "torchvision"),
    Toolkit("torchattacks", "torchattacks"),
    Toolkit("pyautoattack", "pyautoattack"),
    Toolkit(
        "robustbench",
        "robustbench",
        repairs=("robustbench_overwritten", "robustbench_autoattack", "robustbench_import"),
    ),
    Toolkit("accelerate", "accelerate"),
    Toolkit("mmengine", "onedl-mmengine", "detection"),
    Toolkit("mmcv", "onedl-mmcv", "detection", ("mmcv_ops",)),
    Toolkit("mmdet", "onedl-mmdetection", "detection", ("mmdet_ssd", "mmdet_eval_map")),
    Toolkit("learn2learn", "learn2learn", "fewshot", ("learn2learn_import",), LEARN2LEARN),
    Toolkit("ray", "ray", "cluster"),
)


def examine() -> list[Finding]:
    """Look at Python, the devices and every toolkit. Takes as long as importing them all (~15 s).

    Returns:
        One finding each, in the order: python, cpu, cuda, then `TOOLKITS`.
    """
    present = [kit for kit in TOOLKITS if _installed(kit) or find_spec(kit.module) is not None]
    reports = _import_in_children([kit.module for kit in present])
    devices = reports.get("torch", {}).get("devices", {})
    findings = [_python(), *_devices(devices)]
    for kit in TOOLKITS:
        problem = reports[kit.module]["problem"] if kit in present else "not installed"
        if kit.module == "torchvision" and kit in present:
            problem = _mismatched_pair(broken=bool(problem)) or problem
        mend = _mend(kit, problem) if problem else ""
        findings.append(
            Finding(kit.module, _installed(kit), not problem, not kit.extra, problem, mend)
        )
    return findings


def healthy(findings: list[Finding]) -> bool:
    """Whether everything that the core needs works; a broken extra does not count."""
    return all(finding.ok for finding in findings if finding.core)


def _python() -> Finding:
    ok = sys.version_info >= OLDEST_PYTHON
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Finding(
        "python",
        platform.python_version(),
        ok,
        core=True,
        problem="" if ok else f"aal-bench needs Python {wanted} or newer",
        mend="" if ok else f"python{wanted} -m venv .venv && .venv/bin/pip install aal-bench",
    )


def _devices(seen: dict[str, Any]) -> list[Finding]:
    """The findings ``cpu`` and ``cuda`` from what the child saw with torch (empty: no torch)."""
    cpu = f"{cpu_name()}, {os.cpu_count()} cores"
    if seen:
        instructions = "with" if seen["cpu_bf16"] else "without"
        cpu += f", {seen['threads']} threads, {instructions} bf16 instructions"
    return [
        Finding("cpu", cpu, ok=True, core=False),
        Finding("cuda", ", ".join(seen.get("cuda", ())) or "none", ok=True, core=False),
    ]


def _installed(kit: Toolkit) -> str:
    """The version of the package that brings the module, the fork's or upstream's; or empty."""
    for package in (kit.package, kit.module):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def _mismatched_pair(broken: bool) -> str:
    """Why torch and torchvision do not belong together by their own metadata; empty if they do.

    Args:
        broken: Whether torchvision failed to import. Builds of different kinds (``+cpu`` and none)
            are only blamed then.
    """
    from packaging.requirements import Requirement
    from packaging.version import Version

    try:
        torch, vision = version("torch"), version("torchvision")
    except PackageNotFoundError:
        return ""
    pair = f"torchvision {vision} does not fit torch {torch}"
    for line in requires("torchvision") or ():
        wanted = Requirement(line)
        if wanted.name == "torch" and not wanted.specifier.contains(
            Version(torch).public, prereleases=True
        ):
            return f"{pair}: it needs torch{wanted.specifier}"
    if broken and Version(torch).local != Version(vision).local:
        return f"{pair}: one is a build for another device"
    return ""


def _mend(kit: Toolkit, problem: str) -> str:
    """The command for a broken toolkit; the two problems that name another culprit come first."""
    if "pkg_resources" in problem:  # robustbench 1.1.1 imports what setuptools 81 dropped
        return "pip install 'setuptools<81'"
    if "overwritten" in problem:
        return robustbench_overwritten.mend(_installed(kit))
    if problem.startswith("torchvision") and "does not fit" in problem:
        return "pip install --force-reinstall torch torchvision"
    if kit.remedy:
        return kit.remedy
    if kit.extra:
        return f"pip install 'aal-bench[{kit.extra}]'"
    return f"pip install {'--force-reinstall --no-deps ' * bool(_installed(kit))}{kit.package}"


def _import_in_children(modules: list[str]) -> dict[str, dict[str, Any]]:
    """Import `modules` in order; after one that kills the child, another child does the rest.

    Returns:
        For each module ``{"problem": str}``, empty when it imports; torch also has ``"devices"``.
    """
    reports: dict[str, dict[str, Any]] = {}
    child = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    while waiting := [module for module in modules if module not in reports]:
        command = [sys.executable, "-P", "-c", CHILD, *waiting]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=child
            )
            output, death = done.stdout, _last_words(done.stderr, done.returncode)
        except subprocess.TimeoutExpired as expired:
            output = (expired.stdout or b"").decode(errors="replace")
            death = f"importing it takes longer than {PATIENCE} s"
        for line in output.splitlines():
            if line.startswith(MARK):
                reports |= json.loads(line.removeprefix(MARK))
        culprit = next((module for module in waiting if module not in reports), None)
        if culprit is not None:
            reports[culprit] = {"problem": death}
    return reports


def _last_words(stderr: str, code: int) -> str:
    """What a dead child said, on one line: the exception, or the signal that killed it."""
    if code < 0:
        return f"importing it crashes Python ({signal.Signals(-code).name})"
    # the exception is the first line after the last traceback that is not indented
    lines = stderr.strip().splitlines()
    start = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=-1)
    said = [line for line in lines[start + 1 :] if line.strip() and not line.startswith(" ")]
    if not said:
        return f"importing it ends Python with exit code {code}"
    return said[0].removeprefix("aal_bench.errors.UserError: ")


def _child(modules: list[str]) -> None:
    """Import `modules` with their repairs, printing one marked line after each that works."""
    kits = {kit.module: kit for kit in TOOLKITS}
    for module in modules:
        for name in kits[module].repairs:
            importlib.import_module(f"aal_bench.toolkits.{name}").repair()
        importlib.import_module(module)
        report: dict[str, Any] = {"problem": ""}
        if module == "torch":
            report["devices"] = _seen_by_torch()
        print(MARK + json.dumps({module: report}), flush=True)


def _seen_by_torch() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "threads": torch.get_num_threads(),
        "cpu_bf16": has_fast_bf16("cpu"),
        "cuda": [torch.cuda.get_device_name(index) for index in range(count)],
    }
