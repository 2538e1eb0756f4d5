"""From a finished run to an entry of a board, or the reason why not. No torch."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aal_bench import registry
from aal_bench.config import parse
from aal_bench.errors import UserError
from aal_bench.evidence import Evidence
from aal_bench.hashing import sha256_file
from aal_bench.leaderboard import copies, entries, episodes, pair, verify
from aal_bench.leaderboard.entries import ENTRY_NAME, Entry
from aal_bench.leaderboard.extend import is_extra, stood
from aal_bench.leaderboard.findings import broken
from aal_bench.leaderboard.metadata import Metadata, checkpoint_of, inherited
from aal_bench.leaderboard.untrusted import read_json
from aal_bench.record import SCHEMA_VERSION, Result, whole_autoattack
from aal_bench.results import read, sealed
from aal_bench.schema import Event, Verification

RUN_RECORD = 1 << 24
"""Bytes of the largest ``run.json`` that is read: it has a line for every attempt."""
SELF_CHECKED = 1
"""What a submitter may claim: that every number follows from the evidence."""


def submit(run: Path, root: Path, about: Metadata, replace: bool = False) -> Entry:
    """Write the run's record and evidence into its board below `root`.

    The entry is verified up to level 1 before anything is written.

    Raises:
        UserError: the run is not one that may be ranked (each case with its reason), or the entry
            exists and `replace` is false.
    """
    result = _eligible(run)
    name = result.submission_id if about.entry is None else about.entry
    if not ENTRY_NAME.fullmatch(name):
        raise UserError(f"--entry {name}: letters, digits and _.+- only, as in Rice2020Overfitting")
    folder = entries.folder(root, result.task.id, result.threat.norm)
    path = folder / f"{name}.json"
    assert result.evidence is not None
    evidence = run / (result.evidence.path or "evidence.npz")
    if replace and path.exists():
        about = inherited(about, entries.read(path).result, result)
    entry = _described(result, about, name)
    # Before the lock: what cannot be an entry does not make a folder either.
    _verified(entry, evidence)
    with pair.locked(folder):
        _distinct(path)
        verification = _history(path, entry, replace)
        entry = sealed(entry.model_copy(update={"verification": verification}))
        _verified(entry, evidence)
        _nobody_elses(Entry(path, entry.model_dump(mode="json"), entry), evidence)
        pair.write(path, entry, evidence)
    return entries.read(path)


def _eligible(run: Path) -> Result:
    if not run.is_dir():
        hint = f"; give its folder, {run.parent}" if run.is_file() else ""
        raise UserError(f"{run}: no run folder (runs/<task>/<method>/<hash>-seed<n>){hint}")
    status, error = _status(run)
    if status != "success":
        why = f" ({error})" if error else ""
        raise UserError(f"{run}: the run's status is {status}{why}; finish it with --resume first")
    result = read(run / "result.json")
    if result.task.family == "detection":
        raise UserError(f"{run}: {entries.NO_BOARD}")
    if result.smoke:
        raise UserError(f"{run}: a smoke run is a trial of the machinery, never a result")
    if result.limit is not None:
        raise UserError(
            f"{run}: evaluated on {result.limit} of {result.task.examples}"
            f" {'test images' if result.task.episodes is None else 'episodes'}; run it again"
            " without --limit-eval"
        )
    if result.task.family == "classification" and not whole_autoattack(result):
        ranked = [
            name
            for name, (stages, _) in registry.PROTOCOLS.items()
            if set(registry.AUTOATTACK) <= set(stages)
        ]
        raise UserError(
            f"{run}: protocol {result.protocol} is not full AutoAttack; run it again with"
            f" --protocol {' or '.join(ranked)} (or attack its weights alone: aal-bench evaluate"
            f" {result.task.id} --checkpoint {run / 'model.safetensors'} --protocol {ranked[0]})"
        )
    if result.task.episodes is not None and (why := episodes.unranked(result)) is not None:
        raise UserError(
            f"{run}: {why}; run it again with --protocol {' or '.join(registry.EPISODIC)}"
        )
    path = run / (result.evidence.path or "") if result.evidence else run
    if not path.is_file():
        raise UserError(f"{run}: its evidence {path.name} is missing")
    if result.evidence is None or sha256_file(path) != result.evidence.sha256:
        raise UserError(f"{path}: not the file that result.json was made from")
    return result


def _status(run: Path) -> tuple[str, str | None]:
    path = run / "run.json"
    if not path.is_file():
        below = sorted(found.parent.name for found in run.glob("*/run.json"))
        hint = f"; it holds the runs {', '.join(below[:4])}" if below else ""
        raise UserError(f"{run}: no run.json, so no run folder{hint}")
    record = read_json(path, largest=RUN_RECORD)
    error = record.get("error")
    told = f"{error.get('stage')}: {error.get('message')}" if isinstance(error, dict) else None
    return str(record.get("status")), told


def _described(result: Result, about: Metadata, name: str) -> Result:
    """The record as an entry: its metadata, its name, and its evidence beside it."""
    assert result.evidence is not None
    tree = result.model_dump(mode="json")
    tree |= {"submission_id": name, "schema_version": SCHEMA_VERSION}
    top = {"name": about.paper} | {
        key: getattr(about, key) for key in ("authors", "venue", "link", "reported", "footnote")
    }
    tree |= {key: value for key, value in top.items() if value is not None}
    tree["evidence"]["path"] = f"{name}.npz"
    if tree["adversarials"] is not None:
        tree["adversarials"] |= {"path": None, "url": about.adversarials_url}
    if tree.get("audit") is not None:  # its findings are the record's flags; the file stays behind
        tree["audit"] |= {"path": None}
    if about.license is not None:
        tree["model"]["license"] = about.license
    if about.checkpoint_url is not None and tree["model"]["checkpoint"] is not None:
        tree["model"]["checkpoint"]["url"] = about.checkpoint_url
    tree["verification"] = _submitted(result).model_dump(mode="json")
    if tree["training"] is not None:
        tree["training"]["siblings"] = []
    tree["seal"] = None
    return sealed(parse(Result, tree, "submission"))


def _common(level: int = SELF_CHECKED) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": now, "by": "submitter", "level": level}


def _submitted(entry: Result) -> Verification:
    event = Event(event="submitted", run_hash=entry.run_hash, **_common())
    return Verification(level=SELF_CHECKED, history=[event])


def _history(path: Path, entry: Result, replace: bool) -> Verification:
    """The entry's history: that of the one it replaces, and this submission."""
    if not path.exists():
        return _submitted(entry)
    if not replace:
        raise UserError(
            f"{path}: this entry exists; add --replace (its history is kept) or choose --entry NAME"
        )
    old = entries.read(path).result
    lowered = {event.checkpoint: event.external for event in old.verification.history}
    if not _repeats(entry, old):
        lowered[checkpoint_of(old)] = old.external
    if (external := lowered.get(checkpoint_of(entry))) is not None:
        raise UserError(
            f"{path}: this very checkpoint was brought down to {external} %; a replacement"
            " needs other weights"
        )
    if old.run_hash == entry.run_hash:  # the same numbers: what was verified stays so
        level = old.verification.level
        amended = Event(event="amended", run_hash=old.run_hash, **_common(level))
        history = [*old.verification.history, amended]
        return old.verification.model_copy(update={"history": history})
    event = Event(
        event="replaced",
        run_hash=old.run_hash,
        checkpoint=checkpoint_of(old),
        autoattack_acc=old.autoattack_acc,
        external=old.external,
        note=f"was at level {old.verification.level}",
        **_common(),
    )
    return Verification(level=SELF_CHECKED, history=[*old.verification.history, event])


