"""Which code a verification runs: what is registered here, or what the verifier himself typed.

No record has code run. A record that names its submitter's file can still be verified by somebody
who has the file and says so, by its path.
"""

from __future__ import annotations

from typing import NamedTuple

from aal_bench.errors import UserError
from aal_bench.evaluate import ZOO
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import shown
from aal_bench.plugins import source_sha256
from aal_bench.record import Result

OURS = "aal_bench.models.build:build"
ZOO_NAME = "robustbench:"
WIDTH = 120
"""Characters of a quoted name."""


class Typed(NamedTuple):
    """Code that the verifier trusts, as typed; None: none."""

    model: str | None = None
    """``path/file.py:build`` or ``module:build``."""
    method: str | None = None
    """``path/file.py:Class`` or ``module:Class``."""


NOTHING = Typed()


def from_zoo(result: Result) -> bool:
    """Whether RobustBench's loader has the weights, so that no file needs to be given."""
    return result.model.loader == ZOO


def plain(name: str) -> str:
    """A name without the folder of its file, which differs from machine to machine."""
    return name.rpartition("/")[2]


def names(result: Result, typed: Typed) -> tuple[str, str]:
    """The model and the method to build: the record's registered names, or what was typed instead.

    Args:
        result: whose model is to be rebuilt.
        typed: each takes the place of code that the record names, under the same file's name.

    Raises:
        UserError: the record names code that was not typed, or other code, or none at all.
    """
    method = (result.model.surgery or {"name": "standard"}).get("name")
    if not isinstance(method, str):
        raise UserError("model.surgery names no method: the entry cannot be rebuilt")
    if result.model.loader not in {None, OURS, ZOO}:
        raise UserError(
            f"the entry is built by the code {shown(result.model.loader, WIDTH)}, and no record has"
            " code run here: evaluate its checkpoint yourself with aal-bench evaluate --model"
        )
    return _model(result, typed.model), _chosen("method", method, typed.method)


def used(typed: Typed) -> list[Finding]:
    """What was run because somebody typed it: one finding of level 2 for each."""
    return [
        Finding(2, f"{kind} code", True, f"{plain(name)}, typed; sha256 {_digest(name)}")
        for kind, name in typed._asdict().items()
        if name is not None
    ]


def _model(result: Result, typed: str | None) -> str:
    name = result.model.name
    if not (from_zoo(result) and name.startswith(ZOO_NAME)):
        return _chosen("model", name, typed)
    if typed is not None:
        raise UserError("the entry's model comes from RobustBench's zoo: omit --model")
    return name


def _chosen(kind: str, named: str, typed: str | None) -> str:
    """What runs on a machine is what its owner chose."""
    if ":" not in named:
        if typed is not None:
            raise UserError(f"the entry's {kind} is {shown(named, WIDTH)}, no code: omit --{kind}")
        return named
    own = plain(named)
    if typed is None:
        path = f"PATH/{own}" if own.partition(":")[0].endswith(".py") else own
        raise UserError(
            f"the entry names the code {shown(own, WIDTH)}; if you have that file and trust it, add"
            f" --{kind} {shown(path, WIDTH)[1:-1]}"
        )
    if plain(typed) != own:
        raise UserError(
            f"--{kind} {typed}: the entry names the code {shown(own, WIDTH)}; give that"
        )
    return typed


def _digest(name: str) -> str:
    return (source_sha256(name) or "unknown")[:8]
