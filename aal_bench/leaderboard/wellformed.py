"""Level 0: is this an entry, does it lie where it belongs, does it contradict itself? No torch.

The evidence beside it is not opened. What a submitter could have invented consistently passes here;
what he could not is what the task file fixes and what one figure says of another.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aal_bench.config import parse
from aal_bench.errors import UserError
from aal_bench.evidence import FORMATS, columns
from aal_bench.leaderboard import configuration, history, question, stated, texts
from aal_bench.leaderboard.entries import ENTRY_NAME, NORMS, Entry, absolute, on_board
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import differing, rule, same, shown
from aal_bench.record import SCHEMA_VERSION, Record, Result, robustbench_view
from aal_bench.results import seal

KNOWN_VERSIONS = ("1.0", "1.1")
"""Of the record's format, oldest first; the last is `SCHEMA_VERSION`."""


def findings(entry: Entry, root: Path) -> list[Finding]:
    """Every rule of level 0; those about a task only where the task is known.

    Args:
        entry: read and checked against the schema.
        root: the folder that holds the boards.
    """
    record = entry.result
    rules = [
        rule(0, "written", _written(entry), "as aal-bench writes it"),
        rule(0, "seal", _seal(entry), _unjudged(entry) or "recomputes"),
        rule(0, "name", _name(entry), _unjudged(entry) or record.submission_id),
        rule(0, "folder", _folder(entry, root), _place(entry)),
        rule(0, "eligible", _eligible(record), "success, not smoke, the whole test set"),
        *texts.findings(entry.tree, record),
        rule(0, "evidence file", _evidence(entry), entry.evidence_path.name),
    ]
    task = question.task_of(record)
    asked = question.asked(record, task)
    rules.append(asked)
    if task is None or not asked.ok:
        return rules
    return [
        *rules,
        question.hashes(record, task),
        *stated.findings(record, task),
        *configuration.findings(record, task),
        *history.findings(record, entry.is_run),
        question.flags(record, task),
    ]


def schema(tree: dict[str, Any], error: UserError) -> list[Finding]:
    """The findings of a file that the schema refuses with `error`.

    Where the typed blocks alone are sound, it is RobustBench's keys that contradict them.
    """
    top = Result.model_fields.keys() - Record.model_fields.keys()
    typed = {key: value for key, value in tree.items() if key not in top}
    try:
        robustbench_view(parse(Record, typed, "record"))
    except (UserError, ArithmeticError, RecursionError):
        return [rule(0, "schema", [str(error)], "")]
    return [rule(0, "schema", [], _version(tree)), rule(0, "robustbench", [str(error)], "")]


def sound(entry: Entry) -> list[Finding]:
    """The findings of a file that the schema takes."""
    view = f"clean_acc {entry.result.clean_acc}, autoattack_acc {entry.result.autoattack_acc}"
    return [
        rule(0, "schema", [], _version(entry.tree)),
        rule(0, "robustbench", [], f"its keys are those of the typed blocks: {view}"),
    ]


def _version(tree: dict[str, Any]) -> str:
    return f"version {tree.get('schema_version', SCHEMA_VERSION)}"


def _unjudged(entry: Entry) -> str:
    return "not judged: a run that is no entry yet" if entry.is_run else ""


def _written(entry: Entry) -> Iterator[str]:
    version = entry.result.schema_version
    current = version == SCHEMA_VERSION
    if version not in KNOWN_VERSIONS:
        yield f"schema_version {shown(version)} is newer than {SCHEMA_VERSION}"
    elif not (entry.is_run or current):
        # Entries are sealed and have a history, which came with 1.1.
        yield f"schema_version {version}; entries have {SCHEMA_VERSION}"
    written = entry.result.model_dump(mode="json")
    yield from _rewritten(entry.tree, written, "", whole=current)


def _rewritten(raw: Any, written: Any, path: str, whole: bool) -> Iterator[str]:
    """Where the file does not hold what the program would write after reading it."""
    if isinstance(raw, dict) and isinstance(written, dict):
        for key in {**raw, **written}:
            if key in raw and key in written:
                yield from _rewritten(raw[key], written[key], f"{path}.{key}".strip("."), whole)
            elif whole or key in raw:
                what = "is missing" if key in written else "would not be written"
                yield f"{path}.{key} {what}".strip(".")
    elif isinstance(raw, list) and isinstance(written, list) and len(raw) == len(written):
        for position, (a, b) in enumerate(zip(raw, written, strict=True)):
            yield from _rewritten(a, b, f"{path}.{position}", whole)
    elif not same(raw, written):
        yield f"{path} is {shown(raw)}, which is read as {shown(written)}"


def _seal(entry: Entry) -> Iterator[str]:
    stated_seal = entry.result.seal
    if stated_seal is None:
        if not entry.is_run:
            yield "missing: entries are sealed (aal-bench submit)"
    elif seal(entry.tree) != stated_seal:
        yield "does not recompute: the file was changed after it was written"


def _name(entry: Entry) -> Iterator[str]:
    stem, name = entry.path.stem, entry.result.submission_id
    if entry.is_run:
        return
    if not ENTRY_NAME.fullmatch(stem):
        yield f"{shown(stem)} is no name of an entry: letters, digits and _.+-[] only"
    if name != stem:
        yield f"submission_id is {shown(name)}, the file {shown(stem)}"


def _place(entry: Entry) -> str:
    return "as its task and norm" if on_board(entry.path) else "not judged: outside a board"


def _folder(entry: Entry, root: Path) -> Iterator[str]:
    path, record = absolute(entry.path), entry.result
    below = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if not on_board(path):
        if below:
            yield f"{'/'.join(below)} is no <task>/<{' or '.join(NORMS)}>/<entry>.json"
        return
    if len(below) != 3:
        yield f"{'/'.join(below)} is no <task>/<norm>/<entry>.json"
        return
    if (below[0], below[1]) != (record.task.id, record.threat.norm):
        yield (
            f"lies in {shown(f'{below[0]}/{below[1]}')},"
            f" is of {shown(f'{record.task.id}/{record.threat.norm}')}"
        )
    for place in (path.parent, path.parent.parent):
        if place.is_symlink():
            yield f"{place.name} is a symbolic link; a board is a plain folder"


def _eligible(record: Result) -> Iterator[str]:
    if record.status != "success":
        yield f"status is {record.status}"
    if record.smoke:
        yield "a smoke run is a trial of the machinery"
    if record.limit is not None:
        yield f"evaluated on {record.limit} of {record.task.examples} {record.task.unit}"


def _evidence(entry: Entry) -> Iterator[str]:
    record = entry.result
    if record.evidence is None:
        yield "no evidence"
        return
    stages = [stage.attack for stage in record.evaluation if stage.attack != "clean"]
    wanted = {
        "path": entry.evidence_path.name,
        "format": FORMATS.get(record.task.family),
        "rows": record.task.rows,
        "columns": columns(record.task.family, stages),
    }
    block = record.evidence.model_dump(mode="json", include=set(wanted))
    yield from differing(block, wanted, "evidence")
    stored = record.adversarials
    if stored is not None and stored.path is not None and not ENTRY_NAME.fullmatch(stored.path):
        yield f"adversarials.path is {shown(stored.path)}, no plain name of a file"
