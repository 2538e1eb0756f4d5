"""Readable tables name -> "module:attribute", resolved only when something is used.

Nothing here imports torch: ``aal-bench list`` and ``--help`` read these tables and answer at once.
Third parties add rows through the entry points ``aal_bench.methods``, ``aal_bench.attacks`` and
``aal_bench.tasks``; a single user through ``module:Class`` or ``file.py:Class``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from aal_bench.errors import UserError, did_you_mean
from aal_bench.paths import data_folder

CLASSIFICATION = ("classification",)
ANY = ("classification", "detection", "fewshot")


class Row(NamedTuple):
    """One registered thing: where it lives, the task families it serves, what it is."""

    target: str
    families: tuple[str, ...]
    summary: str


ADAPTERS = {
    "classification": Row(
        "aal_bench.adapters.classification:Classification", CLASSIFICATION, "labelled images"
    ),
}

METHODS = {
    "standard": Row("aal_bench.methods.standard:Standard", ANY, "cross-entropy on clean images"),
    "fgsm": Row("aal_bench.methods.fgsm:FGSM", ANY, "one step of eps from x (Goodfellow 2015)"),
    "rs-fgsm": Row(
        "aal_bench.methods.rs_fgsm:RSFGSM", ANY, "random start, step 1.25 eps (Wong 2020)"
    ),
    "pgd": Row("aal_bench.methods.pgd:PGD", ANY, "PGD adversarial training (Madry 2018)"),
    "trades": Row(
        "aal_bench.methods.trades:TRADES", CLASSIFICATION, "clean CE + beta KL (Zhang 2019)"
    ),
    "aal-fgsm": Row(
        "aal_bench.methods.aal:AALFGSM", ANY, "selective attack on the gate's M^a, one step"
    ),
    "aal-pgd": Row(
        "aal_bench.methods.aal:AALPGD", ANY, "selective attack on the gate's M^a, PGD"
    ),
}

UPDATES = {
    "plain": Row("aal_bench.methods.updates:Plain", ANY, "one optimiser step on the loss"),
    "awp": Row(
        "aal_bench.methods.updates:AWP", ANY, "adversarial weight perturbation (Wu 2020)"
    ),
}

ATTACKS = {
    "clean": Row("aal_bench.attacks.stages:Clean", CLASSIFICATION, "no attack, one forward"),
    "fgsm": Row("aal_bench.attacks.stages:FGSM", CLASSIFICATION, "torchattacks FGSM, one step"),
    "pgd-N": Row(
        "aal_bench.attacks.stages:PGD",
        CLASSIFICATION,
        "torchattacks PGD, N steps of the task's step size, uniform start",
    ),
    "cw-inf-N": Row(
        "aal_bench.attacks.stages:CWInf", CLASSIFICATION, "PGD on the margin loss, N steps"
    ),
    "apgd-ce": Row(
        "aal_bench.attacks.autoattack:APGDCE", CLASSIFICATION, "AutoAttack 1/4: APGD on CE"
    ),
    "apgd-t": Row(
        "aal_bench.attacks.autoattack:APGDT", CLASSIFICATION, "AutoAttack 2/4: APGD on DLR, targets"
    ),
    "fab-t": Row(
        "aal_bench.attacks.autoattack:FABT", CLASSIFICATION, "AutoAttack 3/4: FAB, targets"
    ),
    "square": Row(
        "aal_bench.attacks.autoattack:Square", CLASSIFICATION, "AutoAttack 4/4: 5,000 queries"
    ),
}

MODELS = {
    "resnet18": Row(
        "aal_bench.models.robustbench:resnet18", CLASSIFICATION, "RobustBench ResNet-18, 32 px"
    ),
    "preactresnet18": Row(
        "aal_bench.models.robustbench:preactresnet18",
        CLASSIFICATION,
        "RobustBench PreActResNet-18, 32 px",
    ),
    "wrn-D-W": Row(
        "aal_bench.models.robustbench:wide_resnet",
        CLASSIFICATION,
        "RobustBench WideResNet, depth D, width W (wrn-34-10), 32 px",
    ),
    "resnet50": Row(
        "aal_bench.models.torchvision:resnet50", CLASSIFICATION, "torchvision ResNet-50, 224 px"
    ),
    "cnn4": Row(
        "aal_bench.models.learn2learn:cnn4", CLASSIFICATION, "learn2learn CNN4, 4 conv blocks"
    ),
}

TABLES = {
    "method": METHODS,
    "update": UPDATES,
    "attack": ATTACKS,
    "model": MODELS,
    "adapter": ADAPTERS,
}
PROTOCOLS = {
    "full": (
        ("clean", "fgsm", "pgd-10", "apgd-ce", "apgd-t", "fab-t", "square"),
        "clean, FGSM, PGD-10, AutoAttack standard: the default, rankable",
    ),
    "paper": (("clean", "fgsm", "pgd-10"), "the AAL paper's columns; never ranked"),
    "again": (
        (
            *("clean", "pgd-10", "pgd-20", "pgd-50", "pgd-100", "cw-inf-30"),
            *("apgd-ce", "apgd-t", "fab-t", "square"),
        ),
        "the AGAIN poster's columns, rankable",
    ),
    "standard": (
        ("clean", "apgd-ce", "apgd-t", "fab-t", "square"),
        "clean and AutoAttack standard, as RobustBench: rankable",
    ),
    "fast": (
        ("clean", "pgd-20", "apgd-ce", "apgd-t"),
        "development: 97 % of AutoAttack's effect in a third of its time; never ranked",
    ),
    "smoke": (("clean", "fgsm", "pgd-2"), "seconds; proves that the parts run; never ranked"),
}
AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
_NUMBER = r"[1-9]\d{0,4}"


class Found(NamedTuple):
    """A resolved name: its row and the numbers in the name (``wrn-34-10`` -> (34, 10))."""

    name: str
    row: Row
    numbers: tuple[int, ...]


def find(kind: str, name: str) -> Found:
    """Look `name` up; ``-N`` or ``-D-W`` in a row's name stands for numbers.

    Raises:
        UserError: unknown name; the nearest ones are named.
    """
    table = TABLES[kind] | entry_points(kind)
    if name in table:
        return Found(name, table[name], ())
    for pattern, row in table.items():
        shape = re.sub(r"-[NDW](?=-|$)", lambda _: rf"-({_NUMBER})", pattern)
        match = re.fullmatch(shape, name)
        if match and shape != pattern:
            return Found(name, row, tuple(int(number) for number in match.groups()))
    raise UserError(
        f"unknown {kind} '{name}'.{did_you_mean(name, list(table))} (aal-bench list {kind}s)"
    )


def method_row(name: str) -> Row:
    """The row of a method's name, or a row made of ``module:Class`` / ``file.py:Class``."""
    if ":" in name:
        return Row(name, ANY, "a method of your own")
    return find("method", name).row


