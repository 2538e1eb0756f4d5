"""``docs/methods``, written from the code: ``make docs``.

A page brings together what stands in one place each: the class and its docstrings, its options
model, `method_facts`, the registry's row, and the papers' tables in ``leaderboards/reported``.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from aal_bench import method_facts, registry
from aal_bench.leaderboard import reported
from aal_bench.method_facts import Facts
from aal_bench.registry import Row
from aal_bench.resolve import OFFICIAL_OPTIMISER

OWN_TASK = {"classification": "cifar10", "fewshot": "mini-imagenet", "detection": "voc0712"}
"""The task of a family's papers."""
SMALL_TASK = {"classification": "digits", "fewshot": "glyphs", "detection": "scenes"}
"""The embedded one."""
NAMES = {"clean": "clean", "autoattack": "AutoAttack", "fgsm": "FGSM", "map": "mAP"}
"""Columns of printed tables."""
GENERATED = "<!-- Written by `make docs` from the code: change the code, not this page. -->"


def write(folder: Path) -> list[Path]:
    """Write every page into `folder`; the pages of methods that are gone are removed."""
    pages = dict(render())
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.md"):
        if left.name not in pages:
            left.unlink()
    for name, text in pages.items():
        (folder / name).write_text(f"{text}\n", encoding="utf-8")
    return [folder / name for name in pages]


def render() -> Iterator[tuple[str, str]]:
    """(file name, text) of the table of all methods and of the page of each."""
    yield "README.md", overview()
    for name, row in registry.METHODS.items():
        yield f"{name}.md", page(name, row)


# ---- the table of all ----------------------------------------------------------------------------


def overview() -> str:
    """The table of all methods and updates."""
    head = ("method", "for", "loss", "attack", "passes", "memory", "needs", "paper")
    rows = []
    for name, row in registry.METHODS.items():
        facts = method_facts.METHODS[name]
        served, *rest = method_facts.cells(row.families, facts)
        rows.append((f"[{name}]({name}.md)", served, facts.loss, facts.attack, *rest))
    around = [
        (f"`--update {name}`", facts.loss, facts.passes or "-", facts.memory or "-")
        for name, facts in method_facts.UPDATES.items()
    ]
    return _joined(
        f"# Training methods\n\n{GENERATED}",
        f"Passes are forwards + backwards of a whole batch in one step of training, with"
        f" {method_facts.STEPS} attack steps (where a method takes several) and default options;"
        " after 'and' those of the network beside the model. They are counted on every run"
        " (`training.passes` in `result.json`) and held by tests. `aal-bench list methods -v` shows"
        " the same table; [methods.md](../methods.md) is the contract that all of them keep.",
        "x is an image, x' the attacked one, y its class of K; f are logits and p probabilities of"
        " the network, ε the training budget. In memory, H is the side of the images, p the padding"
        " of their crops, C the channels at a gate and w the weights.",
        table(head, rows),
        "## Updates",
        "What happens around the optimiser step composes with every method.",
        table(("update", "loss", "passes on top", "memory"), around),
        *(_update_options(name) for name in method_facts.UPDATES if name != "plain"),
    )


def _update_options(name: str) -> str:
    kind = registry.load(registry.UPDATES[name].target)
    return _joined(prose(_doc(kind)), _options_table(options(kind.Options), "update."))


# ---- one page ------------------------------------------------------------------------------------


