"""Level 0, what happened to an entry: its level, who set it, what brought it down. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import rule, shown
from aal_bench.leaderboard.stated import extra
from aal_bench.leaderboard.texts import moment
from aal_bench.record import Result, percent
from aal_bench.schema import Event

CLAIMED = 1
"""The highest level that a submitter may claim."""
VERIFIED = ("verified", "reattacked", "challenged")
"""Events by which an entry reaches a higher one."""


def findings(record: Result) -> list[Finding]:
    """The rules about verification, its history and `external`."""
    told = "no challenge" if record.external is None else f"{record.external} %"
    events = len(record.verification.history)
    return [
        rule(0, "level", _level(record), f"level {record.verification.level} is accounted for"),
        rule(0, "history", _history(record), f"{events} event{'s' * (events != 1)}, oldest first"),
        rule(0, "external", _external(record), told),
    ]


def _level(record: Result) -> Iterator[str]:
    verification = record.verification
    level, history = verification.level, verification.history
    if history and history[-1].level != level:
        yield f"level is {level}, after the last event it was {history[-1].level}"
    if level <= CLAIMED:
        return
    if verification.by is None or verification.date is None:
        yield f"level {level} without a name and a date: a submitter may claim level {CLAIMED}"
    if not any(event.event in VERIFIED and event.level == level for event in _current(record)):
        yield f"level {level} without an event that reached it"
    codes = {"environment.aal_bench": record.environment.aal_bench}
    if record.training is not None:
        codes["training.code"] = record.training.code
    for name, code in codes.items():
        if code.commit is None or code.dirty is not False:
            yield f"level {level}, but {name} is of no commit or had uncommitted changes"


def _current(record: Result) -> list[Event]:
    """The events since the entry was last replaced: those before are about another run."""
    history = record.verification.history
    replaced = [place for place, event in enumerate(history) if event.event == "replaced"]
    return history[replaced[-1] :] if replaced else history


def _history(record: Result) -> Iterator[str]:
    events = record.verification.history
    moments = [found for event in events if (found := moment(event.at)) is not None]
    if moments != sorted(moments):
        yield "events are not in the order in which they happened"
    current = _current(record)
    if events and current[0].event == "submitted" and current[0].run_hash != record.run_hash:
        yield "the submitted run_hash is another run's"
    stages = {stage.attack: stage for stage in extra(record)}
    for event in current:
        if event.stage is not None and event.stage not in stages:
            yield f"an event names stage {shown(event.stage)}, which the entry does not have"
    for name, stage in stages.items():
        told = [event for event in current if event.stage == name]
        kind = "challenged" if name.startswith("challenge") else "reattacked"
        if len(told) != 1 or told[0].event != kind:
            yield f"stage {name} needs one event '{kind}'"
        elif told[0].fallen != stage.n_in - stage.n_out:
            yield f"{name} felled {stage.n_in - stage.n_out}, its event says {told[0].fallen}"
    yield from _before(record, current)


def _before(record: Result, current: list[Event]) -> Iterator[str]:
    """`external` before each event is what the stages until then had left, where one had fallen."""
    held = None
    stages = {stage.attack: stage for stage in extra(record)}
    for event in current:
        stage = stages.get(event.stage or "")
        if stage is None:
            continue
        if event.external != held:
            yield f"external before {event.stage} was {held}, its event says {event.external}"
        if stage.n_out < stage.n_in:
            held = percent(stage.n_out / record.task.examples)


def _external(record: Result) -> Iterator[str]:
    fell = [stage.attack for stage in extra(record) if stage.n_out < stage.n_in]
    lowered = percent(record.metrics.robust.value) if fell and record.metrics else None
    if record.external != lowered:
        why = f"after {fell[-1]}" if fell else "no image fell in a later stage"
        yield f"external is {shown(record.external)}, not {shown(lowered)}: {why}"
