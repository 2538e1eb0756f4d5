"""Level 0, what happened to an entry: its level, who set it, what brought it down. No torch.

One record is looked at. That its history was not rewritten, only a comparison with what it was
before can tell (`base`).
"""

from __future__ import annotations

from collections.abc import Iterator

from aal_bench.leaderboard.extend import beyond, capped, stood
from aal_bench.leaderboard.findings import Finding
from aal_bench.leaderboard.rules import rule, shown
from aal_bench.leaderboard.stated import extra
from aal_bench.leaderboard.texts import moment
from aal_bench.record import Result, percent
from aal_bench.schema import Event

CLAIMED = 1
"""The highest level that a submitter may claim."""
ATTACKED = 3
"""The highest level that a verification reaches."""
STAGED = ("reattacked", "challenged")
"""Events that add a stage."""
LIFTLESS = ("amended", "challenged")
"""Events that lift no entry by themselves."""
VERIFIED = ("verified", *STAGED)
"""Events by which an entry reaches a higher level."""


def findings(record: Result, is_run: bool = False) -> list[Finding]:
    """The rules about verification, its history and `external`.

    Besides what was added later, a run's own adaptive attacks lower `external`, without an event.

    Args:
        record: of an entry.
        is_run: it is none yet, so nothing has happened to it.
    """
    told = "no challenge" if record.external is None else f"{record.external} %"
    events = len(record.verification.history)
    fine = f"{events} event{'s' * (events != 1)}, oldest first"
    return [
        rule(0, "level", _level(record), f"level {record.verification.level} is accounted for"),
        rule(0, "history", _history(record, is_run), fine),
        rule(0, "external", _external(record), told),
    ]


def lowered(events: list[Event]) -> Iterator[Event]:
    """The events that tell of a lower value than AutoAttack's: of their own `run_hash`."""
    for event in events:
        if event.external is not None or (event.event in STAGED and event.fallen):
            yield event


def _level(record: Result) -> Iterator[str]:
    verification = record.verification
    level, history = verification.level, verification.history
    if history and history[-1].level != level:
        yield f"level is {level}, after the last event it was {history[-1].level}"
    yield from _steps(history)
    if level <= CLAIMED:
        return
    if record.task.episodes is not None:
        yield f"level {level}: few-shot entries are verified up to level {CLAIMED} so far"
    if verification.by is None or verification.date is None:
        yield f"level {level} without a name and a date: a submitter may claim level {CLAIMED}"
    if level <= ATTACKED and verification.report_sha256 is None:
        yield f"level {level} without the report's sha256"
    if level == ATTACKED and verification.seed is None:
        yield f"level {level} without the seed of the re-attack"
    if not any(event.event in VERIFIED and event.level == level for event in _current(record)):
        yield f"level {level} without an event that reached it"
    if (why := capped(record)) is not None:
        yield f"level {level}, but the entry {why}"


def _steps(history: list[Event]) -> Iterator[str]:
    """How far each event may lift an entry; a replacement starts anew."""
    held = 0
    for place, event in enumerate(history):
        if event.event in ("submitted", "replaced"):
            held, most = 0, CLAIMED
        elif event.event == "challenged" and held >= ATTACKED and event.stage is not None:
            most = ATTACKED + 1
        else:
            most = held if event.event in LIFTLESS else max(held, ATTACKED)
        if event.level > most:
            yield f"event {place + 1}, {event.event}, lifts the entry from {held} to {event.level}"
        held = event.level


def _current(record: Result) -> list[Event]:
    """The events since the entry was last replaced: those before are about another run."""
    history = record.verification.history
    replaced = [place for place, event in enumerate(history) if event.event == "replaced"]
    return history[replaced[-1] :] if replaced else history


def _history(record: Result, is_run: bool) -> Iterator[str]:
    events = record.verification.history
    if not is_run and (not events or events[0].event != "submitted"):
        yield "its first event is not 'submitted'"
    if any(event.event == "submitted" for event in events[1:]):
        yield "it was submitted twice; what comes later is 'replaced'"
    moments = [found for event in events if (found := moment(event.at)) is not None]
    if moments != sorted(moments):
        yield "events are not in the order in which they happened"
    yield from _runs(record)
    yield from _stages(record, _current(record))
    yield from _before(record, _current(record))


def _runs(record: Result) -> Iterator[str]:
    """Which run each event is about: the one that the next replacement names, or the entry's."""
    own = record.run_hash
    about = own
    for place, event in reversed(list(enumerate(record.verification.history, start=1))):
        if event.event == "replaced":
            about = event.run_hash
            if about is None:
                yield f"event {place}, replaced, names no run"
            elif about == own:
                yield f"event {place}, replaced, names the run that the entry holds"
        elif event.run_hash != about:
            yield f"the run_hash of event {place}, {event.event}, is another run's"


def _stages(record: Result, current: list[Event]) -> Iterator[str]:
    stages = {stage.attack: stage for stage in extra(record)}
    for event in record.verification.history:
        # Wherever it stands: what felled images of this run still does.
        binds = event in current or (event.fallen and event.run_hash == record.run_hash)
        if event.event in STAGED and event.stage is None:
            yield f"an event '{event.event}' names no stage"
        elif event.stage is not None and binds and event.stage not in stages:
            yield f"an event names stage {shown(event.stage)}, which the entry does not have"
    for name, stage in stages.items():
        told = [event for event in current if event.stage == name]
        kind = "challenged" if name.startswith("challenge") else "reattacked"
        if len(told) != 1 or told[0].event != kind:
            yield f"stage {name} needs one event '{kind}'"
        elif told[0].fallen != stage.n_in - stood(stage):
            yield f"{name} felled {stage.n_in - stood(stage)}, its event says {told[0].fallen}"


def _before(record: Result, current: list[Event]) -> Iterator[str]:
    """`external` before each event is what the stages until then had left, where one had fallen."""
    stages = {stage.attack: stage for stage in extra(record)}
    own = [stage for stage in beyond(record.evaluation) if stage.attack not in stages]
    fell = [stage for stage in own if stood(stage) < stage.n_in]
    held = percent(stood(fell[-1]) / record.task.rows) if fell else None
    for event in current:
        stage = stages.get(event.stage or "")
        if stage is None:
            continue
        if event.external != held:
            yield f"external before {event.stage} was {held}, its event says {event.external}"
        if stood(stage) < stage.n_in:
            held = percent(stood(stage) / record.task.rows)


def _external(record: Result) -> Iterator[str]:
    fell = [stage.attack for stage in beyond(record.evaluation) if stood(stage) < stage.n_in]
    robust = record.metrics.robust if record.metrics else None
    lowered = percent(robust.value) if fell and robust else None
    if record.external != lowered:
        why = f"after {fell[-1]}" if fell else "no image fell in a later stage"
        yield f"external is {shown(record.external)}, not {shown(lowered)}: {why}"