def page(name: str, row: Row) -> str:
    """The page of one method."""
    kind, facts = registry.load(row.target), method_facts.METHODS[name]
    family = row.families[0]
    return _joined(
        f"# {name}\n\n{GENERATED}",
        f"{row.summary[0].upper()}{row.summary[1:]}. For: {', '.join(row.families)}.",
        _code(
            f"aal-bench run {SMALL_TASK[family]} --method {name}",
            f"aal-bench run {OWN_TASK[family]} --method {name}",
        ),
        "## What it does",
        table(("", ""), [("loss", facts.loss), ("attack", facts.attack)]),
        prose(_doc(kind)),
        prose(_beyond_title(inspect.getmodule(kind))),
        "## Cost",
        _cost(facts),
        "## Conditions" if (told := list(_conditions(kind, facts))) else "",
        bullets(told),
        "## Options",
        _options(kind, row),
        *_recipe(name, kind),
        *_faults(facts),
        "## Published numbers",
        _published(name, facts),
        "## Source",
        bullets(_sources(facts)),
    )


def _cost(facts: Facts) -> str:
    head = ("network", "forwards", "backwards to x", "backwards to the weights", "")
    rows = []
    for cost in facts.costs:
        for network, passes in {"model": cost.model, **cost.others}.items():
            bound = "at most" if cost.at_most and network == "model" else ""
            rows.append((network, *map(str, passes), "; ".join(filter(None, (bound, cost.when)))))
    memory = f"Memory beside network, gradients, optimiser and one batch: {facts.memory}."
    return _joined(
        f"Passes of a whole batch in one step of training, {method_facts.STEPS} steps in an attack"
        " of several:"
        if rows
        else "",
        table(head, rows) if rows else "",
        prose(facts.cost_note),
        prose(memory) if facts.memory else "",
    )


def _conditions(kind: Any, facts: Facts) -> Iterator[str]:
    if facts.needs:
        yield f"Needs: {facts.needs}. {facts.needs_note}".strip()
    if kind.least_batch > 1:
        yield f"Needs {kind.least_batch} images in a batch at least."
    if kind.augmentations is not None:
        yield f"Augmentation (`train.augment`): one of {', '.join(kind.augmentations)}."
    if kind.precision is not None:
        yield f"Trains in {kind.precision} whatever the hardware has."
    if kind.train_defaults:
        settings = ", ".join(f"{key} {_typed(v)}" for key, v in kind.train_defaults.items())
        yield f"Its own `[train]`, unless typed: {settings}."
    if kind.update != "plain":
        yield f"Is `--update {kind.update}` by definition; another one is refused."
    for update, chosen in kind.update_defaults.items():
        settings = ", ".join(f"`update.{key}={_typed(value)}`" for key, value in chosen.items())
        yield f"With the update {update}, unless typed: {settings}."


def _options(kind: Any, row: Row) -> str:
    found = options(kind.Options)
    own = [
        f"On {family} tasks {', '.join(f'`{k}={_typed(v)}`' for k, v in other.items())} by default."
        for family in row.families
        if (other := kind.family_defaults(family))
    ]
    if not found:
        return "None."
    return _joined("`--set NAME=VALUE`", _options_table(found), *own)


def _options_table(found: list[Option], prefix: str = "") -> str:
    return table(
        ("name", "default", "values", ""),
        [(f"`{prefix}{o.name}`", o.default, o.values, o.text) for o in found],
    )


def _recipe(name: str, kind: Any) -> Iterator[str]:
    recipe = kind.recipe
    if recipe is None:
        return
    train = OFFICIAL_OPTIMISER | recipe.train
    settings = {f"train.{key}": value for key, value in train.items()}
    for key, value in recipe.options.items():
        parts = value if isinstance(value, dict) else {"": value}
        settings |= {f"method.{key}.{part}".rstrip("."): v for part, v in parts.items()}
    settings |= {f"crafting.{key}": value for key, value in recipe.crafting.items()}
    commands = [f"aal-bench run cifar10 --method {name} --recipe official"]
    if recipe.eps_031:
        commands.append(f"aal-bench run cifar10 --method {name} --recipe official-031")
    yield "## Official recipe"
    yield (
        "The settings of the official script in place of the task's; what is typed still wins."
        + (
            " Its budget is .031, which is not 8/255: `official-031` trains with that too, and the"
            " evaluation stays the task's."
            if recipe.eps_031
            else ""
        )
    )
    yield _code(*commands)
    yield table(("key", "value"), [(f"`{key}`", _typed(v)) for key, v in settings.items()])
    yield prose(f"From {recipe.source.removesuffix('.')}." if recipe.source else "")


