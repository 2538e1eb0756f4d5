"""Code and tasks that are not ours: ``module:Class``, ``file.py:Class``, installed entry points."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aal_bench.errors import UserError, did_you_mean
from aal_bench.hashing import sha256_file

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints


def load(target: str) -> Any:
    """Import ``package.module:attribute`` or ``path/to/file.py:attribute``.

    Raises:
        UserError: no such module, file or attribute, or a file that is not Python.
    """
    module_name, _, attribute = target.rpartition(":")
    if not module_name or not attribute:
        raise UserError(f"'{target}' is not module:name or file.py:name")
    module = _module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(
            f"{module_name} has no '{attribute}'.{did_you_mean(attribute, public)}"
        ) from None


def source_sha256(target: str) -> str | None:
    """Hex sha256 of the file that defines ``module:attribute``; None for a compiled module.

    Raises:
        UserError: as `load`.
    """
    module = _module(target.rpartition(":")[0])
    path = getattr(module, "__file__", None)
    return sha256_file(Path(path)) if path and path.endswith(".py") else None


def installed(group: str) -> EntryPoints:
    """The entry points of that group in every installed package."""
    return _every_entry_point().select(group=group)


def folders(point: EntryPoint) -> list[Path]:
    """The folder of the package that an entry point names; several for a namespace package.

    Raises:
        UserError: there is no such package.
    """
    from importlib.util import find_spec

    try:
        spec = find_spec(point.module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise UserError(
            f"an installed package offers '{point.value}', which does not exist: reinstall it"
            f" (entry point {point.name} of {point.group})"
        )
    return [Path(place) for place in spec.submodule_search_locations or []]


@cache
def _every_entry_point() -> EntryPoints:
    # Reads a file of every installed package: imported and done only when somebody asks, once.
    from importlib import metadata

    return cast("EntryPoints", metadata.entry_points())


def _module(name: str) -> Any:
    try:
        return _from_file(name) if name.endswith(".py") else _from_name(name)
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from None


def _from_file(name: str) -> Any:
    import importlib.util

    path = Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such file")
    # Named by its content: run once however often it is asked for, and anew when it has changed.
    module_name = f"aal_bench_user_{path.stem}_{sha256_file(path)[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, ModuleNotFoundError):
            raise UserError(f"{name} imports '{error.name}', which is not installed") from None
        raise
    return module


def _from_name(name: str) -> Any:
    import importlib

    if name.startswith("."):
        raise UserError(f"'{name}': write the module's full name")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(f"no module named '{name}' (is it on PYTHONPATH?)") from None
        raise UserError(f"{name} imports '{missing}', which is not installed") from None
