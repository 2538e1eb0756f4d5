"""All levels of one entry, in order; torch is imported only where a level needs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aal_bench.errors import UserError
from aal_bench.leaderboard import entries
from aal_bench.leaderboard import verify as torch_free
from aal_bench.leaderboard.entries import Entry
from aal_bench.leaderboard.extend import capped
from aal_bench.leaderboard.findings import Finding, broken
from aal_bench.record import Result
from aal_bench.verification import recording

if TYPE_CHECKING:
    from aal_bench.verification.reattack import Reattack
    from aal_bench.verification.rebuild import Rebuilt

ZOO = "robustbench.utils:load_model"
ANONYMOUS = "anonymous"


class Options(NamedTuple):
    """What levels 2 to 4 need, as typed."""

    checkpoint: Path | None = None
    """The entry's weights."""
    adversarials: Path | None = None
    """The run's ``adversarials.npz``."""
    data_dir: Path | None = None
    """Where the images are; None: embedded, or downloaded."""
    public_string: str | None = None
    """Known only after the submission."""
    audit: int | None = 500
    """Survivors that level 3 attacks again; None: all."""
    challenge: Path | None = None
    """Anybody's adversarials."""
    save: Path | None = None
    """Where level 3 writes the images that felled survivors, a proof for a challenge; no file may
    be there. None: nowhere."""
    by: str | None = None
    """Who verifies: records the outcome in the entry. None: nothing is written, except by a
    challenge."""
    model: str | None = None
    """``path/file.py:build``, typed by somebody who trusts it: run instead of the code that the
    record names. None: only registered models are built."""
    method: str | None = None
    """``path/file.py:Class``, the same for the method."""


def verify_entry(path: Path, level: int, options: Options) -> torch_free.Verdict:
    """Examine one entry up to `level`; each level only where those below it hold.

    With ``options.by``, success at level 2 or 3 is recorded in the entry, and images that fell at
    level 3 are recorded too, even where its rule breaks. With ``options.challenge``, the challenge
    comes last, and lowers the entry where it succeeds.

    Args:
        path: of the entry's ``.json``.
        level: 0..3.
        options: what the levels need.

    Raises:
        UserError: `path` is no file, an option or a file is missing, the entry may not be recorded
            beyond level 1, or it was changed while it was verified.
        RunFailed: an attack raised or left its bounds.
    """
    _sensible(level, options)
    if path.is_dir():
        raise UserError(f"{path}: levels 2 to 4 examine one entry at a time: name its .json")
    challenged = options.challenge is not None
    (verdict,) = torch_free.verify(path, 1 if challenged else min(level, 1))
    if broken(verdict.findings) is not None:
        return verdict
    findings = list(verdict.findings)
    if level > 1 or challenged:
        before, entry = path.read_bytes(), entries.read(path)
        _complete(entry, level, options)
        findings, recorded = _with_torch(entry, before, level, options, findings)
        return verdict._replace(findings=findings, recorded=recorded)
    return verdict


def _with_torch(
    entry: Entry, before: bytes, level: int, options: Options, held: list[Finding]
) -> tuple[list[Finding], str | None]:
    """The findings `held` and those of the levels that need the model; and what was recorded."""
    from aal_bench.verification import replay
    from aal_bench.verification.code import Typed
    from aal_bench.verification.rebuild import rebuild

    typed = Typed(options.model, options.method)
    found, rebuilt = rebuild(entry, options.checkpoint, options.data_dir, typed)
    findings, recorded = held + found, None
    if rebuilt is None:
        return findings, None
    findings.append(replay.clean(rebuilt))
    if level > 1 and broken(findings) is None:
        findings += replay.replayed(entry, rebuilt, options.adversarials)
    attacked = None
    if level > 2 and broken(findings) is None:
        found, attacked = _attacked_again(entry, rebuilt, options)
        findings += found
    holds = broken(findings) is None
    if level > 1 and options.by is not None and (holds or attacked is not None):
        recorded = recording.sign(entry, before, options.by, findings, attacked)
    if holds and options.challenge is not None:
        findings += _challenge(entry, rebuilt, options.challenge, options.by)
    return findings, recorded


def _attacked_again(
    entry: Entry, rebuilt: Rebuilt, options: Options
) -> tuple[list[Finding], Reattack]:
    """Level 3's findings; what fell is saved before anything else can go wrong."""
    from aal_bench.verification import reattack

    assert options.public_string is not None
    attacked = reattack.reattack(entry, rebuilt, options.public_string, options.audit)
    findings = reattack.findings(attacked, options.public_string)
    if options.save is not None:
        findings.append(reattack.keep(attacked, rebuilt, options.save))
    if options.by is None and len(attacked.fallen):
        findings.append(recording.unrecorded(options.save))
    return findings, attacked


def _challenge(entry: Entry, rebuilt: Rebuilt, path: Path, by: str | None) -> list[Finding]:
    from aal_bench.verification.challenge import challenge

    return challenge(entry, rebuilt, path, by or ANONYMOUS)


def _sensible(level: int, options: Options) -> None:
    if options.save is not None:
        _free(options.save, level)
    if options.by is None:
        return
    if not options.by.strip() or not options.by.isprintable():
        raise UserError("--by: name who verifies, on one line")
    if level < 2 and options.challenge is None:
        raise UserError("--by records a verification of level 2 or 3: add --level 2")


def _free(path: Path, level: int) -> None:
    """Refuse, before hours of attacks, a name under which nothing can be saved."""
    if level < recording.ATTACKED:
        raise UserError("--save keeps what falls at level 3: add --level 3")
    if path.exists() or path.is_symlink():
        raise UserError(f"--save {path}: is there already; name a new file")
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--save {path}: {folder} is no folder that can be written")


def _complete(entry: Entry, level: int, options: Options) -> None:
    """Refuse, before anything is read, what could not be finished or recorded."""
    result, told = entry.result, []
    if result.task.episodes is not None:
        raise UserError(
            f"{entry.path}: levels 2 to 4 are not offered yet for few-shot entries; --level 1"
            " recomputes every number from the evidence"
        )
    for at, needs in _needs(result, level, options).items():
        missing = [name for name, given in needs.items() if given is None]
        if missing:
            told.append(f"{at} needs {' and '.join(missing)}")
    if told:
        raise UserError("; ".join(told))
    if entry.is_run and (options.by is not None or options.challenge is not None):
        raise UserError(f"{entry.path}: is no entry yet: aal-bench submit writes it into its board")
    why = capped(result)
    if options.by is not None and level > 1 and why is not None:
        raise UserError(f"the entry {why}: it stays at level 1, and --by cannot record more")


def _needs(result: Result, level: int, options: Options) -> dict[str, dict[str, Any]]:
    """Level -> option -> what was given, for the levels that were asked for."""
    weights = {} if result.model.loader == ZOO else {"--checkpoint FILE": options.checkpoint}
    if level < 2:
        return {"a challenge": weights}
    stored = {} if result.adversarials is None else {"--adversarials FILE": options.adversarials}
    needs: dict[str, dict[str, Any]] = {"level 2": {**weights, **stored}}
    if level > 2:
        needs["level 3"] = {"--public-string S": options.public_string}
    return needs