def _faults(facts: Facts) -> Iterator[str]:
    if facts.faults:
        yield "## What the official code does otherwise"
        yield bullets(
            f"{fault.what} `--set {fault.switch}` does the same." if fault.switch else fault.what
            for fault in facts.faults
        )


def _sources(facts: Facts) -> Iterator[str]:
    paper = facts.paper
    if paper is not None:
        yield f"{paper.who} et al. {paper.year}: {paper.title}. {paper.place}"
    if facts.code:
        yield f"Official code: {facts.code}"
    if facts.paper is None and not facts.code:
        yield "The control that every other row is read against."


# ---- published numbers ---------------------------------------------------------------------------


def _published(name: str, facts: Facts) -> str:
    rows = [*_printed(name), *_robustbench(facts), *_further(facts)]
    if not rows:
        return "None that is comparable."
    return _joined(
        "In percent, as printed; none was measured here. Those at 0.031, on another network or"
        " under another PGD are no yardstick for a run at 8/255: `aal-bench compare` is.",
        table(("data", "model", "eps", "", "source"), rows),
    )


def _printed(name: str) -> Iterator[tuple[str, ...]]:
    """Rows of the papers' tables, as `leaderboard.reported` names the methods there."""
    for paper in reported.PAPERS:
        file = reported.read(paper)
        for printed in file["tables"]:
            for row in printed["rows"] if "columns" in printed else ():
                if row.get("method") in reported.PRINTED.get(name, ()):
                    yield _printed_row(file["key"], printed, row)


def _printed_row(key: str, printed: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    values = {stage: row[column] for column, stage in printed["columns"].items()}
    if isinstance(printed.get("metric"), dict):
        values = {"map": values["clean"]}
    detail = "".join(f", {word} {row[word]}" for word in ("attention", "kernel") if word in row)
    return (
        row.get("dataset") or printed["dataset"],
        row.get("backbone") or printed.get("backbone") or "-",
        printed.get("eps", "-"),
        _results(values),
        f"{key}, {printed['label']}: {row['method']}{detail}",
    )


def _results(values: Mapping[str, str | None]) -> str:
    shown = {NAMES.get(stage, _stage(stage)): value for stage, value in values.items()}
    return ", ".join(f"{stage} {value}" for stage, value in shown.items() if value)


def _stage(stage: str) -> str:
    """``pgd-20`` -> PGD-20, ``cw-inf-30`` -> C&W, ``5w1s`` -> 5-way 1-shot."""
    episode = re.fullmatch(r"(\d+)w(\d+)s", stage)
    if episode:
        return f"{episode[1]}-way {episode[2]}-shot"
    return "C&W" if stage.startswith("cw-") else stage.upper()


def _robustbench(facts: Facts) -> Iterator[tuple[str, ...]]:
    rows = {row["entry"]: row for row in reported.read("robustbench-cifar10-Linf")["rows"]}
    for entry, form in facts.robustbench.items():
        row = rows[entry]
        values = {"clean": row["clean"], "autoattack": row["robust"]}
        own = f"; its authors report {row['reported']}" if row["reported"] != row["robust"] else ""
        extra = ", with additional data" if row["additional_data"] else ""
        extra += f", {form}" if form else ""
        yield (
            *("CIFAR10", row["architecture"], row["eps"]),
            f"{_results(values)}{own}",
            f"RobustBench: {entry}{extra}",
        )


def _further(facts: Facts) -> Iterator[tuple[str, ...]]:
    for row in facts.published:
        attacked = re.fullmatch(r"(.+) \((.+)\)", row.pgd)
        values = {"clean": row.clean}
        if attacked:
            values[attacked[2]] = attacked[1]
        values["autoattack"] = row.autoattack
        yield "CIFAR10", row.model, row.eps, _results(values), row.source


# ---- options, from pydantic and from the source --------------------------------------------------


class Option(NamedTuple):
    """One field of an options model, in words."""

    name: str
    default: str
    values: str
    text: str


def options(model: type[BaseModel], prefix: str = "") -> list[Option]:
    """The fields of `model`, those of a model inside it as ``gate.position``."""
    told = descriptions(model)
    found: list[Option] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += options(kind, f"{prefix}{name}.")
            continue
        text = (field.description or told.get(name, "")).replace("``", "`")
        found.append(Option(prefix + name, _default(field), _values(field), text))
    return found


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field, the nearest class's where several have one."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            found |= _docstrings(kind)
    return found


def _docstrings(kind: type) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)  # pyright: ignore[reportCallIssue]
    return "required" if value is PydanticUndefined else _typed(value)