def _repeats(entry: Result, old: Result) -> bool:
    """Whether the run's own adaptive attacks had lowered the old entry, and lower this one too."""
    added = [stage for stage in old.evaluation if is_extra(stage.attack)]
    felled = any(stood(stage) < stage.n_in for stage in added)
    if felled or old.external is None or entry.external is None:
        return False
    return float(entry.external) <= float(old.external)


def _distinct(path: Path) -> None:
    """Refuse a name that is another's on a file system that ignores case."""
    for other in path.parent.glob("*.json"):
        if other.name != path.name and other.name.casefold() == path.name.casefold():
            raise UserError(f"--entry {path.stem}: differs from {other.stem} in case only")


def _verified(entry: Result, evidence: Path) -> None:
    """Refuse what the rules of levels 0 and 1 would refuse, before it is written."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = entries.folder(Path(scratch), entry.task.id, entry.threat.norm)
        folder.mkdir(parents=True)
        path = folder / f"{entry.submission_id}.json"
        pair.write(path, entry, evidence)
        findings = verify.verify(path, level=1)[0].findings
    if broken(findings) is not None:
        wrong = next(finding for finding in findings if not finding.ok)
        raise UserError(f"not fit for a board: {wrong.rule}: {wrong.text}")


def _nobody_elses(entry: Entry, evidence: Path) -> None:
    """Refuse weights, a run or evidence that another entry of the board holds already."""
    board = verify.Board()
    copied = copies.finding(Evidence.load(evidence), sha256_file(evidence), board.others(entry))
    for found in (copies.once(entry.result, board.records(entry)), copied):
        if not found.ok:
            raise UserError(f"not fit for a board: {found.rule}: {found.text}")


def remark(entry: Result) -> str:
    """Why the entry may not be verified beyond level 1, or what it needs for more."""
    code = entry.environment.aal_bench
    if entry.task.episodes is not None:
        return "(at most, so far: levels 2 to 4 are not offered yet for few-shot entries)"
    if code.commit is None:
        return "(at most: the run's code has no commit)"
    if code.dirty:
        return "(at most: the run's code had uncommitted changes; commit them and run again)"
    surgery = entry.model.surgery or {}
    own = [name for name in (entry.model.name, str(surgery.get("name", ""))) if ":" in name]
    if own:
        return f"(level 2 and more need your file {own[0].partition(':')[0]}: publish it too)"
    return "(level 2 and more need the checkpoint and the adversarials: keep them)"