def serves(row: Row, name: str, family: str) -> None:
    """Refuse a method on a family it cannot serve, naming those that can."""
    if family not in row.families:
        fitting = ", ".join(key for key, other in METHODS.items() if family in other.families)
        raise UserError(
            f"method '{name}' serves {', '.join(row.families)}, not {family}. These can: {fitting}"
        )


def load(target: str) -> Any:
    """Import ``package.module:attribute`` or ``path/to/file.py:attribute``.

    Raises:
        UserError: no such module, file or attribute.
    """
    module_name, _, attribute = target.rpartition(":")
    if not module_name or not attribute:
        raise UserError(f"'{target}' is not module:name or file.py:name")
    module = _from_file(module_name) if module_name.endswith(".py") else _from_name(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(
            f"{module_name} has no '{attribute}'.{did_you_mean(attribute, public)}"
        ) from None


def _from_file(name: str) -> Any:
    import importlib.util
    import sys

    path = Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such file")
    module_name = f"aal_bench_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise UserError(f"no module named '{name}' (is it on PYTHONPATH?)") from None


def entry_points(kind: str) -> dict[str, Row]:
    """Rows that installed packages offer under ``aal_bench.<kind>s``."""
    from importlib import metadata

    return {
        point.name: Row(point.value, ANY, f"from {point.value.split('.')[0]}")
        for point in metadata.entry_points(group=f"aal_bench.{kind}s")
    }


def task_file(name: str) -> Path:
    """Find ``tasks/<name>.toml``, or the file itself when `name` is a path to one.

    Raises:
        UserError: unknown task; the nearest ones are named.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such task file")
        return path
    known = task_files()
    if name not in known:
        raise UserError(
            f"unknown task '{name}'.{did_you_mean(name, list(known))} (aal-bench list tasks)"
        )
    return known[name]


def task_files() -> dict[str, Path]:
    """Every task by name: ours, and those that installed packages offer (a folder of TOML)."""
    from importlib import metadata
    from importlib.util import find_spec

    folders = [data_folder("tasks")]
    for point in metadata.entry_points(group="aal_bench.tasks"):
        spec = find_spec(point.value)
        folders += [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def protocol(name: str) -> tuple[str, ...]:
    """The stages of a named protocol, in order."""
    if name not in PROTOCOLS:
        raise UserError(
            f"unknown protocol '{name}'.{did_you_mean(name, list(PROTOCOLS))}"
            f" Known: {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name][0]