def _values(field: FieldInfo) -> str:
    said = _allowed(field.annotation, field.metadata)
    return " or ".join(dict.fromkeys(said))


def _allowed(kind: Any, metadata: Iterable[Any] = ()) -> list[str]:
    """What a type lets through: its choices, or its bounds."""
    bounds = [
        f"{sign} {_typed(bound)}"
        for sign, name in ((">", "gt"), ("≥", "ge"), ("<", "lt"), ("≤", "le"))
        for mark in metadata
        if (bound := getattr(mark, name, None)) is not None
    ]
    if kind is type(None):
        return ["none"]
    if kind is bool:
        return ["true, false"]
    if get_origin(kind) is Literal:
        return [", ".join(_typed(choice) for choice in get_args(kind))]
    if hasattr(kind, "__metadata__"):
        inner, *marks = get_args(kind)
        nested = [mark for m in marks for mark in getattr(m, "metadata", [m])]
        return _allowed(inner, nested)
    if get_origin(kind) is tuple:
        return [f"[{', '.join(_typed_kind(part) for part in get_args(kind))}]"]
    parts = get_args(kind)
    if parts:
        return [
            word
            for part in parts
            for word in _allowed(part, () if part is type(None) else metadata)
        ]
    return [" and ".join(bounds)] if bounds else [_typed_kind(kind)]


def _typed_kind(kind: Any) -> str:
    return {int: "whole number", float: "number", str: "text"}.get(kind, str(kind))


def _typed(value: Any) -> str:
    """A value as TOML writes it, but for None and fractions."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, tuple | list):
        return f"[{', '.join(_typed(one) for one in value)}]"
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value)


def _number(value: float) -> str:
    """A decimal, or the fraction that has no short one: 1/3."""
    short = f"{value:.6g}"
    nearest = Fraction(value).limit_denominator(1000)
    return short if float(short) == value else f"{nearest.numerator}/{nearest.denominator}"


# ---- Markdown ------------------------------------------------------------------------------------


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars and stars in cells are text."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def prose(text: str) -> str:
    """A docstring as paragraphs, one line each; its formulas are text, its code stays code."""
    paragraphs = [" ".join(part.split()) for part in text.replace("``", "`").split("\n\n")]
    return "\n\n".join(escaped(part) for part in paragraphs if part)


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {escaped(line)}" for line in lines)


def escaped(text: str) -> str:
    """`text` with Markdown's marks as text, except inside backquotes and links."""
    parts = re.split(r"(`[^`]*`|\[[^\]]*\]\([^)]*\.md\))", text)
    for at in range(0, len(parts), 2):
        parts[at] = re.sub(r"[*<|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", parts[at])
    return "".join(parts)


def _code(*lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def _beyond_title(module: Any) -> str:
    return _doc(module).partition("\n\n")[2]


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    (target,) = sys.argv[1:] or ["docs/methods"]
    for path in write(Path(target)):
        print(path)
